"""One door to the label formats: read, write or find the labels of a frame by the format's name."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.occ3d import occ3d_path, read_occ3d, write_occ3d
from syntheocc.occupancy.data.openoccupancy import openoccupancy_path, read_openoccupancy, write_openoccupancy
from syntheocc.occupancy.data.semantic_kitti import read_semantic_kitti, semantic_kitti_path, write_semantic_kitti
from syntheocc.occupancy.data.surroundocc import (
    SURROUNDOCC_FINE,
    read_surroundocc,
    surroundocc_path,
    write_surroundocc,
)
from syntheocc.occupancy.data.syntheocc import read_syntheocc, syntheocc_path, write_syntheocc
from syntheocc.occupancy.grids import (
    OCC3D_NUSCENES,
    OPENOCC_V2,
    OPENOCCUPANCY,
    SEMANTIC_KITTI,
    SURROUNDOCC,
    SYNTHEOCC,
    SYNTHEOCC_COARSE,
    OccupancyGrid,
    Preset,
)

__all__ = ["OCCUPANCY_KINDS", "occupancy_path", "preset_of", "read_occupancy", "write_occupancy"]


class _Kind(NamedTuple):
    preset: Preset
    read: Callable[[Any, Any], OccupancyGrid]  # path, lidar2ego
    write: Callable[[OccupancyGrid, Any], None]
    path: Callable[[Any, Frame], Path]


_KINDS = {
    "syntheocc": _Kind(SYNTHEOCC, read_syntheocc, write_syntheocc, syntheocc_path),
    "syntheocc_coarse": _Kind(
        SYNTHEOCC_COARSE, lambda p, t: read_syntheocc(p, t, SYNTHEOCC_COARSE), write_syntheocc, syntheocc_path
    ),
    "surroundocc": _Kind(SURROUNDOCC, read_surroundocc, write_surroundocc, surroundocc_path),
    "surroundocc_fine": _Kind(
        SURROUNDOCC_FINE, lambda p, t: read_surroundocc(p, t, SURROUNDOCC_FINE), write_surroundocc, surroundocc_path
    ),
    "openoccupancy": _Kind(OPENOCCUPANCY, read_openoccupancy, write_openoccupancy, openoccupancy_path),
    "occ3d": _Kind(OCC3D_NUSCENES, lambda p, t: read_occ3d(p).grid, write_occ3d, occ3d_path),
    "openocc_v2": _Kind(OPENOCC_V2, lambda p, t: read_occ3d(p, OPENOCC_V2).grid, write_occ3d, occ3d_path),
    "semantic_kitti": _Kind(SEMANTIC_KITTI, read_semantic_kitti, write_semantic_kitti, semantic_kitti_path),
}
OCCUPANCY_KINDS = tuple(_KINDS)


def read_occupancy(path: str | os.PathLike, kind: str, lidar2ego: Any = None) -> OccupancyGrid:
    """Read a label file.

    Args:
        path: the file.
        kind: one of `OCCUPANCY_KINDS`; the `_coarse` (0.5 m) and `_fine` (0.2 m) kinds are the other resolutions.
        lidar2ego: [4, 4], needed by all but the ego-frame kinds (occ3d, openocc_v2); the identity for semantic_kitti,
            whose ego is the velodyne frame.

    Raises:
        ValueError: an unknown kind, a missing lidar2ego, or what the format's own reader finds.
    """
    entry = _kind(kind)
    if lidar2ego is None and entry.preset.spec.frame != "ego":
        raise ValueError(f"{path}: {kind} labels lie in the lidar frame; pass the sample's lidar2ego [4, 4]")
    return entry.read(path, lidar2ego)


def write_occupancy(grid: OccupancyGrid, path: str | os.PathLike, kind: str) -> None:
    """Write a label file of a kind; ValueError where the grid's geometry or class table is another kind's."""
    entry = _kind(kind)
    if grid.spec != entry.preset.spec or grid.taxonomy != entry.preset.taxonomy:
        raise ValueError(
            f"{path}: {kind} labels are {entry.preset.spec} with the classes of {entry.preset.taxonomy.name!r}; the "
            f"grid is {grid.spec} with {grid.taxonomy.name!r}; resample or map it first"
        )
    entry.write(grid, path)


def occupancy_path(root: str | os.PathLike, frame: Frame, kind: str) -> Path:
    """Where a frame's label file of a kind lies below that dataset's root; ValueError where a name is unknown."""
    return _kind(kind).path(root, frame)


def preset_of(kind: str) -> Preset:
    """The grid and class table of a kind."""
    return _kind(kind).preset


def _kind(kind: str) -> _Kind:
    if kind not in _KINDS:
        raise ValueError(f"unknown occupancy kind {kind!r}; known: {', '.join(OCCUPANCY_KINDS)}")
    return _KINDS[kind]
