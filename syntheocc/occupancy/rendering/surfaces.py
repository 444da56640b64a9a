"""Where along a ray its surface may lie when surfaces are voxels.

A lidar point lies somewhere in its voxel; the true occupancy stops the ray where it comes into the voxel. On level
ground that is metres earlier: a ray that falls 9 cm a metre comes into the road's layer of voxels 2.2 m before a
point in the middle of the layer. Losses that compare with the point itself find the truth wrong there
(docs/labels_2d.md).

Legend: R rays.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.rendering.rays import RayLabels
from syntheocc.occupancy.transforms import slab_crossings

__all__ = ["front_limits", "surface_stretch"]

# A ray along the ground is in its layer nearly everywhere: at least this share of it stays free.
_NEAREST = 0.5
_BEHIND = 0.01  # metres


def surface_stretch(
    rays: RayLabels,
    spec: GridSpec,
    flat: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """From where to where a ray may be stopped by the voxel of its point: enter and leave, both [R] metres.

    The chord of the ray in that voxel. On flat ground the neighbours before it are ground as well, so there it begins
    where the ray comes into the voxel's layer. A thing that has moved since the key frame is taken where it was seen:
    the voxel that it comes from begins elsewhere, by less than a diagonal.

    Args:
        rays: labels in the grid's frame. Points outside the grid have no voxel: both are their distance.
        spec: of the grid.
        flat: labels of level ground.
    """
    near, far, inside = _slabs(rays, spec, 0.0)
    level = _level(rays, flat)
    enter = torch.where(level, near[:, 2], near.amax(1)).maximum(_NEAREST * rays.distance)
    enter = torch.where(inside, enter.minimum(rays.distance), rays.distance)
    leave = torch.where(inside, far.amin(1).maximum(rays.distance), rays.distance)
    return enter, leave


def front_limits(
    rays: RayLabels,
    spec: GridSpec,
    flat: Sequence[int] = (),
    margin: float = 0.8,
    height: float = 0.0,
) -> Tensor:
    """Up to where a ray must be free, [R] metres: `margin` before its stretch.

    What reaches out of a voxel of level ground by a few centimetres is met metres before it: rays to it must be free
    while they are `height` above the voxel, if that is earlier.

    Args:
        rays: labels in the grid's frame.
        spec: of the grid.
        flat: labels of level ground.
        margin: metres along the ray.
        height: metres that a voxel reaches up beyond its top.
    """
    enter, _ = surface_stretch(rays, spec, flat)
    above, _, inside = _slabs(rays, spec, height)
    higher = above[:, 2].maximum(_NEAREST * rays.distance)
    return torch.where(_level(rays, flat) & inside, higher.minimum(enter - margin), enter - margin)


def _level(rays: RayLabels, flat: Sequence[int]) -> Tensor:
    """Rays that fall on flat ground, bool [R]."""
    return torch.isin(rays.labels, constant(tuple(flat), rays.labels.device)) & (rays.directions[:, 2] < 0)


def _slabs(rays: RayLabels, spec: GridSpec, higher: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays come into and leave their voxel's range of x, y and z, the top `higher` metres higher.

    Returns:
        two [R, 3] metres, huge along axes that a ray does not move on; whether the point is in the grid.
    """
    # A point on a face belongs to the voxel behind it.
    points = rays.origins + rays.directions * (rays.distance + _BEHIND)[:, None]
    index, inside = spec.index_of(points)
    lower, size = (constant(part, points) for part in (spec.lower, spec.voxel_size))
    low = lower + index * size
    high = low + size
    high[:, 2] += higher
    return *slab_crossings(rays.origins, rays.directions, low, high), inside
