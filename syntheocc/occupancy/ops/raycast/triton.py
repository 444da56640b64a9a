"""The traversal on a GPU: a warp of rays a program, in step until the last of them is done.

Everything is float64 and no product is contracted with a sum (``enable_fp_fusion=False``), so that voxels and
distances are the CPU's to the last bit; a step only compares and adds, which a data-centre GPU does at half its
float32 rate. Rays of a warp lie side by side in azimuth: they read the same sectors and end at about the same step.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from syntheocc.occupancy.ops.raycast import MAX_STEPS_OUTSIDE

# Steps between two looks at whether any ray of the warp is left, which takes five shuffles.
UNROLL = 4
WARP = 32


def traverse_triton(  # pragma: no cover (runs on a GPU)
    labels: Tensor, free: int, origins: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `syntheocc.occupancy.ops.raycast.reference.traverse_reference`."""
    grids, rays = origins.shape[:2]
    voxels = labels.shape[1] * labels.shape[2] * labels.shape[3]
    if voxels >= 2**31:
        raise ValueError(f"a grid of {voxels} voxels is beyond the 32-bit indices of the GPU kernel")
    exit_t = torch.empty((grids, rays), dtype=torch.float64, device=labels.device)
    flat = torch.empty((grids, rays), dtype=torch.int64, device=labels.device)
    hit = torch.empty((grids, rays), dtype=torch.bool, device=labels.device)
    if grids and rays:
        _traverse_kernel[(triton.cdiv(rays, WARP), grids)](
            labels, origins, directions, exit_t, flat, hit.view(torch.uint8), rays, free, *labels.shape[1:],
            MAX_STEPS=MAX_STEPS_OUTSIDE, UNROLL=UNROLL, WARP=WARP, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return exit_t, flat, hit


@triton.jit  # pragma: no cover (runs on a GPU)
def _start(origin, direction, size, stride):
    """Of one axis: ``t`` of the first face and from face to face, faces to the way out, signed stride, start."""
    far = 1.7976931348623157e308
    voxel = origin.to(tl.int32)
    forward = direction >= 0
    still = direction == 0
    # No division by zero: what it would give depends on the compiler.
    divisor = tl.where(still, 1.0, direction)
    face = tl.where(forward, voxel + 1, voxel).to(tl.float64)
    t = tl.where(still, far, (face - origin) / divisor)
    t_step = tl.where(still, far, tl.where(forward, 1.0, -1.0).to(tl.float64) / divisor)
    left = tl.where(forward, size - voxel, voxel + 1)
    return t, t_step, left, tl.where(forward, stride, -stride), voxel * stride


@triton.jit  # pragma: no cover (runs on a GPU)
def walk(
    labels, real, ox, oy, oz, dx, dy, dz, free, size_x, size_y, size_z, MAX_STEPS: tl.constexpr, UNROLL: tl.constexpr
):
    """A block of rays through one grid: exit ``t`` float64, the voxel's flat number int32, hit."""
    tx, step_x, left_x, stride_x, at_x = _start(ox, dx, size_x, size_y * size_z)
    ty, step_y, left_y, stride_y, at_y = _start(oy, dy, size_y, size_z)
    tz, step_z, left_z, stride_z, at_z = _start(oz, dz, size_z, 1)
    at = at_x + at_y + at_z
    exit_t = tx * 0.0 - 1.0
    flat = at * 0
    hit = at != at
    live = real & (left_x > 0) & (left_y > 0) & (left_z > 0)
    steps = 0
    active = tl.max(live.to(tl.int32), 0)
    while active > 0:
        for _ in tl.static_range(UNROLL):
            # Faces left until the ray is out for good: more than the size is not in yet.
            inside = live & (left_x <= size_x) & (left_y <= size_y) & (left_z <= size_z)
            label = tl.load(labels + at, mask=inside, other=0).to(tl.int32)
            x_first = tx < ty
            nearer = tl.where(x_first, tx, ty)
            over_z = (nearer < tz) == 0
            over_x = x_first & (over_z == 0)
            over_y = (x_first == 0) & (over_z == 0)
            exit_t = tl.where(inside, tl.where(over_z, tz, nearer), exit_t)
            flat = tl.where(inside, at, flat)
            stop = inside & (label != free)
            hit = hit | stop
            at += tl.where(over_x, stride_x, tl.where(over_y, stride_y, stride_z))
            tx = tl.where(over_x, tx + step_x, tx)
            ty = tl.where(over_y, ty + step_y, ty)
            tz = tl.where(over_z, tz + step_z, tz)
            left_x -= over_x.to(tl.int32)
            left_y -= over_y.to(tl.int32)
            left_z -= over_z.to(tl.int32)
            steps += 1
            live = live & (stop == 0) & (left_x > 0) & (left_y > 0) & (left_z > 0)
            live = live & ((steps < MAX_STEPS) | ((left_x <= size_x) & (left_y <= size_y) & (left_z <= size_z)))
        active = tl.max(live.to(tl.int32), 0)
    return exit_t, flat, hit


@triton.jit  # pragma: no cover (runs on a GPU)
def _traverse_kernel(
    labels, origins, directions, exit_t, flat, hit, rays, free, size_x, size_y, size_z,
    MAX_STEPS: tl.constexpr, UNROLL: tl.constexpr, WARP: tl.constexpr,
):  # fmt: skip
    grid = tl.program_id(1).to(tl.int64)
    ray = tl.program_id(0) * WARP + tl.arange(0, WARP)
    real = ray < rays
    row = (grid * rays + ray) * 3
    ox = tl.load(origins + row, mask=real, other=0.5)
    oy = tl.load(origins + row + 1, mask=real, other=0.5)
    oz = tl.load(origins + row + 2, mask=real, other=0.5)
    dx = tl.load(directions + row, mask=real, other=1.0)
    dy = tl.load(directions + row + 1, mask=real, other=1.0)
    dz = tl.load(directions + row + 2, mask=real, other=1.0)
    stops = labels + grid * size_x * size_y * size_z
    t, at, found = walk(stops, real, ox, oy, oz, dx, dy, dz, free, size_x, size_y, size_z, MAX_STEPS, UNROLL)
    out = grid * rays + ray
    tl.store(exit_t + out, t, mask=real)
    tl.store(flat + out, at.to(tl.int64), mask=real)
    tl.store(hit + out, found.to(tl.uint8), mask=real)
