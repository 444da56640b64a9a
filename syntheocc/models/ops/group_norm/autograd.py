"""GroupNorm (+ shift, + SiLU) with gradients: only x and two numbers a group are kept for the backward.

With g = dy silu'(z) w and n the values of a group, dx = rstd (g - sum(g)/n - xhat sum(g xhat)/n). Two passes over x
and dy: sums of a tile's rows for every channel (which are the gradients of weight and bias too), merged to groups;
then dx. torch keeps the shifted input and the norm's output as well, and wants NCHW.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from syntheocc.models.ops.group_norm.triton import BLOCK_CHANNELS, BLOCK_ROWS, group_norm_with_statistics
from syntheocc.models.ops.launch import cdiv, next_power_of_2


@triton.jit
def _normed_and_gradient(
    x_ptr, shift_ptr, grad_ptr, weight_ptr, bias_ptr, group_mean_ptr, group_rstd_ptr, n, r, c, rows, channels,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, GROUPS: tl.constexpr, PER_GROUP: tl.constexpr,
):  # fmt: skip
    """A tile's xhat, its gradient before the SiLU (0 outside), the weights and the groups' rstd."""
    real = c < channels
    group = n * GROUPS + c // PER_GROUP
    mean = tl.load(group_mean_ptr + group, mask=real, other=0.0)
    rstd = tl.load(group_rstd_ptr + group, mask=real, other=0.0)
    weight = tl.load(weight_ptr + c, mask=real, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        mean -= tl.load(shift_ptr + n * channels + c, mask=real, other=0.0).to(tl.float32)
    mask = (r < rows)[:, None] & real[None, :]
    at = (n * rows + r[:, None]) * channels + c[None, :]
    xhat = (tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32) - mean[None, :]) * rstd[None, :]
    grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        bias = tl.load(bias_ptr + c, mask=real, other=0.0).to(tl.float32)
        z = xhat * weight[None, :] + bias[None, :]
        s = tl.sigmoid(z)
        grad *= s * (1.0 + z * (1.0 - s))
    return xhat, grad, weight, rstd, at, mask


@triton.jit
def _tile_sums(
    x_ptr, shift_ptr, grad_ptr, weight_ptr, bias_ptr, group_mean_ptr, group_rstd_ptr, sum_ptr, product_ptr,
    rows, channels, tiles,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, GROUPS: tl.constexpr, PER_GROUP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient and of gradient times xhat over BLOCK_R rows, for every channel of a channel block."""
    n, tile, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    r = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    xhat, grad, _, _, _, _ = _normed_and_gradient(
        x_ptr, shift_ptr, grad_ptr, weight_ptr, bias_ptr, group_mean_ptr, group_rstd_ptr, n, r, c, rows, channels,
        HAS_SHIFT, SILU, GROUPS, PER_GROUP,
    )  # fmt: skip
    out = (n * tiles + tile) * channels + c
    tl.store(sum_ptr + out, tl.sum(grad, axis=0), mask=c < channels)
    tl.store(product_ptr + out, tl.sum(grad * xhat, axis=0), mask=c < channels)


@triton.jit
def _group_means(
    sum_ptr, product_ptr, weight_ptr, mean_grad_ptr, mean_product_ptr, rows, channels, tiles,
    GROUPS: tl.constexpr, PER_GROUP: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Means over a group of the weighted gradient, and of it times xhat."""
    n, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    j = tl.arange(0, BLOCK_G)
    t = tl.arange(0, BLOCK_T)
    weight = tl.load(weight_ptr + group * PER_GROUP + j, mask=j < PER_GROUP, other=0.0).to(tl.float32)
    base = n * tiles * channels + group * PER_GROUP
    grads = tl.zeros([BLOCK_T, BLOCK_G], dtype=tl.float32)
    products = tl.zeros([BLOCK_T, BLOCK_G], dtype=tl.float32)
    for start in range(0, tiles, BLOCK_T):
        mask = ((start + t) < tiles)[:, None] & (j < PER_GROUP)[None, :]
        at = base + (start + t)[:, None] * channels + j[None, :]
        grads += tl.load(sum_ptr + at, mask=mask, other=0.0)
        products += tl.load(product_ptr + at, mask=mask, other=0.0)
    count = rows * PER_GROUP
    mean_grad = tl.sum(tl.sum(grads * weight[None, :], axis=1), axis=0) / count
    mean_product = tl.sum(tl.sum(products * weight[None, :], axis=1), axis=0) / count
    tl.store(mean_grad_ptr + n * GROUPS + group, mean_grad)
    tl.store(mean_product_ptr + n * GROUPS + group, mean_product)


@triton.jit
def _input_gradient(
    x_ptr, shift_ptr, grad_ptr, weight_ptr, bias_ptr, group_mean_ptr, group_rstd_ptr, mean_grad_ptr, mean_product_ptr,
    out_ptr, rows, channels,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, GROUPS: tl.constexpr, PER_GROUP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, tile, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    r = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    xhat, grad, weight, rstd, at, mask = _normed_and_gradient(
        x_ptr, shift_ptr, grad_ptr, weight_ptr, bias_ptr, group_mean_ptr, group_rstd_ptr, n, r, c, rows, channels,
        HAS_SHIFT, SILU, GROUPS, PER_GROUP,
    )  # fmt: skip
    group = n * GROUPS + c // PER_GROUP
    mean_grad = tl.load(mean_grad_ptr + group, mask=c < channels, other=0.0)
    mean_product = tl.load(mean_product_ptr + group, mask=c < channels, other=0.0)
    out = (grad * weight[None, :] - mean_grad[None, :] - xhat * mean_product[None, :]) * rstd[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


class GroupNorm(torch.autograd.Function):
    """`reference.group_norm` of a channels-last tensor on a GPU; arguments as there."""

    @staticmethod
    def forward(ctx, x, num_groups, weight, bias, eps, shift, silu):
        """`[N, C, H, W]`, channels-last."""
        out, mean, rstd = group_norm_with_statistics(x, num_groups, weight, bias, eps, shift, silu)
        ctx.save_for_backward(x, weight, bias, mean, rstd, shift)
        ctx.num_groups, ctx.silu = num_groups, silu
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Gradients of x, weight, bias and shift, where they are wanted."""
        x, weight, bias, mean, rstd, shift = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        n, channels, height, width = x.shape
        rows = height * width
        per_group = channels // ctx.num_groups
        tiles, blocks = cdiv(rows, BLOCK_ROWS), cdiv(channels, BLOCK_CHANNELS)
        sums = torch.empty(2, n, tiles, channels, device=x.device, dtype=torch.float32)
        means = torch.empty(2, n, ctx.num_groups, device=x.device, dtype=torch.float32)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        inputs = (x, x if shift is None else shift.contiguous(), grad, weight, bias, mean, rstd)
        sizes = {"GROUPS": ctx.num_groups, "PER_GROUP": per_group}
        shape = {"BLOCK_R": BLOCK_ROWS, "BLOCK_C": BLOCK_CHANNELS, "HAS_SHIFT": shift is not None, "SILU": ctx.silu}
        shape["num_warps"] = 8  # two tensors of a tile are held at once
        _tile_sums[(n, tiles, blocks)](*inputs, sums[0], sums[1], rows, channels, tiles, **sizes, **shape)
        _group_means[(n, ctx.num_groups)](
            sums[0], sums[1], weight, means[0], means[1], rows, channels, tiles,
            BLOCK_G=next_power_of_2(per_group), BLOCK_T=64, **sizes,
        )  # fmt: skip
        _input_gradient[(n, tiles, blocks)](*inputs, means[0], means[1], dx, rows, channels, **sizes, **shape)
        _, _, want_weight, want_bias, _, want_shift, _ = ctx.needs_input_grad
        dweight = dbias = None
        if want_weight or want_bias:
            totals = sums.sum((1, 2))
            dweight, dbias = totals[1].to(weight.dtype), totals[0].to(bias.dtype)
        return (
            dx,
            None,
            dweight,
            dbias,
            None,
            dx.sum((2, 3), dtype=torch.float32).to(shift.dtype) if want_shift else None,
            None,
        )
