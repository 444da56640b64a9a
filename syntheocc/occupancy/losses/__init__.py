"""Losses of the perception models: pure functions of logits or probabilities and labels, with a gradient everywhere.

Every function takes the labels that it must not learn from (``ignore_index=255``: unknown) and drops them. Without any
label left a loss is zero and still depends on its input, so that the backward pass of a distributed run never hangs.
"""

from syntheocc.occupancy.losses.focal import sigmoid_focal_loss
from syntheocc.occupancy.losses.lovasz import lovasz_softmax
from syntheocc.occupancy.losses.masks import mask_bce, mask_dice, pairwise_mask_bce, pairwise_mask_dice
from syntheocc.occupancy.losses.scal import geo_scal_loss, scal_loss, sem_scal_loss
from syntheocc.occupancy.losses.voxels import class_balanced_bce, frequency_weights, weighted_cross_entropy

__all__ = [
    "class_balanced_bce",
    "frequency_weights",
    "geo_scal_loss",
    "lovasz_softmax",
    "mask_bce",
    "mask_dice",
    "pairwise_mask_bce",
    "pairwise_mask_dice",
    "scal_loss",
    "sem_scal_loss",
    "sigmoid_focal_loss",
    "weighted_cross_entropy",
]
