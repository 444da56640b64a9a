"""GroupNorm (+ shift, + SiLU) for channels-last tensors: x is read twice and written once, in its own layout.

torch's CUDA GroupNorm wants NCHW, so every norm of a channels-last network transposes there and back; that made
eager channels-last slower than NCHW although its convolutions are faster. Three launches: mean and squared
deviations of each tile of rows and channel, their merge to groups (Chan, Golub, LeVeque 1979: no cancellation
however large the mean), and the normalisation. Everything is accumulated in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from syntheocc.models.ops.launch import cdiv, next_power_of_2

# Rows of pixels in a tile; with 64 channels a tile is 8192 values, 64 registers a thread at 128 threads.
BLOCK_ROWS = 128
BLOCK_CHANNELS = 64


@triton.jit
def _tile_statistics(
    x_ptr, shift_ptr, mean_ptr, m2_ptr, rows, channels, tiles,
    HAS_SHIFT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of BLOCK_R rows, for every channel of a channel block."""
    n, tile, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    r = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (r < rows)[:, None] & (c < channels)[None, :]
    x = tl.load(x_ptr + (n * rows + r[:, None]) * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        x += tl.load(shift_ptr + n * channels + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    count = tl.minimum(rows - tile * BLOCK_R, BLOCK_R).to(tl.float32)
    mean = tl.sum(tl.where(mask, x, 0.0), axis=0) / count
    deviation = tl.where(mask, x - mean[None, :], 0.0)
    out = (n * tiles + tile) * channels + c
    tl.store(mean_ptr + out, mean, mask=c < channels)
    tl.store(m2_ptr + out, tl.sum(deviation * deviation, axis=0), mask=c < channels)


@triton.jit
def _merge_statistics(
    mean_ptr, m2_ptr, group_mean_ptr, group_rstd_ptr, rows, channels, tiles, eps,
    GROUPS: tl.constexpr, PER_GROUP: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Mean and reciprocal standard deviation of one group, merged from its tiles."""
    n, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    j = tl.arange(0, BLOCK_G)
    t = tl.arange(0, BLOCK_T)
    base = n * tiles * channels + group * PER_GROUP
    total = tl.zeros([BLOCK_T, BLOCK_G], dtype=tl.float32)
    for start in range(0, tiles, BLOCK_T):
        tile = start + t
        mask = (tile < tiles)[:, None] & (j < PER_GROUP)[None, :]
        weight = tl.minimum(rows - tile * BLOCK_R, BLOCK_R).to(tl.float32)[:, None]
        mean = tl.load(mean_ptr + base + tile[:, None] * channels + j[None, :], mask=mask, other=0.0)
        total += tl.where(mask, mean * weight, 0.0)
    count = rows * PER_GROUP
    group_mean = tl.sum(tl.sum(total, axis=1), axis=0) / count
    total = tl.zeros([BLOCK_T, BLOCK_G], dtype=tl.float32)
    for start in range(0, tiles, BLOCK_T):
        tile = start + t
        mask = (tile < tiles)[:, None] & (j < PER_GROUP)[None, :]
        weight = tl.minimum(rows - tile * BLOCK_R, BLOCK_R).to(tl.float32)[:, None]
        at = base + tile[:, None] * channels + j[None, :]
        mean = tl.load(mean_ptr + at, mask=mask, other=0.0)
        m2 = tl.load(m2_ptr + at, mask=mask, other=0.0)
        between = (mean - group_mean) * (mean - group_mean) * weight
        total += tl.where(mask, m2 + between, 0.0)
    variance = tl.sum(tl.sum(total, axis=1), axis=0) / count
    tl.store(group_mean_ptr + n * GROUPS + group, group_mean)
    tl.store(group_rstd_ptr + n * GROUPS + group, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def _normalise(
    x_ptr, shift_ptr, out_ptr, weight_ptr, bias_ptr, group_mean_ptr, group_rstd_ptr, rows, channels,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, GROUPS: tl.constexpr, PER_GROUP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, tile, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    r = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    real = c < channels
    group = n * GROUPS + c // PER_GROUP
    mean = tl.load(group_mean_ptr + group, mask=real, other=0.0)
    scale = tl.load(group_rstd_ptr + group, mask=real, other=0.0)
    scale *= tl.load(weight_ptr + c, mask=real, other=0.0).to(tl.float32)
    offset = tl.load(bias_ptr + c, mask=real, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        mean -= tl.load(shift_ptr + n * channels + c, mask=real, other=0.0).to(tl.float32)
    at = (n * rows + r[:, None]) * channels + c[None, :]
    mask = (r < rows)[:, None] & real[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    y = (x - mean[None, :]) * scale[None, :] + offset[None, :]
    if SILU:
        y = y * tl.sigmoid(y)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


def group_norm(
    x: Tensor,  # [N, C, H, W], channels-last
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    shift: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """`reference.group_norm` without gradients for a channels-last tensor; the result is channels-last."""
    return group_norm_with_statistics(x, num_groups, weight, bias, eps, shift, silu)[0]


def group_norm_with_statistics(
    x: Tensor,  # [N, C, H, W], channels-last
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    shift: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and mean and reciprocal standard deviation of every group, float32 [N, num_groups]."""
    n, channels, height, width = x.shape
    rows = height * width
    tiles, blocks = cdiv(rows, BLOCK_ROWS), cdiv(channels, BLOCK_CHANNELS)
    per_group = channels // num_groups
    out = torch.empty_like(x, memory_format=torch.channels_last)
    mean = torch.empty(n, tiles, channels, device=x.device, dtype=torch.float32)
    m2 = torch.empty_like(mean)
    group_mean = torch.empty(n, num_groups, device=x.device, dtype=torch.float32)
    group_rstd = torch.empty_like(group_mean)
    shift_ = x if shift is None else shift.contiguous()  # any pointer will do when HAS_SHIFT is false
    _tile_statistics[(n, tiles, blocks)](
        x, shift_, mean, m2, rows, channels, tiles,
        HAS_SHIFT=shift is not None, BLOCK_R=BLOCK_ROWS, BLOCK_C=BLOCK_CHANNELS,
    )  # fmt: skip
    _merge_statistics[(n, num_groups)](
        mean, m2, group_mean, group_rstd, rows, channels, tiles, eps,
        GROUPS=num_groups, PER_GROUP=per_group, BLOCK_G=next_power_of_2(per_group), BLOCK_T=64,
        BLOCK_R=BLOCK_ROWS,
    )  # fmt: skip
    _normalise[(n, tiles, blocks)](
        x, shift_, out, weight, bias, group_mean, group_rstd, rows, channels,
        HAS_SHIFT=shift is not None, SILU=silu, GROUPS=num_groups, PER_GROUP=per_group,
        BLOCK_R=BLOCK_ROWS, BLOCK_C=BLOCK_CHANNELS,
    )  # fmt: skip
    return out, group_mean, group_rstd
