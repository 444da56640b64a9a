"""Info pickles written: the other half of `infos`, which documents the styles."""

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from syntheocc.engine.files import atomic_path
from syntheocc.occupancy.data.frames import DETECTION_CLASSES, Frame
from syntheocc.occupancy.data.info_boxes import rows_from_boxes
from syntheocc.occupancy.data.infos import STYLES
from syntheocc.occupancy.transforms import invert_rigid, quaternion_from_rotation

__all__ = ["write_infos"]


def write_infos(
    path: str | os.PathLike,
    frames: Sequence[Frame],
    style: str = "mmdet3d_v1.0",
    data_root: str | os.PathLike | None = None,
    version: str = "v1.0-trainval",
) -> None:
    """Write key frames as an info pickle that mmdetection3d's descendants (and `read_infos`) read.

    Boxes go into the lidar frame as x y z l w h yaw (mmdetection3d 1.0 and later): the small tilt between ego and
    lidar is dropped, as in every info pickle. Where a frame does not know its cameras' own ego poses, the lidar's is
    written and `sensor2ego` carries the rest, so that each chain of the file gives the same camera pose. Time is
    written as the style does (v1.1 seconds, else microseconds).

    Args:
        path: the pickle to write; appears by rename.
        frames: key frames with `lidar2ego` and `ego2global`.
        style: one of `infos.STYLES`.
        data_root: file paths are written relative to it; left out, as the frames hold them.
        version: what `metadata` (`metainfo`) says.

    Raises:
        ValueError: an unknown style, a frame without poses, or a file outside `data_root`.
    """
    if style not in STYLES:
        raise ValueError(f"{path}: unknown info style {style!r}; known: {', '.join(STYLES)}")
    for frame in frames:
        if frame.lidar2ego is None or frame.ego2global is None:
            raise ValueError(f"{path}: sample {frame.token} lacks lidar2ego or ego2global, which info pickles hold")
    root = None if data_root is None else Path(data_root)
    document: dict[str, Any]
    if style == "mmdet3d_v1.1":
        categories = {name: i for i, name in enumerate(DETECTION_CLASSES)}
        metainfo = {"categories": categories, "dataset": "nuscenes", "version": version, "info_version": "1.1"}
        document = {"metainfo": metainfo, "data_list": [_info_v11(f, i, root) for i, f in enumerate(frames)]}
    else:
        document = {"infos": [_info_v10(f, style, root) for f in frames], "metadata": {"version": version}}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        pickle.dump(document, file, protocol=4)


def _path(path: Path | None, root: Path | None, frame: Frame) -> str:
    if path is None:
        return ""
    if root is None:
        return path.as_posix()
    if not path.is_relative_to(root):
        raise ValueError(f"sample {frame.token}: {path} does not lie below the data root {root}")
    return path.relative_to(root).as_posix()


def _info_v11(frame: Frame, index: int, root: Path | None) -> dict[str, Any]:
    lidar2ego, stamps, tokens = frame.lidar2ego, _stamps(frame), frame.extras.get("camera_tokens", {})
    assert lidar2ego is not None and frame.ego2global is not None
    images = {}
    for name, camera in frame.cameras.items():
        sensor2ego, _ = _own_chain(frame, name)
        images[name] = {
            "img_path": _path(frame.image_paths.get(name), root, frame),
            "cam2img": camera.intrinsics.tolist(),
            "cam2ego": sensor2ego.tolist(),
            "sample_data_token": tokens.get(name, ""),
            "timestamp": stamps[name] * 1e-6,
            "lidar2cam": (camera.ego2cam @ lidar2ego).tolist(),
            "height": camera.height,
            "width": camera.width,
        }
    info: dict[str, Any] = {
        "sample_idx": index,
        "token": frame.token,
        "timestamp": frame.timestamp_us * 1e-6,
        "scene_name": frame.scene,
        "ego2global": frame.ego2global.tolist(),
        "images": images,
        "lidar_points": {
            "num_pts_feats": 5,
            "lidar_path": _path(frame.lidar_path, root, frame),
            "lidar2ego": lidar2ego.tolist(),
        },
    }
    if frame.boxes is not None:
        rows, velocities = rows_from_boxes(frame.boxes, lidar2ego)
        labels = [DETECTION_CLASSES.index(n) if n in DETECTION_CLASSES else -1 for n in frame.boxes.names]
        points = frame.boxes.num_lidar_points.tolist()
        info["instances"] = [
            {
                "bbox_label": label,
                "bbox_3d": row,
                "bbox_3d_isvalid": count != 0,
                "bbox_label_3d": label,
                "num_lidar_pts": count,
                "num_radar_pts": 0,
                "velocity": velocity,
            }
            for label, row, count, velocity in zip(labels, rows.tolist(), points, velocities.tolist(), strict=True)
        ]
    return info


def _info_v10(frame: Frame, style: str, root: Path | None) -> dict[str, Any]:
    lidar2ego, ego2global, stamps = frame.lidar2ego, frame.ego2global, _stamps(frame)
    assert lidar2ego is not None and ego2global is not None
    tokens = frame.extras.get("camera_tokens", {})
    cams = {}
    for name, camera in frame.cameras.items():
        sensor2ego, own_ego2global = _own_chain(frame, name)
        sensor2lidar = invert_rigid(lidar2ego) @ camera.cam2ego
        cams[name] = {
            "data_path": _path(frame.image_paths.get(name), root, frame),
            "type": name,
            "sample_data_token": tokens.get(name, ""),
            **_quaternion_fields("sensor2ego", sensor2ego),
            **_quaternion_fields("ego2global", own_ego2global),
            "timestamp": stamps[name],
            "sensor2lidar_rotation": sensor2lidar[:3, :3].numpy().copy(),
            "sensor2lidar_translation": sensor2lidar[:3, 3].numpy().copy(),
            "cam_intrinsic": camera.intrinsics.numpy().copy(),
            "height": camera.height,
            "width": camera.width,
        }
        if style == "sweep":
            sensor2global = ego2global @ camera.cam2ego
            # Stored transposed (row-vector convention): specs/sparseocc.md 1.2.
            cams[name]["sensor2global_rotation"] = sensor2global[:3, :3].numpy().T.copy()
            cams[name]["sensor2global_translation"] = sensor2global[:3, 3].numpy().copy()
    info = {
        "lidar_path": _path(frame.lidar_path, root, frame),
        "token": frame.token,
        "sweeps": list(frame.extras.get("sweeps", [])),
        "cams": cams,
        **_quaternion_fields("lidar2ego", lidar2ego),
        **_quaternion_fields("ego2global", ego2global),
        "timestamp": frame.timestamp_us,
        "scene_name": frame.scene,
        "scene_token": frame.extras.get("scene_token", ""),
        "prev": frame.prev or "",
        "next": frame.next or "",
    }
    lidar_token = frame.extras.get("lidar_token", "")
    occupancy = "" if frame.occupancy_path is None else frame.occupancy_path.as_posix()
    if style == "bevdet":
        info |= {"lidar_idx": lidar_token, "occ_path": occupancy}
    elif style == "openoccupancy":
        info |= {"lidar_token": lidar_token, "frame_idx": frame.extras.get("frame_idx", 0), "occ_path": occupancy}
    if frame.caption:
        info["description"] = frame.caption
    if frame.boxes is not None:
        rows, velocities = rows_from_boxes(frame.boxes, lidar2ego)
        points = frame.boxes.num_lidar_points.numpy().copy()
        info |= {
            "gt_boxes": rows,
            "gt_names": np.array(frame.boxes.names, dtype=np.str_),
            "gt_velocity": velocities,
            "num_lidar_pts": points,
            "num_radar_pts": np.zeros_like(points),
            "valid_flag": points != 0,
            "gt_instance_tokens": list(frame.boxes.instance_tokens),
        }
    return info


def _own_chain(frame: Frame, name: str) -> tuple[Tensor, Tensor]:
    """`sensor2ego` and `ego2global` at the camera's own time, or at the lidar's where the former is unknown."""
    lidar_time, cam2ego = frame.ego2global, frame.cameras[name].cam2ego
    assert lidar_time is not None
    own = frame.extras.get("camera_ego2global", {}).get(name)
    return (cam2ego, lidar_time) if own is None else (invert_rigid(own) @ lidar_time @ cam2ego, own)


def _stamps(frame: Frame) -> Mapping[str, int]:
    known = frame.extras.get("camera_timestamps_us", {})
    return {name: known.get(name, frame.timestamp_us) for name in frame.cameras.names}


def _quaternion_fields(prefix: str, pose: Tensor) -> dict[str, list[float]]:
    return {
        f"{prefix}_translation": pose[:3, 3].tolist(),
        f"{prefix}_rotation": quaternion_from_rotation(pose[:3, :3]).tolist(),
    }
