"""Ways through a grid on the CPU, compiled by numba: step over the nearest face until the way's end."""

import numba
from torch import Tensor


def count_passes_numba(begin: Tensor, end: Tensor, stops: Tensor, through: Tensor, lowest: Tensor) -> None:
    """See `syntheocc.occupancy.ops.ray_passes.count_passes`."""
    _walk_all(begin.numpy(), end.numpy(), stops.numpy(), through.numpy(), lowest.numpy())


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _walk_all(begin, end, stops, through, lowest):
    size_x, size_y, size_z = through.shape
    far = 1e300
    for r in range(len(begin)):
        dx, dy, dz = end[r, 0] - begin[r, 0], end[r, 1] - begin[r, 1], end[r, 2] - begin[r, 2]
        # A way that begins on a face goes on into the voxel ahead of it.
        x, y, z = _first(begin[r, 0], dx), _first(begin[r, 1], dy), _first(begin[r, 2], dz)
        sx, sy, sz = (1 if dx > 0 else -1), (1 if dy > 0 else -1), (1 if dz > 0 else -1)
        tx = (x + (sx > 0) - begin[r, 0]) / dx if dx != 0 else far
        ty = (y + (sy > 0) - begin[r, 1]) / dy if dy != 0 else far
        tz = (z + (sz > 0) - begin[r, 2]) / dz if dz != 0 else far
        ux = abs(1 / dx) if dx != 0 else far
        uy = abs(1 / dy) if dy != 0 else far
        uz = abs(1 / dz) if dz != 0 else far
        entered = 0.0
        while True:
            left = min(tx, ty, tz)
            if 0 <= x < size_x and 0 <= y < size_y and 0 <= z < size_z:
                if left < 1 or not stops[r]:
                    through[x, y, z] += 1
                height = begin[r, 2] + dz * (entered if dz > 0 else min(left, 1.0))
                if height < lowest[x, y]:
                    lowest[x, y] = height
            if left >= 1:
                break
            entered = left
            if tx <= left:
                x += sx
                tx += ux
            elif ty <= left:
                y += sy
                ty += uy
            else:
                z += sz
                tz += uz


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")  # pragma: no cover (compiled)
def _first(start, way):
    voxel = int(start // 1)
    return voxel - 1 if way < 0 and start == voxel else voxel
