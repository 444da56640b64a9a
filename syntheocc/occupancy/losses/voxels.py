"""Per-voxel classification losses and the class weights that go with them.

Legend: N labelled entries, C classes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from syntheocc.occupancy.losses.known import known_entries


def frequency_weights(frequencies: Sequence[float]) -> Tensor:
    """Class weights ``1 / ln(frequency + 0.001)`` from voxel counts: float32 [C].

    Raises:
        ValueError: a count below 2, whose weight would be infinite or negative.
    """
    if not all(count >= 2 for count in frequencies):
        raise ValueError(f"class frequencies are voxel counts of at least 2, got {list(frequencies)}")
    return torch.tensor([1 / math.log(count + 1e-3) for count in frequencies])


def weighted_cross_entropy(
    logits: Tensor,  # [..., N, C]
    labels: Tensor,  # [..., N]
    weights: Tensor | None = None,  # [C]
    ignore_index: int | None = 255,
) -> Tensor:
    """Cross entropy, the mean weighted by each entry's class; 0 without any entry (torch's own gives NaN there).

    With samples in front (only where all entries count, `ignore_index` None) one number a sample.
    """
    logits, labels = known_entries(logits, labels, ignore_index)
    if labels.numel() == 0:
        return logits.sum() * 0
    if labels.ndim > 1:
        weights = logits.new_ones(logits.shape[-1]) if weights is None else weights.to(logits)
        loss = functional.cross_entropy(logits.flatten(0, -2), labels.long().flatten(), weights, reduction="none")
        return loss.view(labels.shape).sum(-1) / weights[labels.long()].sum(-1)
    return functional.cross_entropy(logits, labels.long(), None if weights is None else weights.to(logits))


def scene_cross_entropy(
    logits: Tensor,  # [B, C, ...]
    labels: Tensor,  # [B, ...]
    weights: Tensor | None = None,  # [C]
    ignore_index: int = 255,
) -> Tensor:
    """`weighted_cross_entropy` of whole volumes with their classes in front; nothing is copied nor waited for."""
    weights = logits.new_ones(logits.shape[1]) if weights is None else weights.to(logits)
    labels = labels.long()
    total = functional.cross_entropy(logits, labels, weights, ignore_index=ignore_index, reduction="sum")
    known = labels != ignore_index
    share = torch.where(known, weights[torch.where(known, labels, 0)], 0.0).sum()
    return total / torch.where(share > 0, share, 1.0)


def class_balanced_bce(
    logits: Tensor,  # [N]
    labels: Tensor,  # [N]
    free: int,
    ignore_index: int | None = 255,
) -> Tensor:
    """Binary cross entropy of "occupied" in which every class present weighs the same (SparseOcc v1.0).

    An entry of class c weighs N / count(c), and the plain mean is taken: the sum over the classes present of their
    own mean. 0 without any entry.
    """
    logits, labels = known_entries(logits, labels, ignore_index)
    if labels.numel() == 0:
        return logits.sum() * 0
    labels = labels.long()
    count = labels.bincount()
    loss = functional.binary_cross_entropy_with_logits(logits, (labels != free).to(logits.dtype), reduction="none")
    return (loss / count.to(logits.dtype)[labels]).sum()
