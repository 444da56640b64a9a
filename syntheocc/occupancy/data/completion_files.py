"""Predictions of scene completion as OccDepth's and MonoScene's scripts keep them, one file a frame.

* ``y_pred``, ``target``: uint16 [X, Y, Z] classes (those of NYUv2 [x, up, y]); target 255 is unknown;
* ``fov_mask_1`` (TartanAir: ``fov_mask_1_1``): bool [V, N, 1], voxels x slowest: the nearest pixel of the voxel's
  centre is in the picture;
* KITTI and TartanAir: ``cam_k`` [V, 3, 3] pixels, ``T_velo_2_cam`` [V, 4, 4] from the grid's frame to the camera;
* NYUv2: ``cam_pose`` [4, 4] camera to world, ``vox_origin`` [3] lower corner of the grid, metres.

The originals are pickles, ``output/kitti/08/NNNNNN.pkl`` and ``output/NYU/NAME.pkl``; those of one view lack the axis
V. They are read without running code. What is written here is an .npz of the same keys: ``dict(numpy.load(path))``.
Source: specs/occdepth.md 4.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from syntheocc.engine.files import atomic_write_npz, read_npz
from syntheocc.engine.unpickling import safe_load
from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.data import nyuv2, tartanair
from syntheocc.occupancy.data.frames import about
from syntheocc.occupancy.grids import NYUV2, SEMANTIC_KITTI, TARTANAIR, OccupancyGrid, Preset
from syntheocc.occupancy.transforms import invert_rigid

__all__ = ["CompletionFile", "read_completion_file", "write_completion_file"]

# Height and width of the pictures, which the files do not say.
_SIZES = {"semantic_kitti": (370, 1220), "nyuv2": nyuv2.IMAGE_SIZE, "tartanair": tartanair.IMAGE_SIZE}
_PRESETS: dict[str, Preset] = {"semantic_kitti": SEMANTIC_KITTI, "nyuv2": NYUV2, "tartanair": TARTANAIR}


@dataclass(frozen=True, eq=False)
class CompletionFile:
    """One frame.

    Args:
        prediction: the predicted classes, in ego (KITTI: the velodyne's frame; NYUv2: the world).
        truth: None where the file has none.
        cameras: "left" and, of two views, "right".
        in_view: bool [X, Y, Z], voxels that a camera shows; None where the file does not say.
    """

    prediction: OccupancyGrid
    truth: OccupancyGrid | None
    cameras: CameraRig
    in_view: np.ndarray | None = None


def read_completion_file(
    path: str | os.PathLike, kind: str = "semantic_kitti", size: tuple[int, int] | None = None
) -> CompletionFile:
    """Read a .pkl of the originals or an .npz of `write_completion_file`.

    Args:
        path: the file.
        kind: "semantic_kitti", "nyuv2" or "tartanair".
        size: height and width of the pictures; empty: those of the published configurations.

    Raises:
        ValueError: an unknown kind, a damaged file, missing keys, or arrays of another shape.
    """
    path = Path(path)
    if kind not in _PRESETS:
        raise ValueError(f"there is no data set {kind!r}; there are {', '.join(_PRESETS)}")
    values: Any = read_npz(path, ["y_pred"]) if path.suffix == ".npz" else safe_load(path)
    if not isinstance(values, dict) or "y_pred" not in values:
        raise ValueError(f"{path}: holds no prediction (y_pred); is it of generate_output.py?")
    with about(str(path)):
        return _parsed(values, kind, size or _SIZES[kind])


def write_completion_file(
    path: str | os.PathLike,
    prediction: OccupancyGrid,
    rig: CameraRig,
    truth: OccupancyGrid | None = None,
) -> None:
    """Write an .npz with the keys of the originals, by rename.

    Args:
        path: ends in .npz.
        prediction: of SemanticKITTI, NYUv2 or TartanAir.
        rig: the cameras, left first; of NYUv2 one.
        truth: of the same grid.

    Raises:
        ValueError: another suffix, or a grid of another data set.
    """
    from syntheocc.occupancy.pictures.wires import seen_by

    path = Path(path)
    kind = next((name for name, preset in _PRESETS.items() if preset.taxonomy == prediction.taxonomy), None)
    if path.suffix != ".npz" or kind is None:
        raise ValueError(f"{path}: an .npz of semantic_kitti, nyuv2 or tartanair, got {prediction.taxonomy.name!r}")
    grids = {"y_pred": prediction} | ({} if truth is None else {"target": truth})
    arrays: dict[str, np.ndarray] = {}
    for name, grid in grids.items():
        labels = grid.labels.cpu().numpy().astype(np.uint16)
        arrays[name] = labels.transpose(0, 2, 1) if kind == "nyuv2" else labels
    cameras = list(rig.values())
    if kind == "nyuv2":
        arrays["cam_pose"] = cameras[0].cam2ego.numpy()
        arrays["vox_origin"] = (prediction.grid2ego[:3, 3] + torch.tensor(prediction.spec.lower)).numpy()
    else:
        grid2ego = prediction.grid2ego
        seen = [seen_by(prediction, CameraRig({"camera": camera})).reshape(-1, 1) for camera in cameras]
        arrays["fov_mask_1_1" if kind == "tartanair" else "fov_mask_1"] = np.stack(seen)
        arrays["cam_k"] = np.stack([camera.intrinsics.numpy() for camera in cameras])
        arrays["T_velo_2_cam"] = np.stack([(camera.ego2cam @ grid2ego).numpy() for camera in cameras])
    if kind == "tartanair":
        arrays["vox_origin"] = np.array(TARTANAIR.spec.lower)
    atomic_write_npz(path, **arrays)


def _parsed(values: dict[str, Any], kind: str, size: tuple[int, int]) -> CompletionFile:
    preset = _PRESETS[kind]
    pose = torch.eye(4, dtype=torch.float64)
    if kind == "nyuv2":
        _need(values, ("cam_pose", "vox_origin"))
        pose[:3, 3] = torch.from_numpy(np.asarray(values["vox_origin"], np.float64).reshape(3))
        cam2world = np.asarray(values["cam_pose"], np.float64).reshape(4, 4)
        cameras = {"left": Camera(nyuv2.INTRINSICS, cam2world, *size)}
    else:
        _need(values, ("cam_k", "T_velo_2_cam"))
        intrinsics = np.asarray(values["cam_k"], np.float64).reshape(-1, 3, 3)
        transforms = np.asarray(values["T_velo_2_cam"], np.float64).reshape(-1, 4, 4)
        if len(intrinsics) != len(transforms) or len(transforms) > 2:
            raise ValueError(f"{len(intrinsics)} cam_k and {len(transforms)} T_velo_2_cam; there are one or two views")
        names = ("left", "right")
        cameras = {
            name: Camera(k, invert_rigid(torch.from_numpy(t.copy())), *size)
            for name, k, t in zip(names, intrinsics, transforms, strict=False)
        }
    grids = [_grid(values[name], preset, kind, pose) if name in values else None for name in ("y_pred", "target")]
    assert grids[0] is not None
    mask = values.get("fov_mask_1", values.get("fov_mask_1_1"))
    in_view = None
    if mask is not None:
        voxels = int(np.prod(preset.spec.shape))
        flags = np.asarray(mask).astype(bool).reshape(-1, voxels, np.asarray(mask).shape[-1])
        in_view = np.asarray(flags.any((0, 2))).reshape(preset.spec.shape)
    return CompletionFile(grids[0], grids[1], CameraRig(cameras), in_view)


def _grid(labels: Any, preset: Preset, kind: str, pose: torch.Tensor) -> OccupancyGrid:
    array = np.asarray(labels)
    return OccupancyGrid(array.transpose(0, 2, 1) if kind == "nyuv2" else array, *preset, pose)


def _need(values: dict[str, Any], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}, has {', '.join(values)}; is it of another data set?")
