"""Rays through a volume in Triton: one launch forward, one backward, and nothing kept of the samples.

A program owns a ray and walks along it in steps of a few samples, carrying the optical depth. The backward pass walks
the same way once more. What a sample's optical depth x_i changes in L = sum_j weight_j g_j, g_j being the gradient of
weight j, is ``e^-(x_0 + .. + x_i) g_i - sum_(j > i) weight_j g_j``, and the sum behind i is L, which the results and
their gradients give at once, less the sum so far. Behind less than e^-18 of a ray nothing is read any more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from syntheocc.occupancy.ops.volume_rays import ALMOST, RaySamples
from syntheocc.occupancy.ops.volume_render.triton import _corner, _sample

# Samples of a step and warps of a program; see benchmarks/rendering.py --tune.
FORWARD_CONFIG = (16, 2)
BACKWARD_CONFIG = (16, 2)


@triton.jit
def _walk(
    density, coordinates, lengths, middles, ray, first, samples, carried, size_x, size_y, size_z, opacity_size,
    limit, almost, SAMPLES: tl.constexpr, NEAREST: tl.constexpr, CORNERS: tl.constexpr,
):  # fmt: skip
    """Samples of a step with their values, optical depths before and after them, and weights."""
    place, real, near, x, y, z, length = _sample(
        coordinates, lengths, ray, first, samples, size_x, size_y, size_z, SAMPLES
    )
    middle = tl.load(middles + place, mask=real, other=0.0)
    value = tl.zeros([SAMPLES], dtype=tl.float32)
    for corner in tl.static_range(CORNERS):
        flat, share, inside = _corner(x, y, z, near, size_x, size_y, size_z, corner, NEAREST)
        value += share * tl.load(density + flat, mask=inside, other=0.0)
    held = tl.minimum(tl.maximum(value, 0.0), almost)
    metric = tl.where(opacity_size > 0, -tl.log(1 - held) / tl.maximum(opacity_size, 1e-9), value)
    optical = metric * length
    after = carried + tl.cumsum(optical, 0)
    before = after - optical
    # 1 - e^-x loses its digits where x is small.
    small = optical * (1 - optical * (0.5 - optical / 6))
    weight = tl.exp(-before) * tl.where(tl.abs(optical) < 0.01, small, 1 - tl.exp(-optical))
    alive = near & (before < 18.0)
    front = tl.where(middle < limit, 1.0, 0.0)
    return real, near, alive, x, y, z, length, middle, front, value, before, optical, weight


@triton.jit
def _forward_kernel(
    density, semantics, coordinates, lengths, middles, limits, stops, classes, samples, size_x, size_y, size_z,
    opacity_size, almost, C: tl.constexpr, CHANNELS: tl.constexpr, SAMPLES: tl.constexpr, NEAREST: tl.constexpr,
    CORNERS: tl.constexpr,
):  # fmt: skip
    ray = tl.program_id(0).to(tl.int64)
    limit = tl.load(limits + ray)
    channel = tl.arange(0, CHANNELS)
    real_channel = channel < C
    total = tl.zeros([CHANNELS], dtype=tl.float32)
    carried, stopped, depth, mass = 0.0, 0.0, 0.0, 0.0
    first = 0
    while first < samples:
        real, near, alive, x, y, z, length, middle, front, value, before, optical, weight = _walk(
            density, coordinates, lengths, middles, ray, first, samples, carried, size_x, size_y, size_z,
            opacity_size, limit, almost, SAMPLES, NEAREST, CORNERS,
        )  # fmt: skip
        alive = alive & (weight != 0)
        for corner in tl.static_range(CORNERS):
            flat, share, inside = _corner(x, y, z, alive, size_x, size_y, size_z, corner, NEAREST)
            at = flat[:, None] * C + channel[None, :]
            found = tl.load(semantics + at, mask=inside[:, None] & real_channel[None, :], other=0.0)
            total += tl.sum((weight * share)[:, None] * found, 0)
        stopped += tl.sum(weight, 0)
        depth += tl.sum(weight * middle, 0)
        mass += tl.sum(weight * front, 0)
        carried += tl.sum(optical, 0)
        first += SAMPLES
    tl.store(stops + ray * 3, stopped)
    tl.store(stops + ray * 3 + 1, depth)
    tl.store(stops + ray * 3 + 2, mass)
    tl.store(classes + ray * C + channel, total, mask=real_channel)


@triton.jit
def _backward_kernel(
    density, semantics, coordinates, lengths, middles, limits, stops, classes, grad_stops, grad_classes, grad_density,
    grad_semantics, samples, size_x, size_y, size_z, opacity_size, almost,
    C: tl.constexpr, CHANNELS: tl.constexpr, SAMPLES: tl.constexpr, NEAREST: tl.constexpr, CORNERS: tl.constexpr,
):  # fmt: skip
    ray = tl.program_id(0).to(tl.int64)
    limit = tl.load(limits + ray)
    channel = tl.arange(0, CHANNELS)
    real_channel = channel < C
    grad = tl.load(grad_classes + ray * C + channel, mask=real_channel, other=0.0)
    mine = tl.load(classes + ray * C + channel, mask=real_channel, other=0.0)
    by_stop = tl.load(grad_stops + ray * 3)
    by_depth = tl.load(grad_stops + ray * 3 + 1)
    by_mass = tl.load(grad_stops + ray * 3 + 2)
    behind = tl.sum(grad * mine, 0) + by_stop * tl.load(stops + ray * 3)
    behind += by_depth * tl.load(stops + ray * 3 + 1) + by_mass * tl.load(stops + ray * 3 + 2)
    carried = 0.0
    first = 0
    while first < samples:
        real, near, alive, x, y, z, length, middle, front, value, before, optical, weight = _walk(
            density, coordinates, lengths, middles, ray, first, samples, carried, size_x, size_y, size_z,
            opacity_size, limit, almost, SAMPLES, NEAREST, CORNERS,
        )  # fmt: skip
        change = by_stop + by_depth * middle + by_mass * front
        for corner in tl.static_range(CORNERS):
            flat, share, inside = _corner(x, y, z, alive, size_x, size_y, size_z, corner, NEAREST)
            at = flat[:, None] * C + channel[None, :]
            there = inside[:, None] & real_channel[None, :]
            found = tl.load(semantics + at, mask=there, other=0.0)
            change += share * tl.sum(found * grad[None, :], 1)
            amount = weight * share
            tl.atomic_add(
                grad_semantics + at, amount[:, None] * grad[None, :], mask=there & (amount != 0)[:, None],
                sem="relaxed",
            )  # fmt: skip
        so_far = tl.cumsum(weight * change, 0)
        slope = tl.exp(-(before + optical)) * change - (behind - so_far)
        slope = tl.where(alive, slope * length, 0.0)
        opaque = tl.where((value >= 0) & (value <= almost), 1 / (1 - tl.minimum(value, almost)), 0.0)
        slope *= tl.where(opacity_size > 0, opaque / tl.maximum(opacity_size, 1e-9), 1.0)
        for corner in tl.static_range(CORNERS):
            flat, share, inside = _corner(x, y, z, alive, size_x, size_y, size_z, corner, NEAREST)
            tl.atomic_add(grad_density + flat, slope * share, mask=inside & (slope * share != 0), sem="relaxed")
        behind -= tl.sum(weight * change, 0)
        carried += tl.sum(optical, 0)
        first += SAMPLES


class _VolumeRays(torch.autograd.Function):
    @staticmethod
    def forward(ctx, density, semantics, coordinates, lengths, middles, limits, opacity_size, nearest):
        tensors = [t.contiguous() for t in (density, semantics, coordinates, lengths, middles, limits)]
        if semantics.numel() >= 2**31:
            raise ValueError(f"a volume of {semantics.numel()} values is beyond the kernel's 32-bit indices")
        rays, channels = len(lengths), semantics.shape[3]
        stops, classes = density.new_zeros(rays, 3), semantics.new_zeros(rays, channels)
        ctx.settings = (opacity_size, nearest)
        if rays:
            given = [*tensors, stops, classes]
            _launch(_forward_kernel, given, semantics, lengths, opacity_size, nearest, FORWARD_CONFIG)
        ctx.save_for_backward(*tensors, stops, classes)
        return stops, classes

    @staticmethod
    def backward(ctx, grad_stops, grad_classes):
        saved = ctx.saved_tensors
        density, semantics, lengths = saved[0], saved[1], saved[3]
        grads = torch.zeros_like(density), torch.zeros_like(semantics)
        if len(lengths):
            given = [*saved, grad_stops.contiguous(), grad_classes.contiguous(), *grads]
            opacity_size, nearest = ctx.settings
            _launch(_backward_kernel, given, semantics, lengths, opacity_size, nearest, BACKWARD_CONFIG)
        return (*grads, None, None, None, None, None, None)


def _launch(kernel, tensors, semantics, lengths, opacity_size, nearest, config) -> None:
    channels = semantics.shape[3]
    kernel[(len(lengths),)](
        *tensors, lengths.shape[1], *semantics.shape[:3], float(opacity_size), 1 - ALMOST,
        C=channels, CHANNELS=triton.next_power_of_2(channels), SAMPLES=config[0], NEAREST=nearest,
        CORNERS=1 if nearest else 8, num_warps=config[1],
    )  # fmt: skip


def volume_rays_triton(
    density: Tensor, semantics: Tensor, samples: RaySamples, opacity_size: float, nearest: bool
) -> tuple[Tensor, Tensor]:
    """See `syntheocc.occupancy.ops.volume_rays.volume_rays`."""
    if any(t.dtype != torch.float32 for t in (density, semantics, *samples)):
        raise ValueError(f"the kernels take float32, got {[str(t.dtype) for t in (density, semantics, *samples)]}")
    return _VolumeRays.apply(density, semantics, *samples, opacity_size, nearest)
