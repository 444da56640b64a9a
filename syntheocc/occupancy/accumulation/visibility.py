"""Occ3D's visibility masks: which voxels the lidar and the cameras observed.

* **mask_lidar**: every voxel that a lidar ray passes, from the sensor to its return, the return's own voxel included.
  As in the data set the sweeps of the whole scene count, each from where its sensor stood.
* **mask_camera**: a ray runs from each camera's centre to the centre of every voxel in its picture. The first occupied
  voxel on the way is observed, and a free voxel is observed when nothing occupied lies before its centre.

Both are questions to the voxels, not to the surfaces in them: see `tests/worlds` for how far that is from the exact
geometry. Legend: R rays, N points, X Y Z voxels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.ray_passes import count_passes
from syntheocc.occupancy.rendering.raycast import cast_rays
from syntheocc.occupancy.transforms import invert_rigid, slab_crossings, transform_points

__all__ = ["RayPasses", "camera_mask", "lidar_mask", "passed_voxels"]


def camera_mask(
    occupied: Tensor, spec: GridSpec, rig: CameraRig, grid2ego: Tensor | None = None, among: Tensor | None = None
) -> Tensor:
    """Voxels that at least one camera observes.

    Args:
        occupied: bool [X, Y, Z] on the CPU.
        spec: where the voxels lie.
        rig: cameras with `cam2ego`; any model.
        grid2ego: [4, 4]; identity when left out.
        among: bool [X, Y, Z], the voxels that are asked for: rays run to these alone, and no other is in the result.
            An occupied one that only a ray to a voxel behind it grazes, which is not asked for, is then missed.

    Returns:
        bool [X, Y, Z].
    """
    grid2ego = torch.eye(4, dtype=torch.float64) if grid2ego is None else grid2ego
    observed = torch.zeros(occupied.numel(), dtype=torch.bool)
    flat_occupied = occupied.reshape(-1)
    asked = torch.arange(len(observed)) if among is None else among.reshape(-1).nonzero()[:, 0]
    centers = spec.centers().reshape(-1, 3)[asked]
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
        aim = asked[target]
        observed[aim[clear & ~flat_occupied[aim]]] = True
    observed = observed.reshape(spec.shape)
    return observed if among is None else observed & among


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
        backend: of `ray_passes.count_passes`.
    """
    passes = RayPasses.none(spec)
    passes.add(origin, points, returns=False, backend=backend)
    observed |= passes.through > 0


@dataclass(frozen=True, eq=False)
class RayPasses:
    """What rays say about the voxels before their returns.

    Args:
        spec: where the voxels lie.
        through: int32 [X, Y, Z], rays that passed each voxel and ended behind it.
        lowest: float64 [X, Y], the least height that a ray had in each column, voxel units; +inf where none came.
    """

    spec: GridSpec
    through: Tensor
    lowest: Tensor

    @classmethod
    def none(cls, spec: GridSpec) -> "RayPasses":
        """No ray yet."""
        through = torch.zeros(spec.shape, dtype=torch.int32)
        return cls(spec, through, torch.full(spec.shape[:2], torch.inf, dtype=torch.float64))

    @property
    def floor(self) -> Tensor:
        """`lowest` in metres of the grid's frame, float64 [X, Y]."""
        return self.spec.lower[2] + self.lowest * self.spec.voxel_size[2]

    def add(self, origin: Tensor, points: Tensor, returns: bool = True, backend: str | None = None) -> None:
        """Add the rays from one origin to points.

        Args:
            origin: [3] metres in the grid's frame; may lie outside the grid.
            points: [N, 3], likewise.
            returns: whether the points are returns, whose own voxels were not passed.
            backend: of `ray_passes.count_passes`.
        """
        lower, size = (torch.tensor(v, dtype=torch.float64) for v in (self.spec.lower, self.spec.voxel_size))
        start = (origin.double() - lower) / size
        way = (points.double() - lower) / size - start
        first, last = _clip(start, way, torch.tensor(self.spec.shape, dtype=torch.float64))
        kept = last > first
        begin, end = start + first[kept, None] * way[kept], start + last[kept, None] * way[kept]
        stops = (last[kept] >= 1) if returns else torch.zeros(len(begin), dtype=torch.bool)
        count_passes(begin, end, stops, self.through, self.lowest, backend)


def _clip(start: Tensor, way: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """Where the ways enter and leave the grid, as shares of the way in 0..1; both [N]."""
    near, far = slab_crossings(start, way, torch.zeros_like(shape), shape)
    return near.amax(1).clamp_min(0), far.amin(1).clamp_max(1)
