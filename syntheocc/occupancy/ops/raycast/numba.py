"""The traversal on the CPU, compiled by numba: the reference's operations in its order, one ray at a time."""

import numba
import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.ops.raycast import MAX_STEPS_OUTSIDE
from syntheocc.occupancy.ops.threads import run_in_threads

_FAR = np.finfo(np.float64).max


def traverse_numba(labels: Tensor, free: int, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `syntheocc.occupancy.ops.raycast.reference.traverse_reference`."""
    rays = origins.shape[:2]
    exit_t = torch.empty(rays, dtype=torch.float64)
    flat = torch.empty(rays, dtype=torch.int64)
    hit = torch.empty(rays, dtype=torch.bool)
    run_in_threads(
        _traverse_rays,
        rays[0] * rays[1],
        labels.flatten(1).numpy(),
        np.array(labels.shape[1:], np.int64),
        free,
        rays[1],
        origins.view(-1, 3).numpy(),
        directions.view(-1, 3).numpy(),
        exit_t.view(-1).numpy(),
        flat.view(-1).numpy(),
        hit.view(-1).numpy(),
    )
    return exit_t, flat, hit


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _traverse_rays(first, last, labels, shape, free, rays, origins, directions, exit_t, flat, hit):
    for r in range(first, last):
        exit_t[r], flat[r], hit[r] = walk(
            labels[r // rays], shape[0], shape[1], shape[2], free,
            origins[r, 0], origins[r, 1], origins[r, 2], directions[r, 0], directions[r, 1], directions[r, 2],
        )  # fmt: skip


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="never")  # pragma: no cover (compiled)
def _start(origin, direction, size):
    """Of one axis: ``t`` of the first face and from face to face, faces to the way out, whether it steps forwards."""
    voxel = np.int64(origin)
    forward = direction >= 0.0
    if direction == 0.0:
        t, t_step = _FAR, _FAR
    else:
        t = ((voxel + 1 if forward else voxel) - origin) / direction
        t_step = (1.0 if forward else -1.0) / direction
    return voxel, t, t_step, size - voxel if forward else voxel + 1, forward


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def walk(labels, size_x, size_y, size_z, free, ox, oy, oz, dx, dy, dz):
    """One ray through one grid, flat uint8 [X * Y * Z]: exit ``t``, the voxel's flat number, hit."""
    x, tx, step_x, left_x, forward_x = _start(ox, dx, size_x)
    y, ty, step_y, left_y, forward_y = _start(oy, dy, size_y)
    z, tz, step_z, left_z, forward_z = _start(oz, dz, size_z)
    at = (x * size_y + y) * size_z + z
    stride_x = size_y * size_z if forward_x else -size_y * size_z
    stride_y = size_z if forward_y else -size_z
    stride_z = 1 if forward_z else -1
    # Faces left until the ray is out of the grid for good: 0 is out, more than the size is not in yet.
    steps = 0
    while left_x > size_x or left_y > size_y or left_z > size_z:
        if left_x <= 0 or left_y <= 0 or left_z <= 0 or steps >= MAX_STEPS_OUTSIDE:
            return -1.0, 0, False
        if tx < ty and tx < tz:
            left_x -= 1
            at += stride_x
            tx += step_x
        elif not tx < ty and ty < tz:
            left_y -= 1
            at += stride_y
            ty += step_y
        else:
            left_z -= 1
            at += stride_z
            tz += step_z
        steps += 1
    t, last = -1.0, 0
    while left_x > 0 and left_y > 0 and left_z > 0:
        last = at
        occupied = labels[at] != free
        if tx < ty and tx < tz:
            t = tx
            left_x -= 1
            at += stride_x
            tx += step_x
        elif not tx < ty and ty < tz:
            t = ty
            left_y -= 1
            at += stride_y
            ty += step_y
        else:
            t = tz
            left_z -= 1
            at += stride_z
            tz += step_z
        if occupied:
            return t, last, True
    return t, last, False
