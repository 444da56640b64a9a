"""Lift-splat pooling by index-add over chunks of depth bins, with a backward pass of its own: any device.

Autograd through the chunks would keep every lifted chunk; both gradients follow from the inputs alone,

    d depth[n, d, h, w] = <grad_out[voxel], context[n, :, h, w]>,   d context = sum over d of depth * grad_out[voxel].
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Lifted rows of a chunk: at 32 channels 256k rows are 34 MB in float32, within a CPU's or a GPU's cache hierarchy.
CHUNK_ROWS = 1 << 18


class _BevPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, depth: Tensor, context: Tensor, voxels: Tensor, num_voxels: int) -> Tensor:
        ctx.save_for_backward(depth, context, voxels)
        rows = _rows(context)
        # One voxel more than there are takes what lies in none.
        out = rows.new_zeros(num_voxels + 1, rows.shape[-1])
        for part in _chunks(depth):
            weights = _flat(depth[:, part]).to(rows.dtype)  # [N, k, P]
            lifted = weights[..., None] * rows[:, None]
            out.index_add_(0, _numbers(voxels[:, part], num_voxels).reshape(-1), lifted.flatten(0, -2))
        return out[:num_voxels].to(context.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        depth, context, voxels = ctx.saved_tensors
        rows = _rows(context)
        grad_out = torch.cat([grad_out.to(rows.dtype), rows.new_zeros(1, rows.shape[-1])])
        grad_depth, grad_rows = torch.empty_like(depth), torch.zeros_like(rows)
        for part in _chunks(depth):
            found = grad_out[_numbers(voxels[:, part], len(grad_out) - 1)]  # [N, k, P, C]
            weights = _flat(depth[:, part]).to(rows.dtype)
            grad_depth[:, part] = (found * rows[:, None]).sum(-1).view_as(depth[:, part]).to(depth.dtype)
            grad_rows += (found * weights[..., None]).sum(1)
        return grad_depth, grad_rows.transpose(1, 2).reshape(context.shape).to(context.dtype), None, None


def bev_pool_torch(depth: Tensor, context: Tensor, voxels: Tensor, num_voxels: int) -> Tensor:
    """See `syntheocc.occupancy.ops.bev_pool.bev_pool`."""
    return _BevPool.apply(depth, context, voxels, num_voxels)


def _rows(context: Tensor) -> Tensor:
    """Features channels last, at least in float32: [N, P, C]."""
    dtype = torch.float64 if context.dtype == torch.float64 else torch.float32
    return context.flatten(2).transpose(1, 2).to(dtype).contiguous()


def _flat(values: Tensor) -> Tensor:
    return values.reshape(*values.shape[:2], -1)


def _numbers(voxels: Tensor, nowhere: int) -> Tensor:
    return torch.where(voxels < 0, nowhere, voxels).reshape(*voxels.shape[:2], -1)


def _chunks(depth: Tensor) -> list[slice]:
    images, bins, height, width = depth.shape
    size = max(1, CHUNK_ROWS // max(1, images * height * width))
    return [slice(start, start + size) for start in range(0, bins, size)]
