"""OpenOccupancy labels: `<root>/scene_<scene token>/occupancy/<lidar token>.npy`.

Integer rows [n, 4] = **z, y, x**, class in the lidar frame: 512x512x40 voxels of 0.2 m over [-51.2, 51.2]^2 x [-5, 3].
Alphabetical nuScenes classes 1..16. Class 0 in the file is noise: it becomes 255, and voxels without a row become 0,
free.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from syntheocc.occupancy.data.frames import Frame, plain_name
from syntheocc.occupancy.data.voxel_rows import ZYX, read_rows, write_rows
from syntheocc.occupancy.grids import OPENOCCUPANCY, OccupancyGrid

__all__ = ["openoccupancy_path", "read_openoccupancy", "write_openoccupancy"]


def read_openoccupancy(path: str | os.PathLike, lidar2ego: Any) -> OccupancyGrid:
    """Read one label file; `lidar2ego` [4, 4] is the sample's. ValueErrors as in `voxel_rows.read_rows`."""
    return read_rows(path, *OPENOCCUPANCY, lidar2ego, columns=ZYX, zero_is_noise=True)


def write_openoccupancy(grid: OccupancyGrid, path: str | os.PathLike) -> None:
    """Write a grid; ValueError for another geometry or class table."""
    write_rows(path, grid, *OPENOCCUPANCY, columns=ZYX, zero_is_noise=True, dtype=np.int32)


def openoccupancy_path(root: str | os.PathLike, frame: Frame) -> Path:
    """Where the label file of a frame lies below OpenOccupancy's own root."""
    scene_token, lidar_token = frame.extras.get("scene_token"), frame.extras.get("lidar_token")
    if not scene_token or not lidar_token:
        raise ValueError(
            f"sample {frame.token}: OpenOccupancy's labels are named after the scene and lidar tokens, which its "
            "source does not hold; read the nuScenes tables or OpenOccupancy's infos"
        )
    for token in (scene_token, lidar_token):
        plain_name(token, f"sample {frame.token}: the token")
    return Path(root) / f"scene_{scene_token}" / "occupancy" / f"{lidar_token}.npy"
