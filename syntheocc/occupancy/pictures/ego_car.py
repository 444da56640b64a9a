"""The ego car as it is drawn into pictures: a few thousand small voxels in the shape of a hatchback.

A drawing, not a measurement: 4.1 m x 1.8 m x 1.5 m (about nuScenes' Renault Zoe), origin on the ground below the
middle of the rear axle, as nuScenes' ego frame has it.
"""

from functools import lru_cache

import numpy as np

from syntheocc.occupancy.grids import GridSpec, OccupancyGrid
from syntheocc.occupancy.pictures.colors import VoxelColors

__all__ = ["CAR_SPEC", "VELODYNE_CAR2EGO", "car2ego_of", "car_colors"]

CAR_SPEC = GridSpec(lower=(-0.8, -0.9, 0.0), voxel_size=(0.1, 0.1, 0.1), shape=(41, 18, 15))
# KITTI's ego is its velodyne, 1.73 m above the road and, on that car, 0.76 m before the rear axle.
VELODYNE_CAR2EGO = np.array([[1.0, 0, 0, -0.76], [0, 1, 0, 0], [0, 0, 1, -1.73], [0, 0, 0, 1]])

_BODY, _GLASS, _TYRE, _LAMP = (242, 242, 245), (52, 62, 78), (28, 28, 30), (200, 30, 30)
# Height of the outline at places along the car, metres.
_ALONG = (-0.8, -0.65, -0.2, 1.35, 2.2, 3.1, 3.3)
_HEIGHT = (0.75, 1.05, 1.45, 1.5, 1.0, 0.8, 0.6)
_BELT = 0.95
_WHEELS, _WHEEL_RADIUS = (0.0, 2.6), 0.34


@lru_cache(maxsize=1)
def car_colors() -> VoxelColors:
    """Which voxels of `CAR_SPEC` the car fills, and their colours; read only."""
    x, y, z = np.moveaxis(CAR_SPEC.centers().numpy(), -1, 0)
    roof = np.interp(x, _ALONG, _HEIGHT)
    # The cabin leans in above the belt line, the bumpers are rounded.
    half = 0.88 - 0.35 * np.clip(z - _BELT, 0, None) - 0.15 * np.clip(np.abs(x - 1.25) - 1.85, 0, None)
    hub = np.minimum(*(np.hypot(x - wheel, z - _WHEEL_RADIUS) for wheel in _WHEELS))
    wheel = (hub < _WHEEL_RADIUS) & (np.abs(y) > 0.6) & (np.abs(y) < 0.88)
    body = (z < roof) & (np.abs(y) < half) & (z > 0.2)
    body &= (hub > _WHEEL_RADIUS + 0.06) | (np.abs(y) < 0.6)
    slope = np.abs(np.gradient(roof, axis=0))
    side_glass = (np.abs(y) > half - 0.12) & (z < 1.38) & (x > -0.3) & (x < 1.75) & (np.abs(x - 0.75) > 0.06)
    screens = (slope > 0.045) & (np.abs(y) < half - 0.1) & (z > roof - 0.16)
    glass = body & (z > _BELT) & (side_glass | screens)
    colors = np.empty((*CAR_SPEC.shape, 3), np.uint8)
    colors[:] = _BODY
    colors[glass] = _GLASS
    colors[body & (x < -0.6) & (z > 0.65) & (z < 0.85) & (np.abs(y) > 0.5)] = _LAMP
    colors[wheel] = _TYRE
    return VoxelColors(body | wheel, colors)


def car2ego_of(grid: OccupancyGrid) -> np.ndarray | None:
    """Where the car stands, [4, 4]; None for grids that hang on no car (a camera's frame, a room).

    At the origin of ego; below it where a lidar-frame grid has the identity as pose, since then ego is the velodyne
    (SemanticKITTI's reader).
    """
    if grid.spec.frame not in ("ego", "lidar"):
        return None
    is_velodyne = grid.spec.frame == "lidar" and np.array_equal(grid.grid2ego.numpy(), np.eye(4))
    return (VELODYNE_CAR2EGO if is_velodyne else np.eye(4)).copy()
