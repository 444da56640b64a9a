"""The frustum proportion loss (MonoScene, section 3.4.2): each tile of the picture has its own mixture of classes.

Legend: B samples, V views, C classes, N voxels (any axes), T tiles (specs/occdepth.md 1.3, 2.9).
"""

import torch
from torch import Tensor

from syntheocc.occupancy.ops.index_sums import index_sums
from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["frustum_proportion_loss"]


def frustum_proportion_loss(
    probabilities: Tensor,  # [B, C, ...]
    labels: Tensor,  # [B, ...]
    tiles: Tensor,  # [B, V, ...]
    num_tiles: int,
    ignore_index: int = UNKNOWN,
) -> Tensor:
    """Kullback-Leibler divergence of the predicted from the labelled mixture of each tile, averaged over the tiles.

    The mixtures are those of the whole batch. A tile without labelled voxels has no say; without any tile it is 0.

    Args:
        probabilities: float, a softmax over the classes.
        labels: integers 0..C - 1 or `ignore_index`, whose voxels count for nothing.
        tiles: the tile that shows the voxel in each view; `num_tiles` or more: none. Each entry counts once, so a
            voxel that two views show in one tile must be there once.
        num_tiles: T.
        ignore_index: label of unknown voxels.
    """
    batch, classes, views = *probabilities.shape[:2], tiles.shape[1]
    voxels = probabilities.flatten(2)  # [B, C, N]
    voxels = voxels.float() if voxels.dtype != torch.float64 else voxels
    labels = labels.flatten(1)
    known = labels != ignore_index
    mixture = voxels.new_zeros(classes, num_tiles + 1)
    counts = torch.zeros((num_tiles + 1) * classes, dtype=torch.long, device=labels.device)
    for sample in range(batch):
        for view in range(views):
            tile = tiles[sample, view].flatten().long()
            tile = torch.where(known[sample] & (tile < num_tiles), tile, num_tiles)
            mixture = mixture + index_sums(voxels[sample], tile, num_tiles + 1)
            own = torch.where(known[sample], labels[sample].long(), 0)
            counts = counts + index_sums(torch.ones_like(own), tile * classes + own, (num_tiles + 1) * classes)
    mixture, counted = mixture[:, :num_tiles].mT, counts.view(-1, classes)[:num_tiles]  # [T, C] each
    total, number = mixture.sum(1, keepdim=True), counted.sum(1, keepdim=True)
    valid = (total > 0) & (number > 0)
    predicted = torch.where(valid, mixture, 1.0) / torch.where(valid, total, 1.0)
    wanted = counted.to(mixture.dtype) / number.clamp_min(1)
    present = valid & (counted > 0)
    # A class that is there and that nobody predicts would cost infinitely; its logarithm is cut off.
    ratio = torch.where(present, wanted, 1.0).log() - torch.where(present, predicted, 1.0).clamp_min(1e-12).log()
    return (wanted * ratio * present).sum() / valid.sum().clamp_min(1)
