"""Losses of the perception models: pure functions of logits or probabilities and labels, with a gradient everywhere.

Every function takes the labels that it must not learn from (``ignore_index=255``: unknown) and drops them. Without any
label left a loss is zero and still depends on its input, so that the backward pass of a distributed run never hangs.
"""

from syntheocc.occupancy.losses.class_weights import (
    OCC3D_COUNTS,
    OCC3D_RAY_COUNTS,
    effective_number_weights,
    log_frequency_weights,
    sampling_balance,
)
from syntheocc.occupancy.losses.focal import sigmoid_focal_loss
from syntheocc.occupancy.losses.frustum import frustum_proportion_loss
from syntheocc.occupancy.losses.lovasz import lovasz_softmax
from syntheocc.occupancy.losses.masks import mask_bce, mask_dice, pairwise_mask_bce, pairwise_mask_dice
from syntheocc.occupancy.losses.relation import relation_loss, relation_targets
from syntheocc.occupancy.losses.rendering import (
    binary_entropy,
    conditional_semantic_loss,
    depth_loss,
    distortion_loss,
    free_space_loss,
    hit_loss,
    mass_before,
    semantic_loss,
    silog_loss,
    total_variation,
)
from syntheocc.occupancy.losses.scal import geo_scal_loss, scal_loss, scene_scal_losses, sem_scal_loss
from syntheocc.occupancy.losses.voxels import (
    class_balanced_bce,
    frequency_weights,
    scene_cross_entropy,
    weighted_cross_entropy,
)

__all__ = [
    "OCC3D_COUNTS",
    "OCC3D_RAY_COUNTS",
    "binary_entropy",
    "class_balanced_bce",
    "conditional_semantic_loss",
    "depth_loss",
    "distortion_loss",
    "effective_number_weights",
    "free_space_loss",
    "frequency_weights",
    "frustum_proportion_loss",
    "geo_scal_loss",
    "hit_loss",
    "log_frequency_weights",
    "lovasz_softmax",
    "mask_bce",
    "mask_dice",
    "mass_before",
    "pairwise_mask_bce",
    "pairwise_mask_dice",
    "relation_loss",
    "relation_targets",
    "sampling_balance",
    "scal_loss",
    "scene_cross_entropy",
    "scene_scal_losses",
    "sem_scal_loss",
    "semantic_loss",
    "sigmoid_focal_loss",
    "silog_loss",
    "total_variation",
    "weighted_cross_entropy",
]
