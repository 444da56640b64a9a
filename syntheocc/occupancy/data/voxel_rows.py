"""What the sparse `.npy` label formats share: rows of three voxel indices and a class.

`syntheocc`, `surroundocc` and `openoccupancy` differ in the order of the indices, the grid, the class table and what
class 0 means; everything else is here.
"""

import os
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from syntheocc.engine.files import atomic_write_npy, read_npy
from syntheocc.occupancy.data.frames import about
from syntheocc.occupancy.grids import GridSpec, OccupancyGrid
from syntheocc.occupancy.taxonomy import UNKNOWN, Taxonomy

__all__ = ["read_rows", "write_rows"]

XYZ = ("x", "y", "z")
ZYX = ("z", "y", "x")


def read_rows(
    path: str | os.PathLike,
    spec: GridSpec,
    taxonomy: Taxonomy,
    grid2ego: Tensor,
    columns: Sequence[str] = XYZ,
    zero_is_noise: bool = False,
) -> OccupancyGrid:
    """Read integer rows [n, 4] of voxel indices and class; voxels without a row are free.

    Args:
        path: `.npy` file.
        spec: the grid that the indices count in.
        taxonomy: the class table of column 3, whose free id fills the rest.
        grid2ego: [4, 4], the sample's lidar2ego for grids in the lidar frame.
        columns: which axis each of the first three columns counts.
        zero_is_noise: class 0 in the file is noise and becomes 255 (else it is the table's class 0).

    Raises:
        ValueError: truncated file, wrong shape or type, an index outside the grid, an unknown class id, a pose that is
            none. Where a voxel has several rows, the last one counts.
    """
    rows = read_npy(path)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(
            f"{path}: an array of shape {list(rows.shape)}; this format has rows [n, 4] of {', '.join(columns)}, class"
        )
    if rows.dtype.kind not in "iu":
        if rows.dtype.kind != "f" or not np.array_equal(rows, np.rint(rows)):
            raise ValueError(f"{path}: rows of type {rows.dtype} that are no whole numbers; indices are integers")
        rows = rows.astype(np.int64)
    index = rows[:, [list(columns).index(axis) for axis in XYZ]]
    for axis, size, values in zip(XYZ, spec.shape, index.T, strict=True):
        if len(rows) and (values.min() < 0 or values.max() >= size):
            bad = int(values.min()) if values.min() < 0 else int(values.max())
            raise ValueError(
                f"{path}: {axis} index {bad} outside 0..{size - 1} of a {'x'.join(map(str, spec.shape))} grid of "
                f"{spec.voxel_size[0]} m; is the file of another resolution, or are its columns in another order?"
            )
    classes = rows[:, 3]
    unknown = np.setdiff1d(classes, [*range(taxonomy.num_classes), UNKNOWN])
    if len(unknown):
        raise ValueError(
            f"{path}: class id {int(unknown[0])} is not in table {taxonomy.name!r} (0..{taxonomy.num_classes - 1}, "
            "255 unknown); is the file of another dataset?"
        )
    labels = np.full(spec.shape, taxonomy.free, dtype=np.uint8)
    labels[tuple(index.T)] = np.where((classes == 0) & zero_is_noise, UNKNOWN, classes)
    with about(str(path)):
        grid = OccupancyGrid(labels, spec, taxonomy, grid2ego)
    return grid


def write_rows(
    path: str | os.PathLike,
    grid: OccupancyGrid,
    spec: GridSpec,
    taxonomy: Taxonomy,
    columns: Sequence[str] = XYZ,
    zero_is_noise: bool = False,
    dtype: type = np.int64,
) -> None:
    """Write every voxel that is not free as a row; 255 becomes class 0 where 0 is noise, else it stays 255.

    Rows are sorted by x, y, z. ValueError when the grid has another geometry or class table.
    """
    if grid.spec != spec:
        raise ValueError(f"{path}: this format holds {spec}, the grid is {grid.spec}; resample the grid first")
    if grid.taxonomy != taxonomy:
        raise ValueError(
            f"{path}: this format holds the classes of {taxonomy.name!r}, the grid has {grid.taxonomy.name!r}; "
            f"use grid.map_to(taxonomy_named({taxonomy.name!r}))"
        )
    labels = grid.labels.cpu().numpy()
    index = np.argwhere(labels != taxonomy.free)
    classes = labels[tuple(index.T)].astype(np.int64)
    if zero_is_noise:
        classes[classes == UNKNOWN] = 0
    order = [XYZ.index(axis) for axis in columns]
    atomic_write_npy(path, np.concatenate([index[:, order], classes[:, None]], axis=1).astype(dtype))
