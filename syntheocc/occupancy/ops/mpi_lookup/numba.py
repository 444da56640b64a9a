"""The MPI lookup on the CPU, compiled by numba.

Each ray is clipped to the grid analytically, so the inner loop is one multiply-add per axis, a load and a compare;
planes outside the grid cost nothing, for the output starts filled with the free label. Positions are float64 in the
reference's order of operations (numba contracts nothing without fastmath), hence equal labels.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.ops.mpi_lookup import LookupPlanes, label_table
from syntheocc.occupancy.ops.threads import run_in_threads


def mpi_lookup_numba(
    labels: Tensor,
    origins: Tensor,
    directions: Tensor,
    planes: LookupPlanes,
    free: int,
    table: Tensor | None = None,
    foreground: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `syntheocc.occupancy.ops.mpi_lookup.mpi_lookup`."""
    batch, views, _, height, width, _ = directions.shape
    layers = torch.full((batch, views, planes.num_layers, height, width), free, dtype=torch.uint8)
    nearest = torch.full((batch, views, height, width), free, dtype=torch.uint8)
    nearest_plane = torch.zeros((batch, views, height, width), dtype=torch.int16)
    preferred = torch.zeros(256, dtype=torch.bool) if foreground is None else foreground
    run_in_threads(
        _lookup_rows,
        batch * views * height,
        labels.contiguous().numpy(),
        origins.contiguous().numpy(),
        directions.contiguous().numpy(),
        planes.near,
        planes.step,
        planes.num_planes,
        label_table(free, table, labels.device).numpy(),
        preferred.numpy(),
        np.uint8(free),
        layers.numpy(),
        nearest.numpy(),
        nearest_plane.numpy(),
    )
    return layers, nearest, nearest_plane


@numba.njit(nogil=True, cache=True)  # pragma: no cover (compiled)
def _inside(origin, ray, depth, shape):
    for axis in range(3):
        position = origin[axis] + ray[axis] * depth
        if not (position >= 0.0 and position < shape[axis]):
            return False
    return True


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _planes_inside(origin, ray, near, step, num_planes, shape):
    """The half-open range of planes on which a ray is inside the grid; a ray's stay in a box is one interval."""
    low, high = -np.inf, np.inf
    for axis in range(3):
        if ray[axis] > 0.0:
            low = max(low, -origin[axis] / ray[axis])
            high = min(high, (shape[axis] - origin[axis]) / ray[axis])
        elif ray[axis] < 0.0:
            low = max(low, (shape[axis] - origin[axis]) / ray[axis])
            high = min(high, -origin[axis] / ray[axis])
        elif not (origin[axis] >= 0.0 and origin[axis] < shape[axis] and ray[axis] == 0.0):
            return 0, 0
    if not low <= high:
        return 0, 0
    # One plane of slack for rounding, then the very test that the reference makes.
    first = int(min(max(np.ceil((low - near) / step) - 1.0, 0.0), num_planes))
    last = int(min(max(np.floor((high - near) / step) + 2.0, 0.0), num_planes))
    while first < last and not _inside(origin, ray, near + first * step, shape):
        first += 1
    while first < last and not _inside(origin, ray, near + (last - 1) * step, shape):
        last -= 1
    return first, last


@numba.njit(nogil=True, cache=True)  # pragma: no cover (compiled)
def _lookup_rows(
    first_row,
    last_row,
    labels,
    origins,
    directions,
    near,
    step,
    num_planes,
    table,
    foreground,
    free,
    layers,
    nearest,
    nearest_plane,
):
    views, samples, height, width = directions.shape[1:5]
    num_layers = layers.shape[2]
    shape = labels.shape[1:]
    starts = np.empty(samples, np.int64)
    stops = np.empty(samples, np.int64)
    for job in range(first_row, last_row):
        b = job // (views * height)
        v = job // height % views
        y = job % height
        grid = labels[b]
        origin = origins[b, v]
        ox, oy, oz = origin[0], origin[1], origin[2]
        for x in range(width):
            first, last = num_planes, 0
            for s in range(samples):
                starts[s], stops[s] = _planes_inside(origin, directions[b, v, s, y, x], near, step, num_planes, shape)
                if starts[s] < stops[s]:
                    first, last = min(first, starts[s]), max(last, stops[s])
            seen = False
            layer_written = -1
            for plane in range(first, last):
                depth = near + plane * step
                label = free
                for s in range(samples):
                    if plane < starts[s] or plane >= stops[s]:
                        continue
                    ray = directions[b, v, s, y, x]
                    found = table[grid[int(ox + ray[0] * depth), int(oy + ray[1] * depth), int(oz + ray[2] * depth)]]
                    if s == 0:
                        label = found
                        if foreground[found]:
                            break
                    elif foreground[found]:
                        label = found
                        break
                if label == free:
                    continue
                if not seen:
                    seen = True
                    nearest[b, v, y, x] = label
                    nearest_plane[b, v, y, x] = plane
                layer = plane * num_layers // num_planes
                if layer != layer_written:
                    layer_written = layer
                    layers[b, v, layer, y, x] = label
