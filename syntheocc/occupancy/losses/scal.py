"""Scene-class affinity losses of MonoScene (Cao and de Charette, CVPR 2022, eq. 6-8).

Legend: N labelled entries, C classes.
"""

import torch
from torch import Tensor

from syntheocc.occupancy.losses.known import known_entries


def scal_loss(
    probability: Tensor,  # [N, ...]
    target: Tensor,  # [N, ...]
) -> Tensor:
    """``-log precision - log recall - log specificity`` of soft predictions.

    A term whose denominator is 0 (nothing predicted, no entry of the class, none of the rest) is left out. So is the
    precision of a class without entries: it is 0 whatever is predicted, and its logarithm would poison the loss.

    Args:
        probability: float [N, ...], the predicted probability of one class, or of each of several.
        target: bool [N, ...], whether the entry is of the class.

    Returns:
        [...], one number a class.
    """
    target = target.to(probability.dtype)
    hit = (probability * target).sum(0)
    positives = target.sum(0)
    precision = _ratio(hit, probability.sum(0) * (positives > 0))
    recall = _ratio(hit, positives)
    specificity = _ratio(((1 - probability) * (1 - target)).sum(0), (1 - target).sum(0))
    return -(precision.log() + recall.log() + specificity.log())


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, at least 1e-12; 1 (whose logarithm is 0) where the denominator is 0."""
    counts = denominator > 0
    # where() on both sides: the gradient of the branch that is not taken must be finite too.
    quotient = torch.where(counts, numerator, 1.0) / torch.where(counts, denominator, 1.0)
    return quotient.clamp_min(1e-12)


def geo_scal_loss(
    probabilities: Tensor,  # [..., N, C]
    labels: Tensor,  # [..., N]
    free: int,
    ignore_index: int | None = 255,
) -> Tensor:
    """The affinity of "occupied": `scal_loss` of 1 - P(free) against label != free; 0 without any entry.

    With samples in front (only where all entries count, `ignore_index` None) one number a sample.
    """
    probabilities, labels = known_entries(probabilities, labels, ignore_index)
    return scal_loss((1 - probabilities[..., free]).movedim(-1, 0), (labels != free).movedim(-1, 0))


def sem_scal_loss(
    probabilities: Tensor,  # [..., N, C]
    labels: Tensor,  # [..., N]
    ignore_index: int | None = 255,
) -> Tensor:
    """Mean of `scal_loss` over the classes present (free counts as one); 0 without any entry.

    With samples in front (only where all entries count, `ignore_index` None) one number a sample.
    """
    probabilities, labels = known_entries(probabilities, labels, ignore_index)
    target = labels[..., None] == torch.arange(probabilities.shape[-1], device=labels.device)
    present = target.any(-2).to(probabilities.dtype)
    losses = scal_loss(probabilities.movedim(-2, 0), target.movedim(-2, 0))
    return (losses * present).sum(-1) / present.sum(-1).clamp_min(1)
