"""Residual sum and LayerNorm with gradients: the sum and two numbers a row are kept for the backward.

The gradient that reaches the sum by other ways (the residual stream) is added in the same pass.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from syntheocc.models.ops.add_layer_norm.triton import TILE, add_layer_norm_with_statistics
from syntheocc.models.ops.launch import cdiv, next_power_of_2

# Rows and channels of a tile of the parameters' gradients.
BLOCK_ROWS = 128
BLOCK_CHANNELS = 64


@triton.jit
def _input_gradient(
    total_ptr, grad_ptr, passed_ptr, weight_ptr, mean_ptr, rstd_ptr, out_ptr, rows, channels,
    HAS_PASSED: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    mask = (r < rows)[:, None] & (c < channels)[None, :]
    at = r[:, None] * channels + c[None, :]
    mean = tl.load(mean_ptr + r, mask=r < rows, other=0.0)
    rstd = tl.load(rstd_ptr + r, mask=r < rows, other=0.0)
    weight = tl.load(weight_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    total = tl.load(total_ptr + at, mask=mask, other=0.0).to(tl.float32)
    xhat = tl.where(mask, (total - mean[:, None]) * rstd[:, None], 0.0)
    grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32) * weight[None, :]
    mean_grad = tl.sum(grad, axis=1) / channels
    mean_product = tl.sum(grad * xhat, axis=1) / channels
    out = (grad - mean_grad[:, None] - xhat * mean_product[:, None]) * rstd[:, None]
    if HAS_PASSED:
        out += tl.load(passed_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _parameter_sums(
    total_ptr, grad_ptr, mean_ptr, rstd_ptr, weight_sum_ptr, bias_sum_ptr, rows, channels,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of weight and bias from BLOCK_R rows, for every channel of a channel block."""
    tile = tl.program_id(0).to(tl.int64)
    r = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (r < rows)[:, None] & (c < channels)[None, :]
    at = r[:, None] * channels + c[None, :]
    mean = tl.load(mean_ptr + r, mask=r < rows, other=0.0)
    rstd = tl.load(rstd_ptr + r, mask=r < rows, other=0.0)
    xhat = (tl.load(total_ptr + at, mask=mask, other=0.0).to(tl.float32) - mean[:, None]) * rstd[:, None]
    grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(weight_sum_ptr + tile * channels + c, tl.sum(grad * xhat, axis=0), mask=c < channels)
    tl.store(bias_sum_ptr + tile * channels + c, tl.sum(grad, axis=0), mask=c < channels)


class AddLayerNorm(torch.autograd.Function):
    """`reference.add_layer_norm` of contiguous tensors on a GPU; arguments as there, the residual not None."""

    @staticmethod
    def forward(ctx, x, residual, weight, bias, eps):
        """The sum and the normed sum, [..., C]."""
        total, out, mean, rstd = add_layer_norm_with_statistics(x, residual, weight, bias, eps)
        ctx.save_for_backward(total, weight, mean, rstd)
        ctx.bias_dtype = bias.dtype
        ctx.set_materialize_grads(False)
        return total, out

    @staticmethod
    @once_differentiable
    def backward(ctx, passed: Tensor | None, grad: Tensor | None):
        """Gradients of x, residual (the same), weight and bias."""
        if grad is None:
            return passed, passed, None, None, None
        dx, dweight, dbias = _backward(ctx, passed, grad, *ctx.needs_input_grad[2:4])
        return dx, dx, dweight, dbias, None


class LayerNorm(torch.autograd.Function):
    """LayerNorm over the last axis of a contiguous tensor on a GPU."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        """The normed x, [..., C]."""
        _, out, mean, rstd = add_layer_norm_with_statistics(x, None, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.bias_dtype = bias.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Gradients of x, weight and bias."""
        return *_backward(ctx, None, grad, *ctx.needs_input_grad[1:3]), None


def _backward(
    ctx, passed: Tensor | None, grad: Tensor, want_weight: bool, want_bias: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    total, weight, mean, rstd = ctx.saved_tensors
    grad = grad.contiguous()
    passed = None if passed is None else passed.contiguous()
    channels = total.shape[-1]
    rows = total.numel() // channels
    block = next_power_of_2(channels)
    rows_a_program = max(1, TILE // block)
    dx = torch.empty_like(total)
    _input_gradient[(cdiv(rows, rows_a_program),)](
        total, grad, grad if passed is None else passed, weight, mean, rstd, dx, rows, channels,
        HAS_PASSED=passed is not None, ROWS=rows_a_program, BLOCK_C=block,
    )  # fmt: skip
    if not (want_weight or want_bias):
        return dx, None, None
    tiles = cdiv(rows, BLOCK_ROWS)
    sums = torch.empty(2, tiles, channels, device=total.device, dtype=torch.float32)
    _parameter_sums[(tiles, cdiv(channels, BLOCK_CHANNELS))](
        total, grad, mean, rstd, sums[0], sums[1], rows, channels, BLOCK_R=BLOCK_ROWS, BLOCK_C=BLOCK_CHANNELS
    )
    dweight, dbias = sums.sum(1)
    return dx, dweight.to(weight.dtype), dbias.to(ctx.bias_dtype)
