"""Losses between predicted masks and segments over a set of voxels, matched one to one or every pair.

Legend: Q queries, M segments, N voxels. Masks are logits; segments are 0 or 1.
"""

from torch import Tensor
from torch.nn import functional


def mask_bce(
    logits: Tensor,  # [M, N]
    segments: Tensor,  # [M, N]
) -> Tensor:
    """Binary cross entropy of each mask, averaged over its voxels: [M]; 0 where there is no voxel."""
    loss = functional.binary_cross_entropy_with_logits(logits, segments.to(logits.dtype), reduction="none")
    return loss.sum(-1) / max(1, logits.shape[-1])


def mask_dice(
    logits: Tensor,  # [M, N]
    segments: Tensor,  # [M, N]
) -> Tensor:
    """``1 - (2 s.m + 1) / (sum s + sum m + 1)`` of each mask, s its sigmoid: [M]."""
    scores, segments = logits.sigmoid(), segments.to(logits.dtype)
    return 1 - (2 * (scores * segments).sum(-1) + 1) / (scores.sum(-1) + segments.sum(-1) + 1)


def pairwise_mask_bce(
    logits: Tensor,  # [..., Q, N]
    segments: Tensor,  # [..., M, N]
) -> Tensor:
    """`mask_bce` of every query against every segment: [..., Q, M], without the [Q, M, N] in between."""
    # BCE(x, m) = softplus(x) - x m
    as_nothing = functional.softplus(logits).sum(-1, keepdim=True)
    return (as_nothing - logits @ segments.to(logits.dtype).mT) / max(1, logits.shape[-1])


def pairwise_mask_dice(
    logits: Tensor,  # [..., Q, N]
    segments: Tensor,  # [..., M, N]
) -> Tensor:
    """`mask_dice` of every query against every segment: [..., Q, M]."""
    scores, segments = logits.sigmoid(), segments.to(logits.dtype)
    return 1 - (2 * scores @ segments.mT + 1) / (scores.sum(-1)[..., None] + segments.sum(-1)[..., None, :] + 1)
