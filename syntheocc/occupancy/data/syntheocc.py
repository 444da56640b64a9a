"""SyntheOcc's own labels: `<root>/dense_voxels_with_semantic_z-5/<lidar file name>.npy` (specs/syntheocc.md 1.1).

Integer rows [n, 4] = x, y, z, class in the lidar frame, 0.2 m (500x500x40) or 0.5 m (200x200x16), SyntheOcc's class
order (1 car ... 16 vegetation, 0 empty). 255 marks unknown voxels; the original files have none.
"""

import os
from pathlib import Path
from typing import Any

from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.voxel_rows import read_rows, write_rows
from syntheocc.occupancy.grids import SYNTHEOCC, SYNTHEOCC_COARSE, OccupancyGrid, Preset

__all__ = ["read_syntheocc", "syntheocc_path", "write_syntheocc"]

FOLDER = "dense_voxels_with_semantic_z-5"


def read_syntheocc(path: str | os.PathLike, lidar2ego: Any, preset: Preset = SYNTHEOCC) -> OccupancyGrid:
    """Read one label file.

    Args:
        path: the `.npy` file.
        lidar2ego: [4, 4], the sample's.
        preset: `SYNTHEOCC` (0.2 m) or `SYNTHEOCC_COARSE` (0.5 m); the file does not say which it is.

    Raises:
        ValueError: see `voxel_rows.read_rows`.
    """
    return read_rows(path, preset.spec, preset.taxonomy, lidar2ego)


def write_syntheocc(grid: OccupancyGrid, path: str | os.PathLike) -> None:
    """Write a grid of either resolution; ValueError for another geometry or class table."""
    spec = SYNTHEOCC_COARSE.spec if grid.spec == SYNTHEOCC_COARSE.spec else SYNTHEOCC.spec
    write_rows(path, grid, spec, SYNTHEOCC.taxonomy)


def syntheocc_path(root: str | os.PathLike, frame: Frame) -> Path:
    """Where the label file of a frame lies below the data root."""
    if frame.lidar_path is None:
        raise ValueError(f"sample {frame.token}: SyntheOcc's labels are named after the lidar file, which is unknown")
    return Path(root) / FOLDER / f"{frame.lidar_path.name}.npy"
