"""The traversal on the CPU, compiled by numba: the reference's operations in its order, one ray at a time."""

import numba
import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.ops.raycast import MAX_STEPS_OUTSIDE
from syntheocc.occupancy.ops.threads import run_in_threads

_FAR = np.finfo(np.float64).max


def traverse_numba(occupied: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `syntheocc.occupancy.ops.raycast.traverse`."""
    count = origins.shape[0]
    exit_t = torch.full((count,), -1.0, dtype=torch.float64)
    index = torch.zeros((count, 3), dtype=torch.int64)
    hit = torch.zeros(count, dtype=torch.bool)
    run_in_threads(
        _traverse_rays,
        count,
        occupied.contiguous().numpy(),
        origins.contiguous().numpy(),
        directions.contiguous().numpy(),
        exit_t.numpy(),
        index.numpy(),
        hit.numpy(),
    )
    return exit_t, index, hit


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _traverse_rays(first, last, occupied, origins, directions, exit_t, index, hit):
    shape = occupied.shape
    voxel = np.empty(3, np.int64)
    step = np.empty(3, np.int64)
    t_next = np.empty(3, np.float64)
    t_step = np.empty(3, np.float64)
    for r in range(first, last):
        for a in range(3):
            d = directions[r, a]
            voxel[a] = int(origins[r, a])
            step[a] = 1 if d >= 0.0 else -1
            face = voxel[a] + 1 if step[a] > 0 else voxel[a]
            t_next[a] = (face - origins[r, a]) / d if d != 0.0 else _FAR
            t_step[a] = step[a] / d if d != 0.0 else _FAR
        entered = False
        steps = 0
        while True:
            inside = True
            gone = False
            for a in range(3):
                if voxel[a] < 0:
                    inside = False
                    gone |= step[a] < 0 or directions[r, a] == 0.0
                elif voxel[a] >= shape[a]:
                    inside = False
                    gone |= step[a] > 0 or directions[r, a] == 0.0
            if not inside and (entered or gone or steps >= MAX_STEPS_OUTSIDE):
                break
            if t_next[0] < t_next[1]:
                a = 0 if t_next[0] < t_next[2] else 2
            else:
                a = 1 if t_next[1] < t_next[2] else 2
            if inside:
                entered = True
                exit_t[r] = t_next[a]
                index[r, 0], index[r, 1], index[r, 2] = voxel[0], voxel[1], voxel[2]
                if occupied[voxel[0], voxel[1], voxel[2]]:
                    hit[r] = True
                    break
            voxel[a] += step[a]
            t_next[a] += t_step[a]
            steps += 1
