"""Scene-class affinity losses of MonoScene (Cao and de Charette, CVPR 2022, eq. 6-8).

Legend: N labelled entries, C classes.
"""

import torch
from torch import Tensor


def scal_loss(
    probability: Tensor,  # [N]
    target: Tensor,  # [N]
) -> Tensor:
    """``-log precision - log recall - log specificity`` of soft predictions for one class.

    A term whose denominator is 0 (nothing predicted, no entry of the class, none of the rest) is left out. So is the
    precision of a class without entries: it is 0 whatever is predicted, and its logarithm would poison the loss.

    Args:
        probability: float [N], the predicted probability of the class.
        target: bool [N], whether the entry is of the class.
    """
    target = target.to(probability.dtype)
    hit = (probability * target).sum()
    positives = target.sum()
    precision = _ratio(hit, probability.sum() * (positives > 0))
    recall = _ratio(hit, positives)
    specificity = _ratio(((1 - probability) * (1 - target)).sum(), (1 - target).sum())
    return -(precision.log() + recall.log() + specificity.log())


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, at least 1e-12; 1 (whose logarithm is 0) where the denominator is 0."""
    counts = denominator > 0
    # where() on both sides: the gradient of the branch that is not taken must be finite too.
    quotient = torch.where(counts, numerator, 1.0) / torch.where(counts, denominator, 1.0)
    return quotient.clamp_min(1e-12)


def geo_scal_loss(
    probabilities: Tensor,  # [N, C]
    labels: Tensor,  # [N]
    free: int,
    ignore_index: int = 255,
) -> Tensor:
    """The affinity of "occupied": `scal_loss` of 1 - P(free) against label != free; 0 without any entry."""
    known = labels != ignore_index
    probabilities, labels = probabilities[known], labels[known]
    return scal_loss(1 - probabilities[:, free], labels != free)


def sem_scal_loss(
    probabilities: Tensor,  # [N, C]
    labels: Tensor,  # [N]
    ignore_index: int = 255,
) -> Tensor:
    """Mean of `scal_loss` over the classes present (free counts as one); 0 without any entry."""
    known = labels != ignore_index
    probabilities, labels = probabilities[known], labels[known]
    present = labels.unique().tolist()
    if not present:
        return probabilities.sum() * 0
    return torch.stack([scal_loss(probabilities[:, c], labels == c) for c in present]).mean()
