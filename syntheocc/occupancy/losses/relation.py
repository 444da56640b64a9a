"""The relation prior's labels and loss (MonoScene, section 3.3; specs/occdepth.md 1.4, 2.9).

Legend: B samples, R relations, M groups of 2 x 2 x 2 voxels, N voxels of the coarse grid (both z fastest).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["relation_loss", "relation_targets"]


def relation_targets(
    labels: Tensor,  # [B, x, y, z]
    num_classes: int,
    free: int,
    relations: int = 4,
) -> Tensor:
    """How each voxel stands to each group of voxels: bool [B, R, N, M]; never anything for an unknown voxel.

    Four relations, which do not exclude one another: both occupied and of one class; both occupied and of another;
    both free; one free and the other not. Two: the group has another class than the voxel's; it has the same.

    Args:
        labels: integers 0..num_classes - 1 of the coarse grid, 255 unknown.
        num_classes: free included.
        free: its label.
        relations: 4 or 2.

    Raises:
        ValueError: another number of relations, or an axis shorter than a group.
    """
    if relations not in (2, 4) or labels.ndim != 4 or min(labels.shape[1:]) < 2:
        raise ValueError(f"expected labels [B, x, y, z] of 2 or more each and 2 or 4 relations; got {labels.shape}")
    known = labels != UNKNOWN
    index = torch.where(known, labels.long(), 0)
    one_hot = F.one_hot(index, num_classes) * known[..., None]  # [B, x, y, z, C]
    # Which classes a group has. Sizes are rounded down: the last voxels of an odd axis are in no group.
    present = F.max_pool3d(one_hot.movedim(-1, 1).float(), 2).flatten(2) > 0  # [B, C, M]
    own = index.flatten(1)  # [B, N]
    occupied = (known & (labels != free)).flatten(1)[..., None]
    empty = (known & (labels == free)).flatten(1)[..., None]
    same = present.gather(1, own[..., None].expand(-1, -1, present.shape[2]))  # [B, N, M]
    if relations == 2:
        other = present.sum(1)[:, None] > same.long()
        return torch.stack([other, same], 1) & known.flatten(1)[:, None, :, None]
    classes = present.clone()
    classes[:, free] = False
    has_class, has_free = classes.any(1)[:, None], present[:, free][:, None]
    another = classes.sum(1)[:, None] > same.long()
    both = [occupied & same, occupied & another, empty & has_free, (occupied & has_free) | (empty & has_class)]
    return torch.stack(both, 1)


def relation_loss(
    logits: Tensor,  # [B, R, M, N]
    labels: Tensor,  # [B, x, y, z]
    num_classes: int,
    free: int,
) -> Tensor:
    """Binary cross entropy of the relations, positives weighted by how rare they are in the batch; the mean.

    A relation that no voxel of the batch has, or all have, is weighted by 1.

    Args:
        logits: of the relation prior.
        labels: see `relation_targets`.
        num_classes: free included.
        free: its label.

    Raises:
        ValueError: labels of another grid than the logits.
    """
    targets = relation_targets(labels, num_classes, free, logits.shape[1]).mT  # [B, R, M, N]
    if targets.shape != logits.shape:
        raise ValueError(
            f"labels {list(labels.shape)} make relations {list(targets.shape)}, the logits are {list(logits.shape)}"
        )
    positives = targets.sum((0, 2, 3)).to(logits.dtype if logits.dtype == torch.float64 else torch.float32)
    negatives = targets[:, 0].numel() - positives
    weight = torch.where((positives > 0) & (negatives > 0), negatives / positives.clamp_min(1), 1.0)
    logits = logits.float() if logits.dtype != torch.float64 else logits
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), pos_weight=weight[:, None, None])
