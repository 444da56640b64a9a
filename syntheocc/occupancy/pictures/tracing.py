"""Which voxel, and which of its faces, a ray meets first. Legend: X Y Z voxels, R rays."""

from typing import NamedTuple

import numpy as np
import torch

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.rendering.raycast import cast_rays
from syntheocc.occupancy.transforms import invert_rigid

__all__ = ["Hits", "in_grid", "trace"]


class Hits(NamedTuple):
    """What rays meet.

    Args:
        voxel: int64 [..., 3], meaningful where something was met.
        side: int8 [...], the face through which the ray enters it, as `faces.Faces` numbers them; -1: nothing met.
        distance: float64 [...] metres from the ray's origin, infinite where nothing was met.
    """

    voxel: np.ndarray
    side: np.ndarray
    distance: np.ndarray


def in_grid(grid2ego: np.ndarray, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rays [..., 3] in ego as rays in the grid's frame."""
    ego2grid = invert_rigid(torch.from_numpy(np.asarray(grid2ego, dtype=np.float64))).numpy()
    return origins @ ego2grid[:3, :3].T + ego2grid[:3, 3], directions @ ego2grid[:3, :3].T


def trace(
    drawn: np.ndarray,
    spec: GridSpec,
    grid2ego: np.ndarray,
    origins: np.ndarray,
    directions: np.ndarray,
    near: float = 0.0,
) -> Hits:
    """Cast rays into a grid.

    Args:
        drawn: bool [X, Y, Z], what stops a ray.
        spec: where the voxels lie.
        grid2ego: [4, 4].
        origins: float64 [..., 3] metres in ego.
        directions: float64 [..., 3] in ego, of any length; a ray that holds NaN meets nothing.
        near: metres along the ray before which nothing is met (a camera may stand in a labelled voxel).
    """
    shape = directions.shape[:-1]
    origins, directions = in_grid(grid2ego, np.broadcast_to(origins, directions.shape), directions)
    origins, directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
    voxel = np.zeros((len(directions), 3), np.int64)
    side, distance = np.full(len(directions), -1, np.int8), np.full(len(directions), np.inf)
    lower, size = np.array(spec.lower), np.array(spec.voxel_size)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    # Begin where the ray enters the grid: the caster gives up far from one, and takes the voxel's length before the
    # first layer for a part of it.
    with np.errstate(divide="ignore", invalid="ignore"):
        faces = (np.stack([lower, lower + size * spec.shape])[:, None] - origins) / unit
    enters = np.nan_to_num(np.minimum(*faces), nan=-np.inf).max(1)
    leaves = np.nan_to_num(np.maximum(*faces), nan=np.inf).min(1)
    begin = np.maximum(enters, near)
    rays = np.flatnonzero(np.isfinite(unit).all(1) & (leaves > begin))
    if len(rays):
        unit, begin = unit[rays], begin[rays]
        start = origins[rays] + begin[:, None] * unit
        far, index, hit = (part.numpy() for part in cast_rays(torch.from_numpy(drawn), start, unit, spec, "entry"))
        rays, unit, begin, start, far, index = (part[hit] for part in (rays, unit, begin, start, far, index))
        voxel[rays], distance[rays] = index, begin + far
        # The face is the one that the point of entry lies on, of the three that the ray can enter through.
        inner = (start + far[:, None] * unit - lower) / size - index
        off = np.where(unit > 0, np.abs(inner), np.where(unit < 0, np.abs(inner - 1), np.inf))
        axis = off.argmin(1)
        side[rays] = 2 * axis + (unit[np.arange(len(rays)), axis] < 0)
    return Hits(voxel.reshape(*shape, 3), side.reshape(shape), distance.reshape(shape))
