"""SurroundOcc labels: `<root>/samples/<lidar file name>.npy`.

Integer rows [n, 4] = x, y, z, class in the lidar frame: 200x200x16 voxels of 0.5 m over [-50, 50]^2 x [-5, 3] (0.2 m
exists too: 500x500x40). Alphabetical nuScenes classes 1..16. Class 0 in the file is noise: it becomes 255, and voxels
without a row become 0, free.
"""

import os
from pathlib import Path
from typing import Any

from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.voxel_rows import read_rows, write_rows
from syntheocc.occupancy.grids import SURROUNDOCC, SYNTHEOCC, OccupancyGrid, Preset

__all__ = ["SURROUNDOCC_FINE", "read_surroundocc", "surroundocc_path", "write_surroundocc"]

SURROUNDOCC_FINE = Preset(SYNTHEOCC.spec, SURROUNDOCC.taxonomy)


def read_surroundocc(path: str | os.PathLike, lidar2ego: Any, preset: Preset = SURROUNDOCC) -> OccupancyGrid:
    """Read one label file.

    Args:
        path: the `.npy` file.
        lidar2ego: [4, 4], the sample's.
        preset: `SURROUNDOCC` (0.5 m) or `SURROUNDOCC_FINE` (0.2 m); the file does not say which it is.

    Raises:
        ValueError: see `voxel_rows.read_rows`.
    """
    return read_rows(path, preset.spec, preset.taxonomy, lidar2ego, zero_is_noise=True)


def write_surroundocc(grid: OccupancyGrid, path: str | os.PathLike) -> None:
    """Write a grid of either resolution; ValueError for another geometry or class table."""
    spec = SURROUNDOCC_FINE.spec if grid.spec == SURROUNDOCC_FINE.spec else SURROUNDOCC.spec
    write_rows(path, grid, spec, SURROUNDOCC.taxonomy, zero_is_noise=True)


def surroundocc_path(root: str | os.PathLike, frame: Frame) -> Path:
    """Where the label file of a frame lies below SurroundOcc's own root."""
    if frame.lidar_path is None:
        raise ValueError(
            f"sample {frame.token}: SurroundOcc's labels are named after the lidar file, which is unknown"
        )
    return Path(root) / "samples" / f"{frame.lidar_path.name}.npy"
