"""KITTI odometry sequences (and the object benchmark's calibration): stereo rigs, poses, velodyne scans, depth.

`<root>/sequences/XX/` holds `calib.txt` (rows P0..P3 and Tr, 12 numbers each), `poses.txt`, `times.txt`,
`image_2/NNNNNN.png` (left), `image_3/NNNNNN.png` (right) and `velodyne/NNNNNN.bin` (float32 x, y, z, remission).

**`ego` is the velodyne frame here** (x forward, y left, z up, at the sensor): KITTI calibrates no vehicle frame, and
SemanticKITTI's grids and OccDepth's numbers count from the velodyne. `lidar2ego` is the identity.

P2 and P3 are projections of rectified camera 0 with an offset in all three axes (4 cm across, millimetres down and
along), so the camera of an image is `K^-1 P Tr`, not `Tr` alone (specs/occdepth.md 1.1).
"""

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import atomic_write_text, not_opened
from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.data.frames import Frame, about
from syntheocc.occupancy.data.lidar import read_lidar, write_lidar
from syntheocc.occupancy.data.png16 import read_png16, write_png16
from syntheocc.occupancy.transforms import invert_rigid, numbers, rigid_transform

__all__ = [
    "STEREO",
    "KittiCalibration",
    "calibration_of",
    "read_calib",
    "read_depth",
    "read_poses",
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

# Camera name (the picture's folder) -> its projection in calib.txt: the colour pair.
STEREO = {"image_2": "P2", "image_3": "P3"}
_PROJECTIONS = ("P0", "P1", "P2", "P3")
_DEPTH_UNITS = 256.0  # a metre in a depth picture


@dataclass(frozen=True, eq=False)
class KittiCalibration:
    """The calibration of a sequence.

    Args:
        projections: "P0".."P3" -> float64 [3, 4], from rectified camera 0 (metres) to pixels; [K | K t].
        lidar2cam0: float64 [4, 4], velodyne to rectified camera 0.

    Raises:
        ValueError: a projection of another shape or without a camera matrix, or a pose that is not rigid.
    """

    projections: Mapping[str, Tensor]
    lidar2cam0: Tensor

    def __post_init__(self):
        object.__setattr__(self, "lidar2cam0", rigid_transform(self.lidar2cam0, "Tr"))
        checked = {name: numbers(matrix, name) for name, matrix in self.projections.items()}
        object.__setattr__(self, "projections", checked)
        for name, matrix in checked.items():
            if tuple(matrix.shape) != (3, 4) or not bool(torch.isfinite(matrix).all()):
                raise ValueError(f"{name} must be twelve finite numbers [3, 4], got {matrix.tolist()}")
            if matrix[2, :3].tolist() != [0.0, 0.0, 1.0] or float(matrix[0, 0] * matrix[1, 1]) == 0.0:
                raise ValueError(f"{name} is no rectified projection [K | K t]: {matrix.tolist()}")

    def intrinsics(self, name: str) -> Tensor:
        """K of a projection, float64 [3, 3] pixels."""
        return self._projection(name)[:, :3]

    def lidar2cam(self, name: str) -> Tensor:
        """Velodyne to the camera of a projection, float64 [4, 4]: K^-1 P Tr."""
        cam02cam = torch.eye(4, dtype=torch.float64)
        cam02cam[:3, 3] = torch.linalg.solve(self.intrinsics(name), self._projection(name)[:, 3])
        return cam02cam @ self.lidar2cam0

    def _projection(self, name: str) -> Tensor:
        if name not in self.projections:
            raise ValueError(f"the calibration has no row {name}; it has {', '.join(self.projections)}")
        return self.projections[name]


def read_calib(path: str | os.PathLike) -> KittiCalibration:
    """Read a `calib.txt` of the odometry benchmark (rows P0..P3, Tr) or of the object one (R0_rect, Tr_velo_to_cam).

    Raises:
        ValueError: a missing row (copies without `Tr` exist; the message names the rows found), a row that is not its
            count of finite numbers, or matrices that are no calibration.
    """
    rows: dict[str, list[float]] = {}
    for number, line in enumerate(_lines(path), start=1):
        name, colon, values = line.partition(":")
        if not colon:
            raise ValueError(f"{path}: line {number} is not `name: numbers`: {line[:60]!r}")
        rows[name.strip()] = _floats(values, path, number)
    transform = "Tr" if "Tr" in rows else "Tr_velo_to_cam"
    missing = [name for name in (*_PROJECTIONS, transform) if name not in rows]
    if missing:
        missing = ["Tr" if name == transform else name for name in missing]
        raise ValueError(
            f"{path}: no row {', '.join(missing)}; it has {', '.join(rows) or 'none'}. Take calib.txt from "
            "data_odometry_calib.zip or SemanticKITTI, whose copies have the velodyne's Tr"
        )
    for name in (*_PROJECTIONS, transform):
        if len(rows[name]) != 12:
            raise ValueError(f"{path}: row {name} has {len(rows[name])} numbers, want 12 [3, 4]")
    lidar2cam0 = _homogeneous(rows[transform])
    if transform != "Tr":
        if len(rows.get("R0_rect", ())) != 9:
            raise ValueError(f"{path}: Tr_velo_to_cam needs the row R0_rect of 9 numbers; it has {', '.join(rows)}")
        rectify = torch.eye(4, dtype=torch.float64)
        rectify[:3, :3] = torch.tensor(rows["R0_rect"], dtype=torch.float64).reshape(3, 3)
        lidar2cam0 = rectify @ lidar2cam0
    projections = {name: torch.tensor(rows[name], dtype=torch.float64).reshape(3, 4) for name in _PROJECTIONS}
    with about(str(path)):
        return KittiCalibration(projections, lidar2cam0)


def write_calib(calibration: KittiCalibration, path: str | os.PathLike) -> None:
    """Write a `calib.txt` in the odometry layout, with `Tr`."""
    rows = {name: calibration._projection(name) for name in _PROJECTIONS}
    rows["Tr"] = calibration.lidar2cam0[:3]
    text = "".join(f"{name}: {' '.join(f'{v:.12e}' for v in rows[name].flatten().tolist())}\n" for name in rows)
    atomic_write_text(path, text)


def stereo_rig(
    calibration: KittiCalibration, sizes: Mapping[str, tuple[int, int]] | tuple[int, int], names: Any = None
) -> CameraRig:
    """The cameras of a calibration; ego is the velodyne frame.

    Args:
        calibration: of the sequence (extrinsics differ between sequences by centimetres).
        sizes: (height, width) of the pictures, pixels: one for all, or by camera name.
        names: camera name -> projection; `STEREO` (the colour pair) unless given.
    """
    names = STEREO if names is None else names
    cameras = {}
    for name, projection in names.items():
        height, width = sizes[name] if isinstance(sizes, Mapping) else sizes
        cam2ego = invert_rigid(calibration.lidar2cam(projection))
        cameras[name] = Camera(calibration.intrinsics(projection), cam2ego, height, width)
    return CameraRig(cameras)


def calibration_of(rig: CameraRig, names: Mapping[str, str] = STEREO) -> KittiCalibration:
    """The calibration of a rectified pair whose ego is the velodyne: camera 0 stands where the first camera stands.

    Raises:
        ValueError: the cameras are no pinholes or look in different directions; KITTI's layout has one rotation.
    """
    first = rig[next(iter(names))]
    lidar2cam0 = first.ego2cam
    projections = {}
    for name, projection in names.items():
        camera = rig[name]
        cam02cam = camera.ego2cam @ first.cam2ego
        turned = float((cam02cam[:3, :3] - torch.eye(3, dtype=torch.float64)).abs().max())
        if turned > 1e-6 or camera.model != "pinhole" or camera.distortion is not None:
            raise ValueError(
                f"calib.txt describes rectified pinhole cameras of one rotation; {name} is {camera.model!r} and "
                f"turned by {turned:.2g} against {next(iter(names))}; rectify the rig first"
            )
        matrix = torch.cat([camera.intrinsics, camera.intrinsics @ cam02cam[:3, 3:]], 1)
        projections[projection] = matrix
    # The grey pair is not recorded; its rows repeat the colour pair's so that other people's parsers find four.
    pair = list(projections.values())
    rows = {name: projections.get(name, pair[i % 2 % len(pair)]) for i, name in enumerate(_PROJECTIONS)}
    return KittiCalibration(rows, lidar2cam0)


def read_poses(path: str | os.PathLike) -> Tensor:
    """Read a `poses.txt`: camera 0 of each frame to camera 0 of the first, float64 [N, 4, 4] metres.

    Raises:
        ValueError: a line that is not twelve finite numbers or is no rigid transform.
    """
    poses = []
    for number, line in enumerate(_lines(path), start=1):
        values = _floats(line, path, number)
        if len(values) != 12:
            raise ValueError(f"{path}: line {number} has {len(values)} numbers, want the 12 of a pose [3, 4]")
        poses.append(_homogeneous(values))
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
    times = [_floats(line, path, number) for number, line in enumerate(_lines(path), start=1)]
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


def read_sequence(folder: str | os.PathLike, cameras: Iterable[str] = tuple(STEREO)) -> list[Frame]:
    """The frames of `<root>/sequences/XX`, those that have a picture of the first camera, in order.

    Args:
        folder: the sequence's folder.
        cameras: which of `STEREO`; every frame needs a picture of each.

    Returns:
        Frames with token `XX_NNNNNN`, scene `XX`, ego the velodyne frame, ego2global its pose against the first
        velodyne, occupancy_path the `.label` of the voxels where it exists, and extras "frame" (NNNNNN),
        "point_labels" (path) where the scan is labelled. Without `poses.txt` (test split) ego2global is None.

    Raises:
        ValueError: no calibration, fewer poses or times than frames, or a damaged file among these.
    """
    folder, cameras = Path(folder), list(cameras)
    calibration = read_calib(folder / "calib.txt")
    times = read_times(folder / "times.txt")
    poses = read_poses(folder / "poses.txt") if (folder / "poses.txt").is_file() else None
    lidar2cam0 = calibration.lidar2cam0
    frames = []
    for picture in sorted((folder / cameras[0]).glob("*.png")):
        name = picture.stem
        if not name.isdigit():
            raise ValueError(f"{picture}: pictures of a sequence are named by their number, NNNNNN.png")
        index = int(name)
        if index >= len(times) or (poses is not None and index >= len(poses)):
            raise ValueError(
                f"{folder}: frame {name} but {len(times)} times and {'no' if poses is None else len(poses)} poses; "
                "times.txt or poses.txt is cut or of another sequence"
            )
        paths = {camera: folder / camera / picture.name for camera in cameras}
        rig = stereo_rig(calibration, {c: _png_size(p) for c, p in paths.items()}, {c: STEREO[c] for c in cameras})
        ego2global = None if poses is None else invert_rigid(lidar2cam0) @ poses[index] @ lidar2cam0
        voxels, labels = folder / "voxels" / f"{name}.label", folder / "labels" / f"{name}.label"
        frames.append(
            Frame(
                token=f"{folder.name}_{name}",
                scene=folder.name,
                timestamp_us=round(times[index] * 1e6),
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


def _png_size(path: Path) -> tuple[int, int]:
    """(height, width) from a `.png`'s header, without decoding it."""
    try:
        with open(path, "rb") as file:
            head = file.read(24)
    except OSError as error:
        raise not_opened(path, error) from error
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path}: not a .png picture; it is damaged, copy it again")
    width, height = struct.unpack(">II", head[16:24])
    return height, width


def _lines(path: str | os.PathLike) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise not_opened(path, error) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error}); it is damaged, copy it again") from error
    return [line for line in text.splitlines() if line.strip()]


def _floats(text: str, path: str | os.PathLike, number: int) -> list[float]:
    try:
        return [float(word) for word in text.split()]
    except ValueError as error:
        raise ValueError(f"{path}: line {number}: {error}; the file is damaged, copy it again") from error


def _homogeneous(values: list[float]) -> Tensor:
    """[4, 4] of the twelve numbers of a [3, 4]."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3] = torch.tensor(values, dtype=torch.float64).reshape(3, 4)
    return matrix
