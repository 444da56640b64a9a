"""Predictions as OccFlowNet saves them: one file a scene, one array a sample.

| file                                     | arrays, by sample token                                               |
|------------------------------------------|-----------------------------------------------------------------------|
| `<root>/<config>/occupancy/<scene>.npz`  | uint8 [X, Y, Z] most likely class of each voxel, occupied or not      |
| `<root>/<config>/free_space/<scene>.npz` | bool [thresholds, X, Y, Z], True where it is free at a threshold      |

A grid is the classes with free where one of the layers says so (`with_free`), so thresholds are compared without
predicting again. Specification: specs/occflownet_splattingocc.md 3.7.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import atomic_write_npz, read_npz

__all__ = ["free_space", "prediction_paths", "read_scene_predictions", "with_free", "write_scene_predictions"]


def prediction_paths(root: str | os.PathLike, config: str, scene: str) -> tuple[Path, Path]:
    """The two files of a scene: classes and free space."""
    base = Path(root) / config
    return base / "occupancy" / f"{scene}.npz", base / "free_space" / f"{scene}.npz"


def write_scene_predictions(
    classes: Mapping[str, Tensor],
    free: Mapping[str, Tensor],
    root: str | os.PathLike,
    config: str,
    scene: str,
) -> tuple[Path, Path]:
    """Write a scene's files; each appears by rename.

    Args:
        classes: sample token -> integer [X, Y, Z] most likely class of each voxel, whether it is occupied or not.
        free: sample token -> bool [thresholds, X, Y, Z].
        root: what `--save-occ-path` names.
        config: name of the run's configuration.
        scene: name of the scene.

    Returns:
        the two files.

    Raises:
        ValueError: samples that are in one of the two only, shapes that differ, or classes beyond 0..255.
    """
    if classes.keys() != free.keys():
        raise ValueError(f"{scene}: samples with classes or free space only: {sorted(classes.keys() ^ free.keys())}")
    for token, grid in classes.items():
        if free[token].shape[1:] != grid.shape or free[token].dtype != torch.bool:
            raise ValueError(
                f"{scene}, sample {token}: free space is bool [thresholds, X, Y, Z] of a grid {list(grid.shape)}, got "
                f"{free[token].dtype} {list(free[token].shape)}"
            )
        if grid.dtype.is_floating_point or grid.numel() and not 0 <= int(grid.min()) <= int(grid.max()) <= 255:
            raise ValueError(f"{scene}, sample {token}: classes are integers from 0 to 255")
    paths = prediction_paths(root, config, scene)
    atomic_write_npz(paths[0], **{token: grid.cpu().numpy().astype(np.uint8) for token, grid in classes.items()})
    atomic_write_npz(paths[1], **{token: layers.cpu().numpy() for token, layers in free.items()})
    return paths


def read_scene_predictions(root: str | os.PathLike, config: str, scene: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Sample token -> (uint8 [X, Y, Z] classes, bool [thresholds, X, Y, Z] free space) of a scene.

    Raises:
        ValueError: a file is missing, damaged, or holds other samples than its fellow.
    """
    paths = prediction_paths(root, config, scene)
    classes, free = (read_npz(path, []) for path in paths)
    if classes.keys() != free.keys():
        raise ValueError(f"{paths[0]} and {paths[1]} hold different samples: {sorted(classes.keys() ^ free.keys())}")
    found = {}
    for token, grid in classes.items():
        if free[token].dtype != bool or free[token].shape[1:] != grid.shape or grid.dtype != np.uint8:
            raise ValueError(f"{paths[1]}, sample {token}: free space does not fit the classes of {paths[0]}")
        found[token] = torch.from_numpy(grid), torch.from_numpy(free[token])
    return found


def free_space(density: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Which voxels are free at each threshold: density [...] (activated) to bool [thresholds, ...].

    A voxel is occupied where its density is above the threshold, as `VolumeModel.labels` decides.
    """
    return torch.stack([~(density > threshold) for threshold in thresholds])


def with_free(classes: Tensor, layer: Tensor, free: int = 17) -> Tensor:
    """Labels of a saved prediction: uint8 [X, Y, Z] classes, `free` where one layer [X, Y, Z] of its free space is."""
    return torch.where(layer, free, classes).to(torch.uint8)
