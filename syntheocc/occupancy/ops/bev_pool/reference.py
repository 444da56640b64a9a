"""Lift-splat pooling as it is written down, a point at a time: what the fast paths are tested against."""

import torch
from torch import Tensor


def bev_pool_reference(depth: Tensor, context: Tensor, voxels: Tensor, num_voxels: int) -> Tensor:
    """See `syntheocc.occupancy.ops.bev_pool.bev_pool`."""
    images, bins, height, width = depth.shape
    rows: list[Tensor] = [context.new_zeros(context.shape[1]) for _ in range(num_voxels)]
    for n in range(images):
        for d in range(bins):
            for h in range(height):
                for w in range(width):
                    voxel = int(voxels[n, d, h, w])
                    if voxel >= 0:
                        rows[voxel] = rows[voxel] + depth[n, d, h, w] * context[n, :, h, w]
    return torch.stack(rows)
