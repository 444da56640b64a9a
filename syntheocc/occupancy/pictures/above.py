"""A grid from above. Legend: X Y Z voxels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from syntheocc.occupancy.pictures.basics import BACKGROUND, palette_picture, shaded
from syntheocc.occupancy.taxonomy import UNKNOWN

if TYPE_CHECKING:
    from syntheocc.occupancy.grids import OccupancyGrid

__all__ = ["bev_picture"]


def bev_picture(grid: OccupancyGrid, shade: bool = True, below: float | None = None) -> np.ndarray:
    """The grid from above, one pixel a voxel column: forward is up, left is left; the topmost occupied voxel shows.

    Args:
        grid: any frame; the axes that point forward, left and up come from `grid2ego` (identity for ego grids).
        shade: darken low voxels, so that a car stands out from the road.
        below: ignore voxels whose centre lies higher than this, metres in the grid's own up axis (tunnels, crowns).

    Returns:
        uint8 [forward, left, 3].
    """
    rotation = grid.grid2ego.numpy()[:3, :3]
    axes = np.abs(rotation).argmax(axis=1)
    if sorted(axes.tolist()) != [0, 1, 2]:
        raise ValueError(f"the grid's axes are not near the ego axes (grid2ego rotation {rotation.tolist()})")
    labels = np.transpose(grid.labels.detach().cpu().numpy(), axes)
    heights = (
        np.asarray(grid.spec.lower)[axes[2]]
        + (np.arange(labels.shape[2]) + 0.5) * (np.asarray(grid.spec.voxel_size)[axes[2]])
    )
    for axis in range(3):
        if rotation[axis, axes[axis]] < 0:
            labels = np.flip(labels, axis)
            heights = heights[::-1] if axis == 2 else heights
    occupied = (labels != grid.taxonomy.free) & (labels != UNKNOWN)
    if below is not None:
        occupied = occupied & (heights <= below)
    # argmax of the flipped column is the first occupied voxel from above
    top = labels.shape[2] - 1 - np.argmax(occupied[:, :, ::-1], axis=2)
    seen = occupied.any(axis=2)
    colors = palette_picture(np.take_along_axis(labels, top[..., None], axis=2)[..., 0], grid.taxonomy)
    if shade:
        colors = shaded(colors, top / max(labels.shape[2] - 1, 1), darkest=0.55)
    colors = np.where(seen[..., None], colors, np.asarray(BACKGROUND, dtype=np.uint8))
    return np.ascontiguousarray(colors[::-1, ::-1])
