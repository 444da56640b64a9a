"""Multi-scale, multi-view sampling in Triton: one launch forward, one backward.

A program owns a block of points of one frame and all channels of their groups. Channels are contiguous, so each corner
of each level is one read of a whole cache line (64 half-precision channels are 128 bytes), a frame's programs run
together, and its maps stay in the L2 cache. The result is written where the network's next layer wants it. The
backward pass reads the corners again (cheaper than keeping them) and adds to float32 feature gradients with atomics.

Everything is computed in float32 whatever the features' precision.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Points of a program and its warps; see benchmarks/sparseocc.py --tune.
FORWARD_CONFIG = (32, 4)
BACKWARD_CONFIG = (16, 4)


@triton.jit
def _points(locations_ptr, points, frame, block, num_points, views, POINTS: tl.constexpr):
    """Index, liveness, u, v and view of a block of points; what is not finite lies outside every image."""
    n = block * POINTS + tl.arange(0, POINTS)
    live = n < num_points
    at = locations_ptr + (frame * num_points + n) * 3
    u = tl.load(at, mask=live, other=-9.0).to(tl.float32)
    v = tl.load(at + 1, mask=live, other=-9.0).to(tl.float32)
    view = tl.load(at + 2, mask=live, other=0.0).to(tl.float32)
    view = tl.floor(tl.minimum(tl.maximum(tl.where(view == view, view, 0.0), 0.0), 1.0) * (views - 1) + 0.5)
    return n, live, u, v, view.to(tl.int32)


@triton.jit
def _corners(u, v, height, width):
    """Upper left corner, fractions and the four corners' liveness; a point that touches no pixel has none."""
    x, y = u * (width - 1), v * (height - 1)
    near = (x > -1) & (x < width) & (y > -1) & (y < height)  # false for NaN
    x, y = tl.where(near, x, 0.0), tl.where(near, y, 0.0)
    left, top = tl.floor(x), tl.floor(y)
    column, row = left.to(tl.int32), top.to(tl.int32)
    has_left, has_right = near & (column >= 0), near & (column + 1 < width)
    has_top, has_bottom = row >= 0, row + 1 < height
    return (
        column, row, x - left, y - top,
        has_left & has_top, has_right & has_top, has_left & has_bottom, has_right & has_bottom,
    )  # fmt: skip


@triton.jit
def _sample_level(
    maps, weights, level, frame, view, group, u, v, live, channel, height, width, views, total, SIZE: tl.constexpr
):  # fmt: skip
    """Weighted features [POINTS, CHANNELS] of one level, float32."""
    column, row, tx, ty, m00, m01, m10, m11 = _corners(u, v, height, width)
    share = tl.load(weights + level, mask=live, other=0.0).to(tl.float32)
    maps += frame * views * height * width * total
    at = ((view * height + row) * width + column) * total + group * SIZE
    at = at[:, None] + channel[None, :]
    real = (channel < SIZE)[None, :]
    f00 = tl.load(maps + at, mask=m00[:, None] & real, other=0.0).to(tl.float32)
    f01 = tl.load(maps + at + total, mask=m01[:, None] & real, other=0.0).to(tl.float32)
    at += width * total
    f10 = tl.load(maps + at, mask=m10[:, None] & real, other=0.0).to(tl.float32)
    f11 = tl.load(maps + at + total, mask=m11[:, None] & real, other=0.0).to(tl.float32)
    upper, lower = share * (1 - ty), share * ty
    return (
        (upper * (1 - tx))[:, None] * f00 + (upper * tx)[:, None] * f01
        + (lower * (1 - tx))[:, None] * f10 + (lower * tx)[:, None] * f11
    )  # fmt: skip


@triton.jit
def _forward_kernel(
    maps0, maps1, maps2, maps3, maps4, h0, w0, h1, w1, h2, w2, h3, w3, h4, w4,
    locations_ptr, weights_ptr, out_ptr, weights_batch, weights_frame,
    num_points, frames, views, groups, points, total,
    LEVELS: tl.constexpr, SIZE: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    block, frame = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, t = frame // frames, frame % frames
    n, live, u, v, view = _points(locations_ptr, points, frame, block, num_points, views, POINTS)
    group = (n // points) % groups
    channel = tl.arange(0, CHANNELS)
    shares = weights_ptr + b * weights_batch + t * weights_frame + n * LEVELS
    out = _sample_level(maps0, shares, 0, frame, view, group, u, v, live, channel, h0, w0, views, total, SIZE)
    if LEVELS > 1:
        out += _sample_level(maps1, shares, 1, frame, view, group, u, v, live, channel, h1, w1, views, total, SIZE)
    if LEVELS > 2:
        out += _sample_level(maps2, shares, 2, frame, view, group, u, v, live, channel, h2, w2, views, total, SIZE)
    if LEVELS > 3:
        out += _sample_level(maps3, shares, 3, frame, view, group, u, v, live, channel, h3, w3, views, total, SIZE)
    if LEVELS > 4:
        out += _sample_level(maps4, shares, 4, frame, view, group, u, v, live, channel, h4, w4, views, total, SIZE)
    # [B, Q * G, T, P, C]
    row = ((b * (num_points // points) + n // points) * frames + t) * points + n % points
    at = out_ptr + row[:, None] * SIZE + channel[None, :]
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=live[:, None] & (channel < SIZE)[None, :])


@triton.jit
def _level_gradients(
    maps, grad_maps, weights, grad_weights, grad_out, level, frame, view, group, u, v, live, channel,
    height, width, views, total, SIZE: tl.constexpr,
):  # fmt: skip
    """Adds one level's feature gradients, stores those of its weights and returns those of u and v."""
    column, row, tx, ty, m00, m01, m10, m11 = _corners(u, v, height, width)
    share = tl.load(weights + level, mask=live, other=0.0).to(tl.float32)
    image = frame * views * height * width * total
    maps += image
    grad_maps += image
    at = ((view * height + row) * width + column) * total + group * SIZE
    at = at[:, None] + channel[None, :]
    below = at + width * total
    real = (channel < SIZE)[None, :]
    m00, m01, m10, m11 = m00[:, None] & real, m01[:, None] & real, m10[:, None] & real, m11[:, None] & real
    # How much of the output's gradient each corner's features explain, [POINTS].
    d00 = tl.sum(grad_out * tl.load(maps + at, mask=m00, other=0.0).to(tl.float32), 1)
    d01 = tl.sum(grad_out * tl.load(maps + at + total, mask=m01, other=0.0).to(tl.float32), 1)
    d10 = tl.sum(grad_out * tl.load(maps + below, mask=m10, other=0.0).to(tl.float32), 1)
    d11 = tl.sum(grad_out * tl.load(maps + below + total, mask=m11, other=0.0).to(tl.float32), 1)
    upper, lower = share * (1 - ty), share * ty
    tl.atomic_add(grad_maps + at, (upper * (1 - tx))[:, None] * grad_out, mask=m00, sem="relaxed")
    tl.atomic_add(grad_maps + at + total, (upper * tx)[:, None] * grad_out, mask=m01, sem="relaxed")
    tl.atomic_add(grad_maps + below, (lower * (1 - tx))[:, None] * grad_out, mask=m10, sem="relaxed")
    tl.atomic_add(grad_maps + below + total, (lower * tx)[:, None] * grad_out, mask=m11, sem="relaxed")
    above = (1 - tx) * d00 + tx * d01
    under = (1 - tx) * d10 + tx * d11
    tl.store(grad_weights + level, (1 - ty) * above + ty * under, mask=live)
    grad_u = share * ((1 - ty) * (d01 - d00) + ty * (d11 - d10)) * (width - 1)
    return grad_u, share * (under - above) * (height - 1)


@triton.jit
def _backward_kernel(
    maps0, maps1, maps2, maps3, maps4, grad0, grad1, grad2, grad3, grad4,
    h0, w0, h1, w1, h2, w2, h3, w3, h4, w4,
    locations_ptr, weights_ptr, grad_out_ptr, grad_locations_ptr, grad_weights_ptr, weights_batch, weights_frame,
    num_points, frames, views, groups, points, total,
    LEVELS: tl.constexpr, SIZE: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    block, frame = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, t = frame // frames, frame % frames
    n, live, u, v, view = _points(locations_ptr, points, frame, block, num_points, views, POINTS)
    group = (n // points) % groups
    channel = tl.arange(0, CHANNELS)
    row = ((b * (num_points // points) + n // points) * frames + t) * points + n % points
    at = grad_out_ptr + row[:, None] * SIZE + channel[None, :]
    grad = tl.load(at, mask=live[:, None] & (channel < SIZE)[None, :], other=0.0).to(tl.float32)
    w = weights_ptr + b * weights_batch + t * weights_frame + n * LEVELS
    gw = grad_weights_ptr + (frame * num_points + n) * LEVELS
    grad_u, grad_v = _level_gradients(
        maps0, grad0, w, gw, grad, 0, frame, view, group, u, v, live, channel, h0, w0, views, total, SIZE
    )
    if LEVELS > 1:
        du, dv = _level_gradients(
            maps1, grad1, w, gw, grad, 1, frame, view, group, u, v, live, channel, h1, w1, views, total, SIZE
        )
        grad_u += du
        grad_v += dv
    if LEVELS > 2:
        du, dv = _level_gradients(
            maps2, grad2, w, gw, grad, 2, frame, view, group, u, v, live, channel, h2, w2, views, total, SIZE
        )
        grad_u += du
        grad_v += dv
    if LEVELS > 3:
        du, dv = _level_gradients(
            maps3, grad3, w, gw, grad, 3, frame, view, group, u, v, live, channel, h3, w3, views, total, SIZE
        )
        grad_u += du
        grad_v += dv
    if LEVELS > 4:
        du, dv = _level_gradients(
            maps4, grad4, w, gw, grad, 4, frame, view, group, u, v, live, channel, h4, w4, views, total, SIZE
        )
        grad_u += du
        grad_v += dv
    at = grad_locations_ptr + (frame * num_points + n) * 3
    tl.store(at, grad_u, mask=live)
    tl.store(at + 1, grad_v, mask=live)
    tl.store(at + 2, grad_u * 0, mask=live)


def launch_forward(
    features: list[Tensor], locations: Tensor, weights: Tensor, config: tuple[int, int] = FORWARD_CONFIG
) -> Tensor:
    """The forward pass without autograd; ``config`` is (points of a program, warps), for the tuner."""
    batch, frames, queries, groups, points, _ = locations.shape
    channels = features[0].shape[-1] // groups
    out = features[0].new_empty(batch, queries, groups, frames, points, channels)
    if out.numel():
        features, locations, weights = _laid_out(features, locations, weights)
        num_points = queries * groups * points
        _forward_kernel[(triton.cdiv(num_points, config[0]), batch * frames)](
            *_five(features), *_sizes(features), locations, weights, out, weights.stride(0), weights.stride(1),
            num_points, frames, features[0].shape[2], groups, points, features[0].shape[-1],
            LEVELS=len(features), SIZE=channels, POINTS=config[0], CHANNELS=triton.next_power_of_2(channels),
            num_warps=config[1],
        )  # fmt: skip
    return out


def launch_backward(
    grad_out: Tensor,
    features: list[Tensor],
    locations: Tensor,
    weights: Tensor,
    config: tuple[int, int] = BACKWARD_CONFIG,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients of features (float32), locations and weights (float32)."""
    batch, frames, queries, groups, points, _ = locations.shape
    channels = features[0].shape[-1] // groups
    grads = [torch.zeros(f.shape, dtype=torch.float32, device=f.device) for f in features]
    grad_locations = torch.empty(locations.shape, dtype=torch.float32, device=locations.device)
    grad_weights = torch.empty(weights.shape, dtype=torch.float32, device=weights.device)
    if grad_out.numel():
        features, locations, weights = _laid_out(features, locations, weights)
        num_points = queries * groups * points
        _backward_kernel[(triton.cdiv(num_points, config[0]), batch * frames)](
            *_five(features), *_five(grads), *_sizes(features), locations, weights, grad_out.contiguous(),
            grad_locations, grad_weights, weights.stride(0), weights.stride(1),
            num_points, frames, features[0].shape[2], groups, points, features[0].shape[-1],
            LEVELS=len(features), SIZE=channels, POINTS=config[0], CHANNELS=triton.next_power_of_2(channels),
            num_warps=config[1],
        )  # fmt: skip
    return grads, grad_locations, grad_weights


def _laid_out(features: list[Tensor], locations: Tensor, weights: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """What the kernels index: everything contiguous, but samples and frames may share weights."""
    for level in features:
        if level[0, 0].numel() >= 2**31:
            raise ValueError(f"a map of {level[0, 0].numel()} values a frame is beyond the kernel's 32-bit indices")
    if not weights[0, 0].is_contiguous():
        weights = weights.contiguous()
    return [level.contiguous() for level in features], locations.contiguous(), weights


def _five(tensors: list[Tensor]) -> list[Tensor]:
    return [*tensors, *[tensors[0]] * (5 - len(tensors))]  # any pointer will do where there is no level


def _sizes(features: list[Tensor]) -> list[int]:
    return [size for level in _five(features) for size in level.shape[3:5]]


# Operators of their own: torch.compile takes them as they are, and knows their gradients.
@torch.library.custom_op(
    "syntheocc::msmv_sampling",
    mutates_args=(),
    schema="(Tensor[] features, Tensor locations, Tensor weights) -> Tensor",
)
def msmv_sampling_triton(features: list[Tensor], locations: Tensor, weights: Tensor) -> Tensor:
    """See `syntheocc.occupancy.ops.msmv_sampling.msmv_sampling`."""
    return launch_forward(features, locations, weights)


@torch.library.custom_op(
    "syntheocc::msmv_sampling_backward",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor[] features, Tensor locations, Tensor weights) -> (Tensor[], Tensor, Tensor)",
)
def _msmv_sampling_backward(
    grad_out: Tensor, features: list[Tensor], locations: Tensor, weights: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    grads, grad_locations, grad_weights = launch_backward(grad_out, features, locations, weights)
    grads = [grad.to(level.dtype) for grad, level in zip(grads, features, strict=True)]
    return grads, grad_locations.to(locations.dtype), grad_weights.to(weights.dtype)


@msmv_sampling_triton.register_fake
def _(features: list[Tensor], locations: Tensor, weights: Tensor) -> Tensor:
    batch, frames, queries, groups, points, _ = locations.shape
    return features[0].new_empty(batch, queries, groups, frames, points, features[0].shape[-1] // groups)


@_msmv_sampling_backward.register_fake
def _(
    grad_out: Tensor, features: list[Tensor], locations: Tensor, weights: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    return (
        [level.new_empty(level.shape) for level in features],
        locations.new_empty(locations.shape),
        weights.new_empty(weights.shape),
    )


def _setup_context(ctx, inputs, output) -> None:
    features, locations, weights = inputs
    ctx.levels = len(features)
    ctx.save_for_backward(*features, locations, weights)


def _backward(ctx, grad_out: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    *features, locations, weights = ctx.saved_tensors
    return _msmv_sampling_backward(grad_out, features, locations, weights)


msmv_sampling_triton.register_autograd(_backward, setup_context=_setup_context)
