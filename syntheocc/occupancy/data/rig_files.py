"""Camera rigs of any car as a file that people write: YAML or JSON, metres, degrees and pixels.

    lidar2ego: [[0, 1, 0, 0.9], [-1, 0, 0, 0], [0, 0, 1, 1.8], [0, 0, 0, 1]]     # optional
    cameras:
      FRONT:
        width: 1600                      # pixels
        height: 900
        fov_deg: 70                      # horizontal; or intrinsics: 3x3; or fx, fy, cx, cy in pixels
        position: [1.7, 0.0, 1.5]        # metres in ego: x forward, y left, z up
        yaw_deg: 0                       # 0 looks forward, 90 to the left
      LEFT_FISHEYE:
        model: fisheye                   # pinhole (default), fisheye (Kannala-Brandt), unified (Mei)
        width: 1280
        height: 960
        intrinsics: [[330, 0, 639.5], [0, 330, 479.5], [0, 0, 1]]
        distortion: [0.05, -0.01, 0.002, -0.0005]         # OpenCV's order
        cam2ego: [[...], [...], [...], [0, 0, 0, 1]]      # or position and rotation_wxyz, of the OpenCV camera

docs/rigs.md says everything about each key. The order of the cameras is the order of the views.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syntheocc.engine.files import atomic_write_text, not_opened
from syntheocc.occupancy.cameras import MODELS, Camera, CameraRig
from syntheocc.occupancy.data.frames import about, plain_name
from syntheocc.occupancy.transforms import numbers, pose_from_quaternion, rigid_transform

__all__ = ["RigFile", "camera_pose", "read_rig", "write_rig"]

_ANGLES = ("yaw_deg", "pitch_deg", "roll_deg")
_FOCAL = ("fx", "fy", "cx", "cy")
_CAMERA_KEYS = {"width", "height", "model", "intrinsics", "fov_deg", "distortion", "xi", "cam2ego", "position"} | {
    "rotation_wxyz", "image", *_ANGLES, *_FOCAL
}  # fmt: skip


class RigFile(NamedTuple):
    """What a rig file says.

    Attributes:
        cameras: the rig.
        lidar2ego: float64 [4, 4], None where the file has none; grids in a lidar's frame need it.
        images: camera name -> picture, for those that name one; relative paths are relative to the file.
    """

    cameras: CameraRig
    lidar2ego: Tensor | None
    images: dict[str, Path]


def read_rig(path: str | os.PathLike) -> RigFile:
    """Read a rig file, or the folder of a KITTI-360 calibration.

    Raises:
        ValueError: a file that is no rig; the message says which camera and which key, and what is wanted.
    """
    path = Path(path)
    if path.is_dir():
        from syntheocc.occupancy.data.kitti360 import read_kitti360_rig

        return RigFile(read_kitti360_rig(path), None, {})
    document = _load(path)
    if (
        not isinstance(document, Mapping)
        or not isinstance(document.get("cameras"), Mapping)
        or not document["cameras"]
    ):
        raise ValueError(f"{path}: a rig file has a mapping `cameras:` of name -> camera; see docs/rigs.md")
    unknown = sorted(map(str, set(document) - {"cameras", "lidar2ego", "description"}))
    if unknown:
        raise ValueError(f"{path}: unknown {', '.join(unknown)}; a rig file has cameras, lidar2ego and description")
    with about(str(path)):
        lidar = document.get("lidar2ego")
        lidar2ego = None if lidar is None else rigid_transform(lidar, "lidar2ego")
    cameras, images = {}, {}
    for name, entry in document["cameras"].items():
        with about(f"{path}, camera {name}"):
            plain_name(str(name), "the name")
            cameras[str(name)] = _camera(entry)
            if entry.get("image") is not None:
                images[str(name)] = path.parent / str(entry["image"])
    return RigFile(CameraRig(cameras), lidar2ego, images)


def write_rig(path: str | os.PathLike, rig: CameraRig, lidar2ego: Any = None, description: str = "") -> None:
    """Write a rig file with matrices; `.json` or YAML by the suffix.

    Args:
        path: the file; appears by rename.
        rig: its cameras.
        lidar2ego: [4, 4], left out where None.
        description: a sentence for people.
    """
    document: dict[str, Any] = {"description": description} if description else {}
    if lidar2ego is not None:
        document["lidar2ego"] = numbers(lidar2ego, "lidar2ego").tolist()
    document["cameras"] = {name: _entry(camera) for name, camera in rig.items()}
    if Path(path).suffix == ".json":
        atomic_write_text(path, json.dumps(document, indent=1) + "\n")
    else:
        import yaml

        atomic_write_text(path, yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=110))


def camera_pose(position: Any, yaw_deg: float = 0.0, pitch_deg: float = 0.0, roll_deg: float = 0.0) -> Tensor:
    """`cam2ego` of a camera that is turned in three steps.

    Args:
        position: metres in ego [3].
        yaw_deg: 0 looks along ego x (forward), 90 to the left.
        pitch_deg: then up.
        roll_deg: then clockwise about where it looks, as the driver sees it.

    Returns:
        float64 [4, 4].
    """
    yaw, pitch, roll = (math.radians(angle) for angle in (yaw_deg, pitch_deg, roll_deg))
    level, rise = math.cos(pitch), math.sin(pitch)
    ahead = torch.tensor([math.cos(yaw) * level, math.sin(yaw) * level, rise], dtype=torch.float64)
    right = torch.tensor([math.sin(yaw), -math.cos(yaw), 0.0], dtype=torch.float64)
    down = torch.linalg.cross(ahead, right)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 0] = math.cos(roll) * right + math.sin(roll) * down
    pose[:3, 1] = math.cos(roll) * down - math.sin(roll) * right
    pose[:3, 2] = ahead
    pose[:3, 3] = numbers(position, "position")
    return pose


def _load(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise not_opened(path, error) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error}); a rig file is YAML or JSON") from error
    import yaml

    try:
        return yaml.safe_load(text)  # JSON is YAML
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: neither YAML nor JSON ({' '.join(str(error).split())})") from error


def _camera(entry: Any) -> Camera:
    if not isinstance(entry, Mapping):
        raise ValueError(f"a camera is a mapping of keys, got {entry!r}")
    unknown = sorted(map(str, set(entry) - _CAMERA_KEYS))
    if unknown:
        raise ValueError(f"unknown {', '.join(unknown)}; a camera has {', '.join(sorted(_CAMERA_KEYS))}")
    absent = [key for key in ("width", "height") if key not in entry]
    if absent:
        raise ValueError(f"lacks {' and '.join(absent)}, the picture's size in pixels")
    width, height = (_number(entry, key) for key in ("width", "height"))
    model = str(entry.get("model", "pinhole"))
    if model not in MODELS:
        raise ValueError(f"model {model!r}; there are {', '.join(MODELS)}")
    if model != "unified" and entry.get("xi"):
        raise ValueError(f"xi is the unified model's; the model is {model}")
    distortion = entry.get("distortion")
    if distortion is not None:
        distortion = numbers(distortion, "distortion").flatten().tolist()
    matrix = _intrinsics(entry, model, width, height)
    return Camera(matrix, _pose(entry), height, width, model, distortion, _number(entry, "xi", 0.0))  # type: ignore


def _number(entry: Mapping, key: str, default: float | None = None) -> float:
    value = entry.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} must be a number, got {value!r}")
    return value


def _intrinsics(entry: Mapping, model: str, width: float, height: float) -> Any:
    given = [
        way
        for way, keys in (("intrinsics", ("intrinsics",)), ("fx, fy, cx, cy", _FOCAL), ("fov_deg", ("fov_deg",)))
        if any(key in entry for key in keys)
    ]
    if len(given) != 1:
        raise ValueError(f"give one of intrinsics (3x3), fx, fy, cx, cy (pixels) or fov_deg; got {given or 'none'}")
    if given == ["intrinsics"]:
        return entry["intrinsics"]
    if given == ["fov_deg"]:
        fov = _number(entry, "fov_deg")
        if model == "unified":
            raise ValueError("fov_deg does not say a unified camera's focal length; give intrinsics")
        if not 0 < fov < (180 if model == "pinhole" else 360):
            raise ValueError(f"fov_deg must lie in 0..{180 if model == 'pinhole' else 360}, got {fov}")
        half = math.radians(fov) / 2
        # From the middle to the picture's left edge; a fisheye's is proportional to the angle.
        focal = width / 2 / (math.tan(half) if model == "pinhole" else half)
        return [[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]
    absent = [key for key in _FOCAL if key not in entry]
    if absent:
        raise ValueError(f"lacks {', '.join(absent)}")
    fx, fy, cx, cy = (_number(entry, key) for key in _FOCAL)
    return [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]


def _pose(entry: Mapping) -> Tensor:
    if "cam2ego" in entry:
        others = [key for key in ("position", "rotation_wxyz", *_ANGLES) if key in entry]
        if others:
            raise ValueError(f"cam2ego says all of the pose; leave out {', '.join(others)}")
        return rigid_transform(entry["cam2ego"], "cam2ego")
    if "position" not in entry:
        raise ValueError("lacks its pose: cam2ego (4x4), or position with yaw_deg or rotation_wxyz")
    position = numbers(entry["position"], "position")
    if tuple(position.shape) != (3,) or not bool(torch.isfinite(position).all()):
        raise ValueError(f"position must be three finite metres, got {entry['position']!r}")
    angles = {key: _number(entry, key) for key in _ANGLES if key in entry}
    if "rotation_wxyz" in entry:
        if angles:
            raise ValueError(f"rotation_wxyz says all of the turn; leave out {', '.join(angles)}")
        return pose_from_quaternion(position, entry["rotation_wxyz"])
    if not angles:
        raise ValueError("lacks its turn: yaw_deg (and pitch_deg, roll_deg) or rotation_wxyz")
    return camera_pose(position, **angles)


def _entry(camera: Camera) -> dict[str, Any]:
    entry: dict[str, Any] = {"width": camera.width, "height": camera.height}
    if camera.model != "pinhole":
        entry["model"] = camera.model
    if camera.xi:
        entry["xi"] = camera.xi
    entry["intrinsics"] = camera.intrinsics.tolist()
    if camera.distortion is not None:
        entry["distortion"] = list(astuple(camera.distortion))
    entry["cam2ego"] = camera.cam2ego.tolist()
    return entry
