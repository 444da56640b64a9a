"""KITTI-360's calibration: two rectified perspective cameras ahead, two fisheye cameras to the sides.

| file                     | content                                                                            |
|--------------------------|------------------------------------------------------------------------------------|
| `calib_cam_to_pose.txt`  | `image_00:` .. `image_03:` 3x4, unrectified camera -> IMU                           |
| `perspective.txt`        | `S_rect_0X` size, `R_rect_0X` 3x3, `P_rect_0X` 3x4 of cameras 00 and 01             |
| `image_02.yaml`, `_03`   | OpenCV YAML: size and a unified (Mei) camera with its distortion                    |

The IMU's axes are x forward, y right, z down; ego here is the IMU turned to x forward, y left, z up, and moved down by
`imu_height`. Source: the data set's documentation (cvlibs.net/datasets/kitti-360) and its published file formats.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syntheocc.engine.files import not_opened
from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.data.frames import about
from syntheocc.occupancy.data.kitti_calib import floats_of, homogeneous_of, text_lines
from syntheocc.occupancy.transforms import invert_rigid, rigid_transform

__all__ = ["KITTI360_CAMERAS", "read_kitti360_rig"]

# From left to right: the ring of neighbours that the views form.
KITTI360_CAMERAS = ("image_02", "image_00", "image_01", "image_03")
_PERSPECTIVE = ("image_00", "image_01")


def read_kitti360_rig(
    calibration: str | os.PathLike, cameras: Iterable[str] | None = None, imu_height: float = 0.0
) -> CameraRig:
    """The rig of a KITTI-360 `calibration/` folder.

    Args:
        calibration: the folder.
        cameras: which of `KITTI360_CAMERAS`, in view order; left out: those whose files are there.
        imu_height: metres of the IMU above what the grid calls z = 0; 0 keeps ego at the IMU.

    Raises:
        ValueError: a file that is missing, or a row in it; names file, row and what is there.
    """
    folder = Path(calibration)
    present = [name for name in KITTI360_CAMERAS if _file(folder, name).is_file()]
    names = present if cameras is None else list(cameras)
    unknown = [name for name in names if name not in KITTI360_CAMERAS]
    if unknown or not names:
        raise ValueError(
            f"{folder}: KITTI-360 has the cameras {', '.join(KITTI360_CAMERAS)}, and its calibration folder "
            f"perspective.txt, image_02.yaml and image_03.yaml; got {', '.join(unknown) or 'none of them'}"
        )
    poses = _rows(folder / "calib_cam_to_pose.txt", {name: 12 for name in names})
    imu2ego = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
    imu2ego[2, 3] = imu_height
    rig = {}
    for name in names:
        with about(f"{folder / 'calib_cam_to_pose.txt'}, {name}"):
            cam2ego = imu2ego @ rigid_transform(homogeneous_of(poses[name]), "the pose")
        with about(f"{_file(folder, name)}, {name}"):
            rig[name] = (_perspective if name in _PERSPECTIVE else _fisheye)(folder, name, cam2ego)
    return CameraRig(rig)


def _file(folder: Path, name: str) -> Path:
    return folder / ("perspective.txt" if name in _PERSPECTIVE else f"{name}.yaml")


def _perspective(folder: Path, name: str, cam2ego: Tensor) -> Camera:
    number = name[-2:]
    wanted = {f"S_rect_{number}": 2, f"R_rect_{number}": 9, f"P_rect_{number}": 12}
    size, turn, projection = _rows(folder / "perspective.txt", wanted).values()
    matrix = torch.tensor(projection, dtype=torch.float64).reshape(3, 4)
    cam2rect = torch.eye(4, dtype=torch.float64)
    cam2rect[:3, :3] = torch.tensor(turn, dtype=torch.float64).reshape(3, 3)
    rect2cam = invert_rigid(rigid_transform(cam2rect, f"R_rect_{number}"))
    # The pictures of data_rect are the rectified camera's; the poses are those of the one behind the lens. The fourth
    # column of P_rect_01 is the baseline, which the pose of image_01 has already.
    return Camera(matrix[:, :3], cam2ego @ rect2cam, int(size[1]), int(size[0]))


def _fisheye(folder: Path, name: str, cam2ego: Tensor) -> Camera:
    document = _opencv_yaml(_file(folder, name))

    def value(*keys: str) -> float:
        at: Any = document
        for key in keys:
            if not isinstance(at, dict) or key not in at:
                raise ValueError(f"lacks {'/'.join(keys)}; copy the calibration again")
            at = at[key]
        if isinstance(at, bool) or not isinstance(at, int | float):
            raise ValueError(f"{'/'.join(keys)} must be a number, got {at!r}")
        return at

    projection = [value("projection_parameters", key) for key in ("gamma1", "gamma2", "u0", "v0")]
    distortion = [value("distortion_parameters", key) for key in ("k1", "k2", "p1", "p2")]
    matrix = [[projection[0], 0, projection[2]], [0, projection[1], projection[3]], [0, 0, 1]]
    xi = float(value("mirror_parameters", "xi"))
    height, width = value("image_height"), value("image_width")
    return Camera(matrix, cam2ego, height, width, "unified", distortion, xi)  # type: ignore[arg-type]


def _opencv_yaml(path: Path) -> Any:
    """An OpenCV file: YAML but for its first line (`%YAML:1.0`) and colons without a space behind them."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise not_opened(path, error) from error
    import yaml

    lines = [line for line in text.splitlines() if not line.startswith("%YAML") and line.strip() != "---"]
    try:
        return yaml.safe_load(re.sub(r":(?=[^\s])", ": ", "\n".join(lines)))
    except yaml.YAMLError as error:
        raise ValueError(f"not the YAML that OpenCV writes ({' '.join(str(error).split())})") from error


def _rows(path: Path, wanted: dict[str, int]) -> dict[str, list[float]]:
    """The rows `name: numbers` of a calibration text, those that are wanted with so many numbers each."""
    found = {}
    for number, line in enumerate(text_lines(path), 1):
        name, colon, text = line.partition(":")
        if colon and name.strip() in wanted:
            found[name.strip()] = floats_of(text, path, number)
    for name, count in wanted.items():
        if len(found.get(name, ())) != count:
            there = f"has {len(found[name])}" if name in found else "is not there"
            raise ValueError(f"{path}: a row {name}: of {count} numbers is wanted; it {there}. Copy the file again")
    return {name: found[name] for name in wanted}
