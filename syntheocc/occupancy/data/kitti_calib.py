"""KITTI's `calib.txt`: projections of the rectified cameras and the velodyne's pose, of the odometry and object data.

P2 and P3 are projections of rectified camera 0 with an offset in all three axes (4 cm across, millimetres down and
forward): `KittiCalibration.lidar2cam` has all of it.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import atomic_write_text, not_opened
from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.data.frames import about
from syntheocc.occupancy.transforms import invert_rigid, numbers, rigid_transform

__all__ = [
    "STEREO",
    "KittiCalibration",
    "calibration_of",
    "floats_of",
    "homogeneous_of",
    "read_calib",
    "read_projections",
    "stereo_rig",
    "text_lines",
    "write_calib",
]

# Camera name (the picture's folder) -> its projection in calib.txt: the colour pair.
STEREO = {"image_2": "P2", "image_3": "P3"}
_PROJECTIONS = ("P0", "P1", "P2", "P3")


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
            count of finite numbers, matrices that are no calibration, or P2 and P3 in exchanged rows.
    """
    rows = _calib_rows(path)
    transform = "Tr" if "Tr" in rows else "Tr_velo_to_cam"
    missing = [name for name in (*_PROJECTIONS, transform) if name not in rows]
    if missing:
        missing = ["Tr" if name == transform else name for name in missing]
        raise ValueError(
            f"{path}: no row {', '.join(missing)}; it has {', '.join(rows) or 'none'}. Take calib.txt from "
            "data_odometry_calib.zip or SemanticKITTI, whose copies have the velodyne's Tr"
        )
    lidar2cam0 = homogeneous_of(_row(rows, transform, path))
    if transform != "Tr":
        if len(rows.get("R0_rect", ())) != 9:
            raise ValueError(f"{path}: Tr_velo_to_cam needs the row R0_rect of 9 numbers; it has {', '.join(rows)}")
        rectify = torch.eye(4, dtype=torch.float64)
        rectify[:3, :3] = torch.tensor(rows["R0_rect"], dtype=torch.float64).reshape(3, 3)
        lidar2cam0 = rectify @ lidar2cam0
    projections = {name: _projection_of(rows, name, path) for name in _PROJECTIONS}
    _check_order(projections, path)
    with about(str(path)):
        return KittiCalibration(projections, lidar2cam0)


def read_projections(path: str | os.PathLike, names: Iterable[str] = tuple(STEREO.values())) -> dict[str, Tensor]:
    """Read rows of a `calib.txt`, float64 [3, 4] each, without asking for `Tr`: what matching two pictures needs.

    Raises:
        ValueError: a missing row, one that is not twelve finite numbers, or P2 and P3 in exchanged rows.
    """
    rows = _calib_rows(path)
    for name in names:
        if name not in rows:
            raise ValueError(f"{path}: no row {name}; it has {', '.join(rows) or 'none'}")
        if not np.isfinite(rows[name]).all():
            raise ValueError(f"{path}: row {name} holds NaN or infinity")
    found = {name: _projection_of(rows, name, path) for name in names}
    _check_order(found, path)
    return found


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


def _calib_rows(path: str | os.PathLike) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = {}
    for number, line in enumerate(text_lines(path), start=1):
        name, colon, values = line.partition(":")
        if not colon:
            raise ValueError(f"{path}: line {number} is not `name: numbers`: {line[:60]!r}")
        rows[name.strip()] = floats_of(values, path, number)
    return rows


def _row(rows: Mapping[str, list[float]], name: str, path: str | os.PathLike) -> list[float]:
    if len(rows[name]) != 12:
        raise ValueError(f"{path}: row {name} has {len(rows[name])} numbers, want 12 [3, 4]")
    return rows[name]


def _check_order(projections: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """The right colour camera stands to the right of the left one: depth from exchanged rows would be negative."""
    if not {"P2", "P3"} <= set(projections):
        return
    left, right = (-float(projections[name][0, 3] / projections[name][0, 0]) for name in ("P2", "P3"))
    if right < left:
        raise ValueError(
            f"{path}: camera P3 stands {left - right:.3f} m to the left of P2; KITTI's P3 is the right one. Exchange "
            "the rows P2 and P3 (and look whether image_2 and image_3 are exchanged as well)"
        )


def _projection_of(rows: Mapping[str, list[float]], name: str, path: str | os.PathLike) -> Tensor:
    return torch.tensor(_row(rows, name, path), dtype=torch.float64).reshape(3, 4)


def text_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise not_opened(path, error) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error}); it is damaged, copy it again") from error
    return [line for line in text.splitlines() if line.strip()]


def floats_of(text: str, path: str | os.PathLike, number: int) -> list[float]:
    """The numbers of a line; ValueError naming file and line."""
    try:
        return [float(word) for word in text.split()]
    except ValueError as error:
        raise ValueError(f"{path}: line {number}: {error}; the file is damaged, copy it again") from error


def homogeneous_of(values: list[float]) -> Tensor:
    """[4, 4] of the twelve numbers of a [3, 4]."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3] = torch.tensor(values, dtype=torch.float64).reshape(3, 4)
    return matrix
