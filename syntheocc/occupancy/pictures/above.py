"""A grid from above. Legend: X Y Z voxels, H W pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from syntheocc.occupancy.pictures.basics import BACKGROUND, shaded
from syntheocc.occupancy.pictures.colors import VoxelColors, class_colors
from syntheocc.occupancy.pictures.ego_car import CAR_SPEC, car2ego_of, car_colors

if TYPE_CHECKING:
    from syntheocc.occupancy.grids import OccupancyGrid

__all__ = ["bev_picture"]


def bev_picture(
    grid: OccupancyGrid,
    shade: bool = True,
    below: float | None = None,
    *,
    scale: int = 1,
    ego: bool = False,
    colors: VoxelColors | None = None,
    background: tuple[int, int, int] = BACKGROUND,
) -> np.ndarray:
    """The grid from above: forward is up, left is left; the topmost occupied voxel of a column shows.

    Args:
        grid: any frame; the axes that point forward, left and up come from `grid2ego` (identity for ego grids).
        shade: darken low voxels, so that a car stands out from the road.
        below: ignore voxels whose centre lies higher than this, metres in the grid's own up axis (tunnels, crowns).
        scale: pixels along each side of a voxel column.
        ego: draw the ego car, which a voxel is coarse for: use a scale of 3 or more. Grids that hang on no car have
            none.
        colors: what to draw instead of the classes (`panoptic_colors`, `error_colors`, ...).
        background: RGB of columns with nothing in them.

    Returns:
        uint8 [forward * scale, left * scale, 3].

    Raises:
        ValueError: a scale below one, or a grid whose axes are not near the ego axes.
    """
    if scale < 1:
        raise ValueError(f"scale is a number of pixels, 1 or more, got {scale}")
    rotation = grid.grid2ego.numpy()[:3, :3]
    axes = np.abs(rotation).argmax(axis=1)
    if sorted(axes.tolist()) != [0, 1, 2]:
        raise ValueError(f"the grid's axes are not near the ego axes (grid2ego rotation {rotation.tolist()})")
    shown = class_colors(grid) if colors is None else colors
    drawn, tints = np.transpose(shown.drawn, axes), np.transpose(shown.colors, (*axes, 3))
    lower, size = np.asarray(grid.spec.lower)[axes], np.asarray(grid.spec.voxel_size)[axes]
    # Centres along each ego axis, in the grid's own coordinates.
    centers = [lower[i] + (np.arange(drawn.shape[i]) + 0.5) * size[i] for i in range(3)]
    for axis in range(3):
        if rotation[axis, axes[axis]] < 0:
            drawn, tints, centers[axis] = np.flip(drawn, axis), np.flip(tints, axis), centers[axis][::-1]
    if below is not None:
        drawn = np.logical_and(drawn, centers[2] <= below)
    # argmax of the flipped column is the first occupied voxel from above
    top = drawn.shape[2] - 1 - np.argmax(drawn[:, :, ::-1], axis=2)
    picture = np.take_along_axis(tints, top[..., None, None], axis=2)[:, :, 0]
    if shade:
        picture = shaded(picture, top / max(drawn.shape[2] - 1, 1), darkest=0.72)
    picture = np.where(np.any(drawn, axis=2)[..., None], picture, np.asarray(background, dtype=np.uint8))
    picture = np.ascontiguousarray(picture[::-1, ::-1].repeat(scale, 0).repeat(scale, 1))
    car2ego = car2ego_of(grid) if ego else None
    if car2ego is not None:
        _park(picture, grid, axes, centers, car2ego)
    return picture


def _park(
    picture: np.ndarray, grid: OccupancyGrid, axes: np.ndarray, centers: list[np.ndarray], car2ego: np.ndarray
) -> None:
    """Draw the car [H, W, 3] from above into a picture, pixel by pixel."""
    along = []
    for axis, pixels in enumerate(picture.shape[:2]):
        count = len(centers[axis])
        cells = (np.arange(pixels) + 0.5) * count / pixels - 0.5  # in units of columns
        step = centers[axis][1] - centers[axis][0] if count > 1 else 0.0
        along.append((centers[axis][0] + cells * step)[::-1])
    points = np.zeros((*picture.shape[:2], 3))
    points[..., axes[0]], points[..., axes[1]] = along[0][:, None], along[1]
    ego2car, grid2ego = np.linalg.inv(car2ego), grid.grid2ego.numpy()
    grid2car = ego2car @ grid2ego
    # Straight down from the picture: of the car's frame only the place on the ground counts.
    spot = (points @ grid2car[:2, :3].T + grid2car[:2, 3] - CAR_SPEC.lower[:2]) / CAR_SPEC.voxel_size[:2]
    cell = np.floor(spot).astype(int)
    inside = ((cell >= 0) & (cell < CAR_SPEC.shape[:2])).all(-1)
    car = car_colors()
    x, y = cell[inside].T
    column = car.drawn[x, y]
    height = column.shape[1] - 1 - column[:, ::-1].argmax(1)
    rows = np.argwhere(inside)[column.any(1)]
    picture[rows[:, 0], rows[:, 1]] = car.colors[x, y, height][column.any(1)]
