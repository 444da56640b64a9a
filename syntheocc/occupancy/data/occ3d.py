"""Occ3D-nuScenes labels, and OpenOcc v2 in the same layout: `<root>/<scene name>/<sample token>/labels.npz`.

Arrays `semantics`, `mask_lidar`, `mask_camera`, all [200, 200, 16], indexed x forward, y left, z up in ego at the key
frame's lidar time, 0.4 m from [-40, -40, -1]. 18 ids, 17 free (OpenOcc v2: 17 ids, 16 free). A mask is 1 where the
sensor observed the voxel. Panoptic copies add `instances` (specs/sparseocc.md 1.2).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import atomic_write_npz, read_npz
from syntheocc.occupancy.data.frames import Frame, about
from syntheocc.occupancy.grids import OCC3D_NUSCENES, OPENOCC_V2, OccupancyGrid, Preset

__all__ = ["Occ3DLabels", "occ3d_path", "read_masks", "read_occ3d", "write_occ3d"]


@dataclass(frozen=True, eq=False)
class Occ3DLabels:
    """One label file.

    Args:
        grid: the classes, in ego.
        mask_lidar, mask_camera: bool [X, Y, Z], observed by that sensor; None where the file has no such array.
        instances: integer [X, Y, Z], 0 none; None where the file is not a panoptic one.
    """

    grid: OccupancyGrid
    mask_lidar: Tensor | None = None
    mask_camera: Tensor | None = None
    instances: Tensor | None = None


def read_occ3d(path: str | os.PathLike, preset: Preset = OCC3D_NUSCENES) -> Occ3DLabels:
    """Read one `labels.npz`.

    Args:
        path: the file.
        preset: `OCC3D_NUSCENES` or `OPENOCC_V2`; the file does not say which it is.

    Raises:
        ValueError: truncated file, a missing array, a wrong shape, an unknown class id, a mask that is not 0 or 1,
            instances that are no integers.
    """
    arrays = read_npz(path, ["semantics"])
    for name in arrays.keys() & {"semantics", "mask_lidar", "mask_camera", "instances"}:
        if arrays[name].shape != preset.spec.shape:
            raise ValueError(
                f"{path}: {name} has shape {list(arrays[name].shape)}, want {list(preset.spec.shape)} [x, y, z]; "
                "is the file of another dataset?"
            )
    with about(str(path)):
        grid = OccupancyGrid(arrays["semantics"], *preset)
    masks = read_masks(arrays, preset.spec.shape, path)
    if "instances" in arrays and arrays["instances"].dtype.kind not in "iu":
        raise ValueError(f"{path}: instances are integers, got {arrays['instances'].dtype}; the file is damaged")
    instances = torch.from_numpy(arrays["instances"]) if "instances" in arrays else None
    return Occ3DLabels(grid, **masks, instances=instances)


def read_masks(arrays: Mapping[str, np.ndarray], shape: tuple[int, ...], path: str | os.PathLike) -> dict[str, Tensor]:
    """`mask_lidar` and `mask_camera` of a label file's arrays, those that it has, bool [X, Y, Z].

    Raises:
        ValueError: a mask of another shape, or with values other than 0 and 1.
    """
    masks = {}
    for name in ("mask_lidar", "mask_camera"):
        if name in arrays:
            if arrays[name].shape != shape:
                raise ValueError(f"{path}: {name} has shape {list(arrays[name].shape)}, the grid {list(shape)}")
            # The files' uint8 needs one comparison; anything else may hold -1 or 0.5.
            simple = arrays[name].dtype.kind in "bu"
            if not (arrays[name].max() <= 1 if simple else np.isin(arrays[name], (0, 1)).all()):
                raise ValueError(f"{path}: {name} holds values other than 0 and 1; the file is damaged")
            masks[name] = torch.from_numpy(arrays[name].astype(bool))
    return masks


def write_occ3d(labels: Occ3DLabels | OccupancyGrid, path: str | os.PathLike) -> None:
    """Write a `labels.npz`.

    Args:
        labels: labels, or a grid alone (its masks are written as observed everywhere).
        path: the file; appears by rename.

    Raises:
        ValueError: a geometry or class table other than Occ3D's or OpenOcc v2's, or a mask of another shape.
    """
    labels = Occ3DLabels(labels) if isinstance(labels, OccupancyGrid) else labels
    grid = labels.grid
    if grid.spec != OCC3D_NUSCENES.spec or grid.taxonomy not in (OCC3D_NUSCENES.taxonomy, OPENOCC_V2.taxonomy):
        raise ValueError(
            f"{path}: labels.npz holds {OCC3D_NUSCENES.spec} with the classes of occ3d or openocc_v2; the grid is "
            f"{grid.spec} with {grid.taxonomy.name!r}; resample or map it first"
        )
    arrays = {"semantics": grid.labels.cpu().numpy()}
    for name in ("mask_lidar", "mask_camera"):
        mask = getattr(labels, name)
        arrays[name] = np.ones(grid.spec.shape, np.uint8) if mask is None else mask.cpu().numpy().astype(np.uint8)
    if labels.instances is not None:
        arrays["instances"] = labels.instances.cpu().numpy()
    for name, array in arrays.items():
        if array.shape != grid.spec.shape:
            raise ValueError(f"{path}: {name} has shape {list(array.shape)}, the grid {list(grid.spec.shape)}")
    atomic_write_npz(path, **arrays)


def occ3d_path(root: str | os.PathLike, frame: Frame) -> Path:
    """Where the label file of a frame lies below Occ3D's `gts` (OpenOcc: `openocc_v2`) folder."""
    if not frame.scene:
        raise ValueError(
            f"sample {frame.token}: Occ3D's labels are sorted by scene name, which its source does not hold"
        )
    return Path(root) / frame.scene / frame.token / "labels.npz"
