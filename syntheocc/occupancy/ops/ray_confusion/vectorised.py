"""The counts of rays in vectorised torch: only rays that count go through the prediction."""

import torch
from torch import Tensor

from syntheocc.occupancy.ops.ray_confusion import RayRules
from syntheocc.occupancy.ops.ray_confusion.reference import count_rays
from syntheocc.occupancy.ops.raycast import voxel_rays
from syntheocc.occupancy.ops.raycast.vectorised import walk_rays

# Origins cast at a time: bounds the memory (a ray takes some 300 bytes on the way).
_ORIGINS = 8


def ray_confusion_torch(
    pred: Tensor, gt: Tensor, origins: Tensor, frames: Tensor, directions: Tensor, rules: RayRules
) -> Tensor:
    """See `syntheocc.occupancy.ops.ray_confusion.ray_confusion`."""
    counts = torch.zeros(rules.shape, dtype=torch.int64, device=pred.device)
    size = torch.tensor(rules.size, dtype=torch.float32)
    for first in range(0, len(origins), _ORIGINS):
        part = slice(first, first + _ORIGINS)
        start, unit = voxel_rays(origins[part][:, None], directions, rules.lower, (rules.size,) * 3, rounded=True)
        start, unit = start.reshape(-1, 3), unit.reshape(-1, 3)
        grids = frames[part].long().repeat_interleave(len(directions))
        far, at, _ = walk_rays(gt, rules.free, grids, start, unit)
        truth = gt.flatten(1)[grids, at]
        kept = (truth != rules.free).nonzero()[:, 0]
        grids = grids[kept]
        near, at, _ = walk_rays(pred, rules.free, grids, start[kept], unit[kept])
        guess = pred.flatten(1)[grids, at]
        counts += count_rays(guess, truth[kept], near.float() * size, far[kept].float() * size, rules)
    return counts
