"""Lift-splat pooling in Triton: one launch forward, one backward.

A program owns a block of pixels of one image with all their channels and walks through a share of the depth bins: the
features are read once a program. Forward, each point adds to its voxel with atomics (a pixel's bins lie in different
voxels, so programs seldom meet). Backward needs none for the depth; the features' gradient is added once a program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Pixels of a program, and depth bins that it walks through.
PIXELS, BINS = 16, 16


@triton.jit
def _forward_kernel(
    depth_ptr, context_ptr, voxels_ptr, out_ptr, bins, pixels, channels,
    PIXELS: tl.constexpr, BINS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, CHANNELS)
    live = pixel < pixels
    real = live[:, None] & (channel < channels)[None, :]
    rows = context_ptr + (n * pixels + pixel)[:, None] * channels + channel[None, :]
    features = tl.load(rows, mask=real, other=0.0).to(tl.float32)
    for k in range(BINS):
        d = tl.program_id(2) * BINS + k
        at = (n * bins + d) * pixels + pixel
        here = live & (d < bins)
        weight = tl.load(depth_ptr + at, mask=here, other=0.0).to(tl.float32)
        voxel = tl.load(voxels_ptr + at, mask=here, other=-1).to(tl.int64)
        keep = real & (voxel >= 0)[:, None]
        to = out_ptr + voxel[:, None] * channels + channel[None, :]
        tl.atomic_add(to, weight[:, None] * features, mask=keep, sem="relaxed")


@triton.jit
def _backward_kernel(
    depth_ptr, context_ptr, voxels_ptr, grad_out_ptr, grad_depth_ptr, grad_context_ptr, bins, pixels, channels,
    PIXELS: tl.constexpr, BINS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, CHANNELS)
    live = pixel < pixels
    real = live[:, None] & (channel < channels)[None, :]
    place = (n * pixels + pixel)[:, None] * channels + channel[None, :]
    features = tl.load(context_ptr + place, mask=real, other=0.0).to(tl.float32)
    total = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    for k in range(BINS):
        d = tl.program_id(2) * BINS + k
        at = (n * bins + d) * pixels + pixel
        here = live & (d < bins)
        weight = tl.load(depth_ptr + at, mask=here, other=0.0).to(tl.float32)
        voxel = tl.load(voxels_ptr + at, mask=here, other=-1).to(tl.int64)
        keep = real & (voxel >= 0)[:, None]
        grad = tl.load(grad_out_ptr + voxel[:, None] * channels + channel[None, :], mask=keep, other=0.0)
        grad = grad.to(tl.float32)
        tl.store(grad_depth_ptr + at, tl.sum(grad * features, 1), mask=here)
        total += weight[:, None] * grad
    tl.atomic_add(grad_context_ptr + place, total, mask=real, sem="relaxed")


class _BevPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, depth, context, voxels, num_voxels):
        depth, voxels = depth.contiguous(), voxels.contiguous()
        rows = context.flatten(2).transpose(1, 2).contiguous()  # [N, P, C]
        out = torch.zeros(num_voxels, rows.shape[-1], device=rows.device)
        if depth.numel():
            _forward_kernel[_grid(depth)](
                depth, rows, voxels, out, *_sizes(depth, rows),
                PIXELS=PIXELS, BINS=BINS, CHANNELS=triton.next_power_of_2(rows.shape[-1]),
            )  # fmt: skip
        ctx.save_for_backward(depth, rows, voxels)
        ctx.context_shape = context.shape
        return out.to(context.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        depth, rows, voxels = ctx.saved_tensors
        grad_depth = torch.empty(depth.shape, device=depth.device)
        grad_rows = torch.zeros(rows.shape, device=rows.device)
        if depth.numel():
            _backward_kernel[_grid(depth)](
                depth, rows, voxels, grad_out.contiguous(), grad_depth, grad_rows, *_sizes(depth, rows),
                PIXELS=PIXELS, BINS=BINS, CHANNELS=triton.next_power_of_2(rows.shape[-1]),
            )  # fmt: skip
        grad_context = grad_rows.transpose(1, 2).reshape(ctx.context_shape)
        return grad_depth.to(depth.dtype), grad_context.to(rows.dtype), None, None


def bev_pool_triton(depth: Tensor, context: Tensor, voxels: Tensor, num_voxels: int) -> Tensor:
    """See `syntheocc.occupancy.ops.bev_pool.bev_pool`; computed in float32 whatever the inputs' precision.

    Raises:
        ValueError: float64 inputs.
    """
    if depth.dtype == torch.float64:
        raise ValueError("the Triton kernel computes in float32; take backend 'torch' for float64")
    return _BevPool.apply(depth, context, voxels, num_voxels)


def _grid(depth: Tensor) -> tuple[int, int, int]:
    images, bins, height, width = depth.shape
    return triton.cdiv(height * width, PIXELS), images, triton.cdiv(bins, BINS)


def _sizes(depth: Tensor, rows: Tensor) -> tuple[int, int, int]:
    return depth.shape[1], rows.shape[1], rows.shape[2]
