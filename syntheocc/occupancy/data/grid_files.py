"""An occupancy grid as one file that says everything about itself: `.npz` of labels, geometry and class table.

| array        | content                                                                                     |
|--------------|---------------------------------------------------------------------------------------------|
| `labels`     | integers [X, Y, Z], class ids of the table; 255 unknown                                      |
| `lower`      | three metres: the lower corner of voxel (0, 0, 0) in the grid's own frame                    |
| `voxel_size` | one number or three, metres                                                                  |
| `taxonomy`   | name of a class table (`syntheocc.occupancy.taxonomy.TAXONOMIES`)                            |
| `grid2ego`   | 4x4, optional: the grid's frame to ego (x forward, y left, z up); left out: the grid is in ego |

For people who have a grid and no data set; the data sets' own formats are in `occupancy_files`.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from syntheocc.engine.files import atomic_write_npz, read_npz
from syntheocc.occupancy.grids import GridSpec, OccupancyGrid
from syntheocc.occupancy.taxonomy import taxonomy_named

__all__ = ["read_grid_file", "write_grid_file"]


def read_grid_file(path: str | os.PathLike) -> OccupancyGrid:
    """Read a grid.

    Raises:
        ValueError: an array that is missing or of another kind, an unknown class table, ids beyond it.
    """
    arrays = read_npz(path, ["labels", "lower", "voxel_size", "taxonomy"])
    labels, lower, size = arrays["labels"], arrays["lower"], arrays["voxel_size"]
    if labels.ndim != 3:
        raise ValueError(f"{path}: labels must be [X, Y, Z], got shape {labels.shape}")
    if lower.shape != (3,) or size.shape not in ((), (1,), (3,)):
        raise ValueError(f"{path}: lower is three metres and voxel_size one or three, got {lower} and {size}")
    try:
        corner, edges = lower.astype(np.float64).tolist(), np.broadcast_to(size.astype(np.float64), 3).tolist()
        frame = "world" if "grid2ego" in arrays else "ego"
        spec = GridSpec(tuple(corner), tuple(edges), labels.shape, frame)
        return OccupancyGrid(labels, spec, taxonomy_named(str(arrays["taxonomy"])), arrays.get("grid2ego"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_grid_file(
    grid: OccupancyGrid, path: str | os.PathLike, masks: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write a grid; the file appears by rename.

    Args:
        grid: the grid.
        path: the file.
        masks: further arrays [X, Y, Z] of the file, such as `mask_lidar` and `mask_camera`.

    Raises:
        ValueError: a class table that is none of this package's, and could not be read back.
    """
    if taxonomy_named(grid.taxonomy.name) != grid.taxonomy:
        raise ValueError(f"{path}: the taxonomy {grid.taxonomy.name!r} is not this package's; map the grid to one")
    arrays: dict[str, Any] = {
        "labels": grid.labels.cpu().numpy(),
        "lower": np.array(grid.spec.lower),
        "voxel_size": np.array(grid.spec.voxel_size),
        "taxonomy": np.array(grid.taxonomy.name),
    }
    if grid.spec.frame != "ego" or not np.array_equal(grid.grid2ego.numpy(), np.eye(4)):
        arrays["grid2ego"] = grid.grid2ego.numpy()
    arrays |= masks or {}
    atomic_write_npz(path, **arrays)
