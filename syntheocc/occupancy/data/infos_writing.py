"""Info pickles written: the other half of `infos`, which documents the styles."""

import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from syntheocc.engine.files import atomic_path
from syntheocc.occupancy.data.frames import DETECTION_CLASSES, Frame
from syntheocc.occupancy.data.info_boxes import bevdet_annotations, rows_from_boxes
from syntheocc.occupancy.data.info_camera_boxes import camera_instances
from syntheocc.occupancy.data.info_sweeps import (
    camera_sweep_entries,
    lidar_sweep_entries,
    lidar_sweep_entries_v11,
    quaternion_fields,
)
from syntheocc.occupancy.data.infos import STYLES

__all__ = ["write_infos"]

# The order in which mmdetection3d lists cameras; programs stack pictures in the order of the file.
_CAMERA_ORDER = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")


def write_infos(
    path: str | os.PathLike,
    frames: Sequence[Frame],
    style: str = "mmdet3d_v1.0",
    data_root: str | os.PathLike | None = None,
    version: str = "v1.0-trainval",
    prefix: str = "",
    progress: Callable[[Sequence[Frame]], Any] = iter,
) -> None:
    """Write key frames as an info pickle that mmdetection3d's descendants (and `read_infos`) read.

    Boxes go into the lidar frame as x y z l w h yaw (mmdetection3d 1.0 and later): the small tilt between ego and
    lidar is dropped, as in every info pickle. Where a frame does not know its cameras' own ego poses, the lidar's is
    written and `sensor2ego` carries the rest, so that each chain of the file gives the same camera pose. Time is
    written as the style does (v1.1 seconds, else microseconds). Sweeps are those of `extras["lidar_sweeps"]` and
    `extras["camera_sweeps"]` (`data.sweeps`). The same frames give the same bytes.

    Args:
        path: the pickle to write; appears by rename.
        frames: key frames with `lidar2ego` and `ego2global`.
        style: one of `infos.STYLES`.
        data_root: file paths are written relative to it (v1.1: the bare name of what lies in `samples/<channel>/`);
            left out, as the frames hold them.
        version: what `metadata` (`metainfo`) says.
        prefix: put before paths that are relative to `data_root`, e.g. "./data/nuscenes/"; not before bare names.
        progress: wraps the iteration over the frames (a progress bar).

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
        data_list = [_info_v11(f, i, _Paths(f, root, prefix)) for i, f in enumerate(progress(frames))]
        document = {"metainfo": metainfo, "data_list": data_list}
    else:
        infos = [_info_v10(f, style, _Paths(f, root, prefix)) for f in progress(frames)]
        document = {"infos": infos, "metadata": {"version": version}}
    # Pickle writes a string that it meets twice as a reference: which ones are one object must not depend on who made
    # the frames.
    document = _with_shared_text(document, {})
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        pickle.dump(document, file, protocol=4)


class _Paths:
    """How the files of one frame are spelled."""

    def __init__(self, frame: Frame, root: Path | None, prefix: str):
        self.frame, self.root, self.prefix = frame, root, prefix
        self._start = None if root is None else f"{root.as_posix().rstrip('/')}/"

    def of(self, path: Path | None) -> str:
        """A file that the frame names."""
        if path is None:
            return ""
        text = path.as_posix()
        if self._start is None or self._start == "./":
            return text if self._start is None else self.relative(text)
        if not text.startswith(self._start):
            raise ValueError(f"sample {self.frame.token}: {path} does not lie below the data root {self.root}")
        return self.relative(text[len(self._start) :])

    def relative(self, text: str) -> str:
        """A file given relative to the data root."""
        return text if self.root is None else f"{self.prefix}{text}"

    def bare(self, path: Path | None, channel: str) -> str:
        """mmdetection3d 1.1's: the name alone, which its readers look for in `samples/<channel>/`."""
        if path is not None and self.root is not None and path.parent == self.root / "samples" / channel:
            return path.name
        return self.of(path)


def _info_v11(frame: Frame, index: int, paths: _Paths) -> dict[str, Any]:
    assert frame.lidar2ego is not None and frame.ego2global is not None
    lidar2ego, ego2global = frame.lidar2ego.numpy(), frame.ego2global.numpy()
    tokens, stamps, (mounts, _) = frame.extras.get("camera_tokens", {}), _stamps(frame), _own_chains(frame)
    arrays = frame.cameras.arrays
    lidar2cam = np.linalg.inv(arrays.cam2ego) @ lidar2ego
    images = {}
    for name in _ordered(frame):
        i = frame.cameras.names.index(name)
        images[name] = {
            "img_path": paths.bare(frame.image_paths.get(name), name),
            "cam2img": arrays.intrinsics[i].tolist(),
            "cam2ego": mounts[i].tolist(),
            "sample_data_token": tokens.get(name, ""),
            "timestamp": stamps[name] / 1e6,
            "lidar2cam": lidar2cam[i].tolist(),
            "height": frame.cameras[name].height,
            "width": frame.cameras[name].width,
        }
    info: dict[str, Any] = {
        "sample_idx": index,
        "token": frame.token,
        "timestamp": frame.timestamp_us / 1e6,
        "scene_name": frame.scene,
        "ego2global": ego2global.tolist(),
        "images": images,
        "lidar_points": {
            "num_pts_feats": 5,
            "lidar_path": paths.bare(frame.lidar_path, "LIDAR_TOP"),
            "lidar2ego": lidar2ego.tolist(),
        },
    }
    sweeps = frame.extras.get("lidar_sweeps")
    if sweeps:
        info["lidar_sweeps"] = lidar_sweep_entries_v11(sweeps, ego2global @ lidar2ego, paths.relative)
    mask = frame.extras.get("lidarseg_filename")
    if mask:
        info["pts_semantic_mask_path"] = Path(mask).name
    if frame.boxes is not None:
        rows, velocities = rows_from_boxes(frame.boxes, frame.lidar2ego, frame.ego2global)
        labels = [DETECTION_CLASSES.index(n) if n in DETECTION_CLASSES else -1 for n in frame.boxes.names]
        points, returns, valid = _counts(frame)
        info["instances"] = [
            {
                "bbox_label": label,
                "bbox_3d": row,
                "bbox_3d_isvalid": is_valid,
                "bbox_label_3d": label,
                "num_lidar_pts": count,
                "num_radar_pts": seen,
                "velocity": velocity,
            }
            for label, row, is_valid, count, seen, velocity in zip(
                labels,
                rows.tolist(),
                valid.tolist(),
                points.tolist(),
                returns.tolist(),
                velocities.tolist(),
                strict=True,
            )
        ]
        if arrays.is_plain:
            info["cam_instances"] = camera_instances(frame, _ordered(frame))
    return info


def _info_v10(frame: Frame, style: str, paths: _Paths) -> dict[str, Any]:
    assert frame.lidar2ego is not None and frame.ego2global is not None
    lidar2ego, ego2global = frame.lidar2ego.numpy(), frame.ego2global.numpy()
    global2lidar = np.linalg.inv(ego2global @ lidar2ego)
    info = {
        "lidar_path": paths.of(frame.lidar_path),
        "token": frame.token,
        "sweeps": _sweeps(frame, style, global2lidar, paths),
        "cams": _cams(frame, style, paths),
        **quaternion_fields("lidar2ego", lidar2ego[None])[0],
        **quaternion_fields("ego2global", ego2global[None])[0],
        "timestamp": frame.timestamp_us,
        "scene_name": frame.scene,
        "scene_token": frame.extras.get("scene_token", ""),
        "prev": frame.prev or "",
        "next": frame.next or "",
    }
    lidar_token = frame.extras.get("lidar_token", "")
    label = frame.occupancy_path
    occupancy = "" if label is None else label.as_posix() if label.is_absolute() else paths.relative(label.as_posix())
    if style == "bevdet":
        info |= {"lidar_idx": lidar_token, "frame_idx": frame.extras.get("frame_idx", 0), "occ_path": occupancy}
        if frame.extras.get("panoptic_filename"):
            info["panoptic_path"] = paths.relative(frame.extras["panoptic_filename"])
    elif style == "openoccupancy":
        info |= {"lidar_token": lidar_token, "frame_idx": frame.extras.get("frame_idx", 0), "occ_path": occupancy}
    if frame.extras.get("lidarseg_filename"):
        info["pts_semantic_mask_path"] = paths.relative(frame.extras["lidarseg_filename"])
    if frame.caption:
        info["description"] = frame.caption
    if frame.boxes is not None:
        rows, velocities = rows_from_boxes(frame.boxes, frame.lidar2ego, frame.ego2global)
        points, returns, valid = _counts(frame)
        info |= {
            "gt_boxes": rows,
            "gt_names": np.array(frame.boxes.names, dtype=np.str_),
            "gt_velocity": velocities,
            "num_lidar_pts": points,
            "num_radar_pts": returns,
            "valid_flag": valid,
            "gt_instance_tokens": list(frame.boxes.instance_tokens),
        }
        if style == "bevdet":
            info["ann_infos"] = bevdet_annotations(frame, valid)
    elif style == "bevdet":
        info["ann_infos"] = ([], [])
    return info


def _cams(frame: Frame, style: str, paths: _Paths) -> dict[str, dict[str, Any]]:
    assert frame.lidar2ego is not None and frame.ego2global is not None
    tokens, stamps, (mounts, poses) = frame.extras.get("camera_tokens", {}), _stamps(frame), _own_chains(frame)
    arrays = frame.cameras.arrays
    sensor2lidar = np.linalg.inv(frame.lidar2ego.numpy()) @ arrays.cam2ego
    sensor2global = frame.ego2global.numpy() @ arrays.cam2ego
    mount_fields, pose_fields = quaternion_fields("sensor2ego", mounts), quaternion_fields("ego2global", poses)
    cams = {}
    for name in _ordered(frame):
        i = frame.cameras.names.index(name)
        cams[name] = {
            "data_path": paths.of(frame.image_paths.get(name)),
            "type": name,
            "sample_data_token": tokens.get(name, ""),
            **mount_fields[i],
            **pose_fields[i],
            "timestamp": stamps[name],
            "sensor2lidar_rotation": sensor2lidar[i, :3, :3].copy(),
            "sensor2lidar_translation": sensor2lidar[i, :3, 3].copy(),
            "cam_intrinsic": arrays.intrinsics[i].copy(),
            "height": frame.cameras[name].height,
            "width": frame.cameras[name].width,
        }
        if style == "sweep":
            # Stored transposed (row-vector convention): specs/sparseocc.md 1.2.
            cams[name]["sensor2global_rotation"] = sensor2global[i, :3, :3].T.copy()
            cams[name]["sensor2global_translation"] = sensor2global[i, :3, 3].copy()
    return cams


def _sweeps(frame: Frame, style: str, global2lidar: np.ndarray, paths: _Paths) -> list[Any]:
    if "lidar_sweeps" not in frame.extras and "camera_sweeps" not in frame.extras:
        return list(frame.extras.get("sweeps", []))
    if style == "sweep":
        cameras = frame.extras.get("camera_sweeps") or {}
        names = [name for name in _ordered(frame) if name in cameras]
        return camera_sweep_entries({name: cameras[name] for name in names}, paths.relative)
    sweeps = frame.extras.get("lidar_sweeps")
    return lidar_sweep_entries(sweeps, global2lidar, paths.relative) if sweeps else []


def _counts(frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lidar points, radar returns and whether a box counts: one of either is in it, or nobody knows."""
    assert frame.boxes is not None
    points, returns = frame.boxes.num_lidar_points.numpy(), frame.boxes.num_radar_points.numpy()
    return points.copy(), np.maximum(returns, 0), (points != 0) | (returns > 0)


def _own_chains(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """`sensor2ego` and `ego2global` [V, 4, 4] at the cameras' own times, the lidar's where those are unknown."""
    lidar_time, cam2ego = frame.ego2global, frame.cameras.arrays.cam2ego
    assert lidar_time is not None
    known = frame.extras.get("camera_ego2global", {})
    own = np.stack([np.asarray(known.get(name, lidar_time), dtype=np.float64) for name in frame.cameras.names])
    mounts = np.linalg.inv(own) @ lidar_time.numpy() @ cam2ego
    unknown = [i for i, name in enumerate(frame.cameras.names) if name not in known]
    mounts[unknown] = cam2ego[unknown]
    return mounts, own


def _ordered(frame: Frame) -> list[str]:
    names = frame.cameras.names
    return [name for name in _CAMERA_ORDER if name in names] + [name for name in names if name not in _CAMERA_ORDER]


def _stamps(frame: Frame) -> dict[str, int]:
    known = frame.extras.get("camera_timestamps_us", {})
    return {name: known.get(name, frame.timestamp_us) for name in frame.cameras.names}


def _with_shared_text(value: Any, seen: dict[str, str]) -> Any:
    """The same containers with one object for every text."""
    kind = type(value)
    if kind is str:
        return seen.setdefault(value, value)
    if kind is dict:
        return {seen.setdefault(key, key): _with_shared_text(item, seen) for key, item in value.items()}
    if kind is list or kind is tuple:
        if value and type(value[0]) is float:
            return kind(value)
        return kind([_with_shared_text(item, seen) for item in value])
    return value
