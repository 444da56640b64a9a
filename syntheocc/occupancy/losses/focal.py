"""Sigmoid focal loss (Lin et al., ICCV 2017)."""

import torch
from torch import Tensor
from torch.nn import functional


def sigmoid_focal_loss(
    logits: Tensor,  # [...]
    targets: Tensor,  # [...]
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Unreduced focal loss of independent binary decisions.

    Args:
        logits: float [...].
        targets: 0 or 1 [...], of the same shape.
        alpha: weight of the positives; the negatives get 1 - alpha.
        gamma: how strongly easy decisions are discounted.

    Returns:
        float [...], the loss of each element.
    """
    targets = targets.to(logits.dtype)
    probability = logits.sigmoid()
    wrong = probability * (1 - targets) + (1 - probability) * targets
    weight = (alpha * targets + (1 - alpha) * (1 - targets)) * wrong**gamma
    return weight * functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def pairwise_focal_cost(
    logits: Tensor,  # [..., Q, C]
    classes: Tensor,  # [..., M]
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """What it would add to the focal loss to call query q of class m: [..., Q, M].

    The loss of the class as a positive minus its loss as a negative (DETR's matching cost, specs/sparseocc.md 2.8).
    """
    probability = logits.sigmoid()
    # The published cost takes the logarithm of p + 1e-12.
    positive = -alpha * (1 - probability) ** gamma * torch.log(probability + 1e-12)
    negative = -(1 - alpha) * probability**gamma * torch.log(1 - probability + 1e-12)
    cost = positive - negative
    return cost.gather(-1, classes[..., None, :].expand(*cost.shape[:-1], -1))
