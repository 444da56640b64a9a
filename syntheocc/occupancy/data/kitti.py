"""KITTI odometry sequences (and the object benchmark's calibration): stereo rigs, poses, velodyne scans, depth.

`<root>/sequences/XX/` holds `calib.txt` (rows P0..P3 and Tr, 12 numbers each), `poses.txt`, `times.txt`,
`image_2/NNNNNN.png` (left), `image_3/NNNNNN.png` (right) and `velodyne/NNNNNN.bin` (float32 x, y, z, remission).

**`ego` is the velodyne frame here** (x forward, y left, z up, at the sensor): KITTI calibrates no vehicle frame, and
SemanticKITTI's grids and OccDepth's numbers count from the velodyne. `lidar2ego` is the identity.

The calibration is `occupancy.data.kitti_calib`'s, whose names can be had here.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import atomic_write_text
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.kitti_calib import (
    STEREO,
    KittiCalibration,
    calibration_of,
    floats_of,
    homogeneous_of,
    read_calib,
    read_projections,
    stereo_rig,
    text_lines,
    write_calib,
)
from syntheocc.occupancy.data.lidar import read_lidar, write_lidar
from syntheocc.occupancy.data.picture_sizes import png_size
from syntheocc.occupancy.data.png16 import read_png16, write_png16
from syntheocc.occupancy.transforms import invert_rigid

__all__ = [
    "STEREO",
    "KittiCalibration",
    "calibration_of",
    "read_calib",
    "read_depth",
    "read_poses",
    "read_projections",
    "read_scan",
    "read_sequence",
    "read_times",
    "stereo_rig",
    "write_calib",
    "write_depth",
    "write_poses",
    "write_scan",
    "write_times",
]

_DEPTH_UNITS = 256.0  # a metre in a depth picture


def read_poses(path: str | os.PathLike) -> Tensor:
    """Read a `poses.txt`: camera 0 of each frame to camera 0 of the first, float64 [N, 4, 4] metres.

    Raises:
        ValueError: a line that is not twelve finite numbers or is no rigid transform.
    """
    poses = []
    for number, line in enumerate(text_lines(path), start=1):
        values = floats_of(line, path, number)
        if len(values) != 12:
            raise ValueError(f"{path}: line {number} has {len(values)} numbers, want the 12 of a pose [3, 4]")
        poses.append(homogeneous_of(values))
    stacked = torch.stack(poses) if poses else torch.zeros(0, 4, 4, dtype=torch.float64)
    rotation = stacked[:, :3, :3]
    off = (rotation @ rotation.transpose(1, 2) - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2))
    bad = ~(off < 1e-3) | ~torch.isfinite(stacked).all(-1).all(-1)
    if bool(bad.any()):
        raise ValueError(f"{path}: line {int(bad.nonzero()[0]) + 1} is no rigid transform; the file is damaged")
    return stacked


def write_poses(poses: Tensor, path: str | os.PathLike) -> None:
    """Write poses float64 [N, 4, 4] (camera 0 to camera 0 of the first frame), one line each."""
    rows = torch.as_tensor(poses, dtype=torch.float64)[:, :3].flatten(1).tolist()
    atomic_write_text(path, "".join(" ".join(f"{v:.12e}" for v in row) + "\n" for row in rows))


def read_times(path: str | os.PathLike) -> list[float]:
    """Read a `times.txt`: seconds since the first frame, one a line; ValueError for anything else."""
    times = [floats_of(line, path, number) for number, line in enumerate(text_lines(path), start=1)]
    for number, values in enumerate(times, start=1):
        if len(values) != 1 or not np.isfinite(values[0]):
            raise ValueError(f"{path}: line {number} is not one finite number of seconds: {values}")
    return [values[0] for values in times]


def write_times(times: Iterable[float], path: str | os.PathLike) -> None:
    """Write seconds, one a line."""
    atomic_write_text(path, "".join(f"{time:.6e}\n" for time in times))


def read_scan(path: str | os.PathLike) -> np.ndarray:
    """Read a velodyne `.bin`: float32 [N, 4] x, y, z (metres, velodyne frame) and remission (0..1)."""
    return read_lidar(path, columns=4)


def write_scan(points: np.ndarray, path: str | os.PathLike) -> None:
    """Write float32 [N, 4] x, y, z, remission; ValueError for another number of columns."""
    if np.ndim(points) != 2 or np.shape(points)[1] != 4:
        raise ValueError(f"{path}: a velodyne scan is [N, 4] x, y, z, remission, got {list(np.shape(points))}")
    write_lidar(points, path)


def read_depth(path: str | os.PathLike) -> np.ndarray:
    """Read a depth `.png` (uint16, 1/256 m): float32 [H, W] metres along the optical axis, 0 where there is none."""
    return read_png16(path).astype(np.float32) / np.float32(_DEPTH_UNITS)


def write_depth(depth: np.ndarray, path: str | os.PathLike) -> None:
    """Write depth [H, W] metres as a KITTI `.png`; what is not finite, not positive or past 255.99 m becomes 0."""
    units = np.rint(np.nan_to_num(np.asarray(depth, np.float64), nan=0.0, posinf=0.0, neginf=0.0) * _DEPTH_UNITS)
    write_png16(np.where((units > 0) & (units <= 65535), units, 0).astype(np.uint16), path)


def read_sequence(
    folder: str | os.PathLike, cameras: Iterable[str] = tuple(STEREO), names: Iterable[str] | None = None
) -> list[Frame]:
    """The frames of `<root>/sequences/XX`, in order.

    Args:
        folder: the sequence's folder.
        cameras: which of `STEREO`; every frame needs a picture of each.
        names: NNNNNN of the frames; those that have a picture of the first camera unless given. The pictures of given
            frames are not looked at: all are taken to be of the size of the camera's first one.

    Returns:
        Frames with token `XX_NNNNNN`, scene `XX`, ego the velodyne frame, ego2global its pose against the first
        velodyne, occupancy_path the `.label` of the voxels where it exists, and extras "frame" (NNNNNN),
        "point_labels" (path) where the scan is labelled. Without `poses.txt` (test split) ego2global is None; without
        `times.txt` frames are 100 ms apart, as KITTI records.

    Raises:
        ValueError: no calibration or pictures, fewer poses or times than frames, or a damaged file among these.
    """
    folder, cameras = Path(folder), list(cameras)
    calibration = read_calib(folder / "calib.txt")
    times = read_times(folder / "times.txt") if (folder / "times.txt").is_file() else None
    poses = read_poses(folder / "poses.txt") if (folder / "poses.txt").is_file() else None
    lidar2cam0 = calibration.lidar2cam0
    used = {camera: STEREO[camera] for camera in cameras}
    common = None if names is None else stereo_rig(calibration, {c: _first_size(folder / c) for c in cameras}, used)
    frames = []
    for name in sorted(path.stem for path in (folder / cameras[0]).glob("*.png")) if names is None else names:
        paths = {camera: folder / camera / f"{name}.png" for camera in cameras}
        if not name.isdigit():
            raise ValueError(f"{paths[cameras[0]]}: pictures of a sequence are named by their number, NNNNNN.png")
        index = int(name)
        if index >= min(len(listed) for listed in (times, poses, range(index + 1)) if listed is not None):
            raise ValueError(
                f"{folder}: frame {name} but {'no' if times is None else len(times)} times and "
                f"{'no' if poses is None else len(poses)} poses; times.txt or poses.txt is cut or of another sequence"
            )
        rig = common or stereo_rig(calibration, {c: png_size(p) for c, p in paths.items()}, used)
        ego2global = None if poses is None else invert_rigid(lidar2cam0) @ poses[index] @ lidar2cam0
        voxels, labels = folder / "voxels" / f"{name}.label", folder / "labels" / f"{name}.label"
        frames.append(
            Frame(
                token=f"{folder.name}_{name}",
                scene=folder.name,
                timestamp_us=index * 100_000 if times is None else round(times[index] * 1e6),
                cameras=rig,
                image_paths=paths,
                lidar_path=folder / "velodyne" / f"{name}.bin",
                lidar2ego=torch.eye(4, dtype=torch.float64),
                ego2global=ego2global,
                occupancy_path=voxels if voxels.is_file() else None,
                extras={"frame": name} | ({"point_labels": labels} if labels.is_file() else {}),
            )
        )
    if not frames:
        raise ValueError(f"{folder / cameras[0]}: no pictures NNNNNN.png; give the folder of one sequence")
    return frames


def _first_size(folder: Path) -> tuple[int, int]:
    """(height, width) of the first picture in a camera's folder."""
    first = min(folder.glob("*.png"), default=None)
    if first is None:
        raise ValueError(f"{folder}: no pictures NNNNNN.png; is this camera's part of the data set unpacked?")
    return png_size(first)
