"""Scene-class affinity losses of MonoScene (Cao and de Charette, CVPR 2022, eq. 6-8).

Legend: N labelled entries, C classes.
"""

import torch
from torch import Tensor

from syntheocc.occupancy.losses.known import known_entries
from syntheocc.occupancy.ops.index_sums import index_sums


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
    rest = ((1 - probability) * (1 - target)).sum(0)
    return _from_sums(hit, rest, probability.sum(0), target.sum(0), (1 - target).sum(0))


def _from_sums(hit: Tensor, rest: Tensor, mass: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """`scal_loss` of sums over the entries: p t, (1 - p) (1 - t), p, t and 1 - t."""
    precision = _ratio(hit, mass * (positives > 0))
    recall = _ratio(hit, positives)
    specificity = _ratio(rest, negatives)
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


def scene_scal_losses(
    probabilities: Tensor,  # [B, C, ...]
    labels: Tensor,  # [B, ...]
    free: int,
    ignore_index: int = 255,
) -> tuple[Tensor, Tensor]:
    """`geo_scal_loss` and `sem_scal_loss` of whole volumes with their classes in front, without copies of them.

    All voxels of the batch count together. Every term is made of four sums a class, so that neither the known voxels
    nor the classes' indicators are written out, and nothing waits for the device.

    Args:
        probabilities: float, a softmax over the classes.
        labels: integers 0..C - 1 or `ignore_index`.
        free: label of free.
        ignore_index: entries with this label are dropped.

    Returns:
        Two scalars.
    """
    classes = probabilities.shape[1]
    probabilities, labels = probabilities.flatten(2), labels.flatten(1)
    known = labels != ignore_index
    index = torch.where(known, labels.long(), 0)
    own = torch.where(known, probabilities.gather(1, index[:, None])[:, 0], 0.0).double()  # [B, N]
    # In double precision: what is left over is the small difference of sums over millions of voxels.
    index, own = index.flatten(), own.flatten()
    hit, positives = index_sums(torch.stack([own, known.flatten().to(own.dtype)]), index, classes)
    mass = torch.where(known[:, None], probabilities, 0.0).sum((0, 2), dtype=torch.float64)
    number = positives.sum()
    semantic = _from_sums(hit, number - mass - positives + hit, mass, positives, number - positives)
    present = (positives > 0).to(semantic.dtype)
    semantic = (semantic * present).sum() / present.sum().clamp_min(1)
    # "Occupied" has the probability 1 - P(free), so that its sums are those of free, turned over.
    geometric = _from_sums(
        number - positives[free] - mass[free] + hit[free],
        hit[free],
        number - mass[free],
        number - positives[free],
        positives[free],
    )
    return geometric.to(probabilities.dtype), semantic.to(probabilities.dtype)
