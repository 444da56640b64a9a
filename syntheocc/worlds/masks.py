"""Occ3D's visibility masks: which voxels the lidar and the cameras observed.

* **mask_lidar**: every voxel that a lidar ray passes, from the sensor to its return, the return's own voxel included.
  As in the data set the sweeps of the whole scene count, each from where its sensor stood.
* **mask_camera**: a ray runs from each camera's centre to the centre of every voxel in its picture. The first occupied
  voxel on the way is observed, and a free voxel is observed when nothing occupied lies before its centre.

Both are questions to the voxels, not to the surfaces in them: see `tests/worlds` for how far that is from the exact
geometry. Legend: R rays, N points, X Y Z voxels.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.rendering.raycast import cast_rays
from syntheocc.occupancy.transforms import invert_rigid, transform_points

__all__ = ["camera_mask", "lidar_mask", "passed_voxels"]


def camera_mask(occupied: Tensor, spec: GridSpec, rig: CameraRig, grid2ego: Tensor | None = None) -> Tensor:
    """Voxels that at least one camera observes.

    Args:
        occupied: bool [X, Y, Z] on the CPU.
        spec: where the voxels lie.
        rig: cameras with `cam2ego`; any model.
        grid2ego: [4, 4]; identity when left out.

    Returns:
        bool [X, Y, Z].
    """
    grid2ego = torch.eye(4, dtype=torch.float64) if grid2ego is None else grid2ego
    centers = spec.centers().reshape(-1, 3)
    observed = torch.zeros(len(centers), dtype=torch.bool)
    flat_occupied = occupied.reshape(-1)
    strides = torch.tensor([spec.shape[1] * spec.shape[2], spec.shape[2], 1])
    for camera in rig.values():
        grid2cam = camera.ego2cam @ grid2ego
        pixels, depth = camera.project(transform_points(grid2cam, centers))
        low, high = torch.tensor([-0.5, -0.5]), torch.tensor([camera.width - 0.5, camera.height - 0.5])
        inside = ((pixels >= low) & (pixels < high)).all(-1) & (depth > 0)
        target = inside.nonzero()[:, 0]
        if len(target) == 0:
            continue
        eye = invert_rigid(grid2cam)[:3, 3]
        way = centers[target] - eye
        distance, index, hit = cast_rays(occupied, eye, way, spec, distance="entry")
        observed[(index[hit] * strides).sum(1)] = True
        clear = ~hit | (distance > way.norm(dim=1))
        observed[target[clear & ~flat_occupied[target]]] = True
    return observed.reshape(spec.shape)


def lidar_mask(sweeps: Iterable[tuple[Tensor, Tensor]], spec: GridSpec) -> Tensor:
    """Voxels that at least one lidar ray observes.

    Args:
        sweeps: pairs of the sensor's place [3] and its returns [N, 3], metres in the grid's frame.
        spec: where the voxels lie.

    Returns:
        bool [X, Y, Z].
    """
    observed = torch.zeros(spec.shape, dtype=torch.bool)
    for origin, points in sweeps:
        passed_voxels(observed, origin, points, spec)
    return observed


def passed_voxels(
    observed: Tensor, origin: Tensor, points: Tensor, spec: GridSpec, backend: str | None = None
) -> None:
    """Set every voxel on the straight ways from one origin to points, both ends included, in `observed`.

    Args:
        observed: bool [X, Y, Z] on the CPU, written.
        origin: [3] metres in the grid's frame; may lie outside the grid.
        points: [N, 3], likewise.
        spec: where the voxels lie.
        backend: "torch" or "numba"; None takes numba where it is installed.
    """
    lower, size = (torch.tensor(v, dtype=torch.float64) for v in (spec.lower, spec.voxel_size))
    start = (origin.double() - lower) / size
    way = (points.double() - lower) / size - start
    first, last = _clip(start, way, torch.tensor(spec.shape, dtype=torch.float64))
    kept = last > first
    begin, end = start + first[kept, None] * way[kept], start + last[kept, None] * way[kept]
    if (backend or ("numba" if has_module("numba") else "torch")) == "numba":
        _kernel()(begin.contiguous().numpy(), end.contiguous().numpy(), observed.numpy())
    else:
        _pass_torch(begin, end, observed)


def _clip(start: Tensor, way: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """Where the ways enter and leave the grid (slab method), as shares of the way in 0..1; both [N]."""
    safe = torch.where(way == 0, torch.full_like(way, 1e-12), way)
    near, far = (0 - start) / safe, (shape - start) / safe
    first = torch.minimum(near, far).amax(1).clamp_min(0)
    last = torch.maximum(near, far).amin(1).clamp_max(1)
    return first, last


def _pass_torch(begin: Tensor, end: Tensor, observed: Tensor) -> None:
    """All ways cut at every face they cross; the middle of each piece tells its voxel."""
    shape = torch.tensor(observed.shape)
    way = end - begin
    for piece in range(0, len(begin), 4096):
        b, w = begin[piece : piece + 4096], way[piece : piece + 4096]
        steps = int(w.abs().amax().ceil()) + 2
        cuts = [torch.zeros(len(b), 1, dtype=b.dtype), torch.ones(len(b), 1, dtype=b.dtype)]
        for axis in range(3):
            low = torch.minimum(b[:, axis], b[:, axis] + w[:, axis]).floor()
            faces = low[:, None] + torch.arange(1, steps, dtype=b.dtype)
            share = (faces - b[:, axis, None]) / w[:, axis, None]
            cuts.append(torch.where((share > 0) & (share < 1), share, 1.0))
        shares = torch.cat(cuts, 1).sort(1).values
        middle = (shares[:, 1:] + shares[:, :-1]) / 2
        points = b[:, None] + middle[..., None] * w[:, None]
        index = points.floor().long().reshape(-1, 3)
        index = index[((index >= 0) & (index < shape)).all(1)]
        observed[index[:, 0], index[:, 1], index[:, 2]] = True


def _pass_loops(begin, end, observed):
    for r in range(len(begin)):
        # Amanatides and Woo: step over the nearest face until the way's end.
        x, y, z = int(begin[r, 0]), int(begin[r, 1]), int(begin[r, 2])
        dx, dy, dz = end[r, 0] - begin[r, 0], end[r, 1] - begin[r, 1], end[r, 2] - begin[r, 2]
        sx, sy, sz = (1 if dx > 0 else -1), (1 if dy > 0 else -1), (1 if dz > 0 else -1)
        far = 1e300
        tx = (x + (sx > 0) - begin[r, 0]) / dx if dx != 0 else far
        ty = (y + (sy > 0) - begin[r, 1]) / dy if dy != 0 else far
        tz = (z + (sz > 0) - begin[r, 2]) / dz if dz != 0 else far
        ux = abs(1 / dx) if dx != 0 else far
        uy = abs(1 / dy) if dy != 0 else far
        uz = abs(1 / dz) if dz != 0 else far
        while True:
            if 0 <= x < observed.shape[0] and 0 <= y < observed.shape[1] and 0 <= z < observed.shape[2]:
                observed[x, y, z] = True
            if tx < ty and tx < tz:
                if tx >= 1:
                    break
                x += sx
                tx += ux
            elif ty < tz:
                if ty >= 1:
                    break
                y += sy
                ty += uy
            else:
                if tz >= 1:
                    break
                z += sz
                tz += uz


_COMPILED: list = []


def _kernel():
    """The loops compiled by numba, at their first use."""
    if not _COMPILED:
        import numba

        _COMPILED.append(numba.njit(nogil=True, cache=True, error_model="numpy")(_pass_loops))
    return _COMPILED[0]
