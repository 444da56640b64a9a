"""Composited values of a volume in Triton: one launch forward, one backward.

A program owns a ray. Channels are contiguous, so a corner of a sample is one read of 68 bytes for 17 classes, and rays
in the order of their cameras' pixels find most of them in the L2 cache, which holds a volume of Occ3D's size. The
backward pass reads the corners again (cheaper than keeping them) and adds to the volume's gradient with atomics, for
samples with a weight only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Samples of a step and warps of a program, as in `ops.volume_rays`.
FORWARD_CONFIG = (16, 2)
BACKWARD_CONFIG = (16, 2)


@triton.jit
def _sample(coordinates, weights, ray, first, samples, size_x, size_y, size_z, SAMPLES: tl.constexpr):
    """Coordinates, weights and liveness of a step's samples; those that touch no voxel are not live."""
    s = first + tl.arange(0, SAMPLES)
    real = s < samples
    at = ray * samples + s
    x = tl.load(coordinates + at * 3, mask=real, other=-9.0)
    y = tl.load(coordinates + at * 3 + 1, mask=real, other=-9.0)
    z = tl.load(coordinates + at * 3 + 2, mask=real, other=-9.0)
    weight = tl.load(weights + at, mask=real, other=0.0)
    near = (x > -1) & (x < size_x) & (y > -1) & (y < size_y) & (z > -1) & (z < size_z)  # false for NaN
    return at, real, near, tl.where(near, x, 0.0), tl.where(near, y, 0.0), tl.where(near, z, 0.0), weight


@triton.jit
def _corner(x, y, z, near, size_x, size_y, size_z, CORNER: tl.constexpr, NEAREST: tl.constexpr):
    """Flat number of a corner's voxel, its share and whether there is one."""
    if NEAREST:
        i, j, k = tl.floor(x + 0.5), tl.floor(y + 0.5), tl.floor(z + 0.5)
        share = tl.where(near, 1.0, 0.0)
    else:
        i = tl.floor(x) + CORNER // 4
        j = tl.floor(y) + CORNER // 2 % 2
        k = tl.floor(z) + CORNER % 2
        share = (1 - tl.abs(x - i)) * (1 - tl.abs(y - j)) * (1 - tl.abs(z - k))
    inside = near & (i >= 0) & (i < size_x) & (j >= 0) & (j < size_y) & (k >= 0) & (k < size_z)
    flat = (i.to(tl.int32) * size_y + j.to(tl.int32)) * size_z + k.to(tl.int32)
    return flat, share, inside


@triton.jit
def _forward_kernel(
    volume, coordinates, weights, out, samples, size_x, size_y, size_z,
    C: tl.constexpr, CHANNELS: tl.constexpr, SAMPLES: tl.constexpr, NEAREST: tl.constexpr, CORNERS: tl.constexpr,
):  # fmt: skip
    ray = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    real_channel = channel < C
    total = tl.zeros([CHANNELS], dtype=tl.float32)
    first = 0
    while first < samples:
        _, _, near, x, y, z, weight = _sample(
            coordinates, weights, ray, first, samples, size_x, size_y, size_z, SAMPLES
        )
        # What has no weight adds nothing, and is most of a ray.
        near = near & (weight != 0)
        for corner in tl.static_range(CORNERS):
            flat, share, inside = _corner(x, y, z, near, size_x, size_y, size_z, corner, NEAREST)
            at = flat[:, None] * C + channel[None, :]
            found = tl.load(volume + at, mask=inside[:, None] & real_channel[None, :], other=0.0)
            total += tl.sum((weight * share)[:, None] * found, 0)
        first += SAMPLES
    tl.store(out + ray * C + channel, total, mask=real_channel)


@triton.jit
def _backward_kernel(
    volume, coordinates, weights, grad_out, grad_volume, grad_weights, samples, size_x, size_y, size_z,
    C: tl.constexpr, CHANNELS: tl.constexpr, SAMPLES: tl.constexpr, NEAREST: tl.constexpr, CORNERS: tl.constexpr,
):  # fmt: skip
    ray = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    real_channel = channel < C
    grad = tl.load(grad_out + ray * C + channel, mask=real_channel, other=0.0)
    first = 0
    while first < samples:
        place, real, near, x, y, z, weight = _sample(
            coordinates, weights, ray, first, samples, size_x, size_y, size_z, SAMPLES
        )
        change = tl.zeros([SAMPLES], dtype=tl.float32)
        for corner in tl.static_range(CORNERS):
            flat, share, inside = _corner(x, y, z, near, size_x, size_y, size_z, corner, NEAREST)
            at = flat[:, None] * C + channel[None, :]
            there = inside[:, None] & real_channel[None, :]
            found = tl.load(volume + at, mask=there, other=0.0)
            change += share * tl.sum(found * grad[None, :], 1)
            amount = weight * share
            tl.atomic_add(
                grad_volume + at, amount[:, None] * grad[None, :], mask=there & (amount != 0)[:, None], sem="relaxed"
            )
        tl.store(grad_weights + place, change, mask=real)
        first += SAMPLES


def launch_forward(
    volume: Tensor, coordinates: Tensor, weights: Tensor, nearest: bool, config: tuple[int, int] = FORWARD_CONFIG
) -> Tensor:
    """The forward kernel; config is samples of a step and warps."""
    volume, coordinates, weights = _checked(volume, coordinates, weights)
    (rays, samples), channels = weights.shape, volume.shape[3]
    out = volume.new_zeros(rays, channels)
    if rays:
        _forward_kernel[(rays,)](
            volume, coordinates, weights, out, samples, *volume.shape[:3],
            C=channels, CHANNELS=triton.next_power_of_2(channels), SAMPLES=config[0], NEAREST=nearest,
            CORNERS=1 if nearest else 8, num_warps=config[1],
        )  # fmt: skip
    return out


def launch_backward(
    grad_out: Tensor,
    volume: Tensor,
    coordinates: Tensor,
    weights: Tensor,
    nearest: bool,
    config: tuple[int, int] = BACKWARD_CONFIG,
) -> tuple[Tensor, Tensor]:
    """The backward kernel: gradients of the volume and of the weights."""
    volume, coordinates, weights = _checked(volume, coordinates, weights)
    (rays, samples), channels = weights.shape, volume.shape[3]
    grad_volume, grad_weights = torch.zeros_like(volume), torch.zeros_like(weights)
    if rays:
        _backward_kernel[(rays,)](
            volume, coordinates, weights, grad_out.contiguous(), grad_volume, grad_weights, samples, *volume.shape[:3],
            C=channels, CHANNELS=triton.next_power_of_2(channels), SAMPLES=config[0], NEAREST=nearest,
            CORNERS=1 if nearest else 8, num_warps=config[1],
        )  # fmt: skip
    return grad_volume, grad_weights


def _checked(volume: Tensor, coordinates: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As the kernels index: everything contiguous, within 32 bits."""
    if volume.numel() >= 2**31:
        raise ValueError(f"a volume of {volume.numel()} values is beyond the kernel's 32-bit indices")
    return volume.contiguous(), coordinates.contiguous(), weights.contiguous()


# Operators of their own: torch.compile takes them as they are, and knows their gradients.
@torch.library.custom_op(
    "syntheocc::composite_volume",
    mutates_args=(),
    schema="(Tensor volume, Tensor coordinates, Tensor weights, bool nearest) -> Tensor",
)
def composite_volume_triton(volume: Tensor, coordinates: Tensor, weights: Tensor, nearest: bool) -> Tensor:
    """See `syntheocc.occupancy.ops.volume_render.composite_volume`."""
    return launch_forward(volume, coordinates, weights, nearest)


@torch.library.custom_op(
    "syntheocc::composite_volume_backward",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor volume, Tensor coordinates, Tensor weights, bool nearest) -> (Tensor, Tensor)",
)
def _composite_volume_backward(
    grad_out: Tensor, volume: Tensor, coordinates: Tensor, weights: Tensor, nearest: bool
) -> tuple[Tensor, Tensor]:
    return launch_backward(grad_out, volume, coordinates, weights, nearest)


@composite_volume_triton.register_fake
def _(volume: Tensor, coordinates: Tensor, weights: Tensor, nearest: bool) -> Tensor:
    return volume.new_empty(weights.shape[0], volume.shape[3])


@_composite_volume_backward.register_fake
def _(grad_out: Tensor, volume: Tensor, coordinates: Tensor, weights: Tensor, nearest: bool) -> tuple[Tensor, Tensor]:
    return volume.new_empty(volume.shape), weights.new_empty(weights.shape)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.nearest = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_out: Tensor) -> tuple[Tensor, None, Tensor, None]:
    grad_volume, grad_weights = _composite_volume_backward(grad_out, *ctx.saved_tensors, ctx.nearest)
    return grad_volume, None, grad_weights, None


composite_volume_triton.register_autograd(_backward, setup_context=_setup_context)
