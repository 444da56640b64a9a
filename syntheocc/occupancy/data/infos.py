"""Info pickles of the perception world, read: one `Frame` a key frame, whatever the style (`infos_writing` writes).

| style           | list        | written by                                              | told by                |
|-----------------|-------------|---------------------------------------------------------|------------------------|
| `mmdet3d_v1.1`  | `data_list` | mmdetection3d 1.1+                                      | `data_list`            |
| `mmdet3d_v1.0`  | `infos`     | mmdetection3d 0.x and 1.0                               | `sensor2lidar_*`       |
| `sweep`         | `infos`     | SparseOcc: 1.0 + `sensor2global_*`, rotation TRANSPOSED | `sensor2global_*`      |
| `bevdet`        | `infos`     | BEVDet, OccFlowNet, RenderOcc (`bevdetv2-*`)            | `ann_infos, lidar_idx` |
| `openoccupancy` | `infos`     | OpenOccupancy, used by SyntheOcc (`nuscenes_occ_*`)     | `lidar_token`          |

Camera poses all end in ego at the lidar's time: from `lidar2cam` (v1.1) or `sensor2lidar_*`, which both hold the
motion between the two time stamps, or from the chain through global. Sources: specs/sparseocc.md 1.2,
specs/occflownet_splattingocc.md 1.3, mmdetection3d's documentation of its nuScenes infos.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.unpickling import safe_load
from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.data.frames import DETECTION_CLASSES, Boxes, Frame, about, ordered_cameras
from syntheocc.occupancy.data.info_boxes import box_layout_of, boxes_from_rows
from syntheocc.occupancy.data.locate import ImageLocator
from syntheocc.occupancy.transforms import invert_rigid, numbers, pose_from_quaternion, rigid_transform

__all__ = ["STYLES", "detect_style", "read_infos"]

STYLES = ("mmdet3d_v1.1", "mmdet3d_v1.0", "sweep", "bevdet", "openoccupancy")
# Every nuScenes picture has this size, and infos rarely say so themselves.
IMAGE_SIZE = (900, 1600)


def read_infos(
    path: str | os.PathLike,
    data_root: str | os.PathLike | None = None,
    cameras: Sequence[str] | None = None,
    image_size: tuple[int, int] = IMAGE_SIZE,
    box_layout: str = "auto",
    unreadable: dict[str, str] | None = None,
) -> list[Frame]:
    """Key frames of an info pickle, in time order.

    The style is told by the content (`detect_style`); each frame says it in `extras["style"]`. Pictures and sweeps
    need not exist: `Frame.missing_files` and `Frame.check_files` ask for them.

    Args:
        path: the pickle; read without running code (`safe_load`).
        data_root: the folder that holds `samples/`; `ImageLocator` has the search rule.
        cameras: the cameras that every frame must have, in view order; left out: all, nuScenes' six in ring order.
        image_size: (height, width) pixels of pictures whose size the infos do not say.
        box_layout: "lwh_yaw" (mmdetection3d 1.0 and later: x y z l w h yaw), "wlh_rot" (before: x y z w l h and
            -yaw - pi/2), or "auto": told by which of the two columns is longer on the vehicles.
        unreadable: where a sample that is no valid frame goes (token -> reason) for a job that does without it; left
            out, it is an error.

    Returns:
        Frames, their boxes in ego (upright in the lidar frame, as the infos store them).

    Raises:
        ValueError: unreadable pickle, unknown style (lists the keys), a field or camera that is missing, bad matrices.
    """
    document = safe_load(path)
    style = detect_style(document, path)
    infos: Sequence[Mapping] = _info_list(document) or []
    locate = ImageLocator(data_root)
    if style == "mmdet3d_v1.1":
        categories = (document.get("metainfo") or {}).get("categories")
        names = (
            {int(label): name for name, label in categories.items()}
            if categories
            else dict(enumerate(DETECTION_CLASSES))
        )
        read: Callable[[_Reader], Frame] = lambda reader: _frame_v11(reader, names)  # noqa: E731
    else:
        layout = box_layout_of(infos, box_layout, path)
        read = lambda reader: _frame_v10(reader, style, layout)  # noqa: E731
    if len(infos) >= 1000:
        from tqdm import tqdm

        infos = tqdm(infos, desc=f"reading {Path(path).name}", unit="sample")
    frames = []
    for i, info in enumerate(infos):
        token = str(info.get("token", f"sample {i} without token"))
        with about(f"{path}, sample {i} ({token})", token, unreadable):
            frames.append(read(_Reader(info, locate, cameras, image_size)))
    return sorted(frames, key=lambda frame: frame.timestamp_us)


def detect_style(document: Any, path: str | os.PathLike = "infos") -> str:
    """Which of `STYLES` an unpickled document has; ValueError listing its keys when it is none of them."""
    infos = _info_list(document)
    if infos is None:
        keys = sorted(map(str, document)) if isinstance(document, Mapping) else type(document).__name__
        raise ValueError(f"{path}: no info pickle of a known style (known: {', '.join(STYLES)}); it has {keys}")
    if isinstance(document, Mapping) and "data_list" in document:
        return "mmdet3d_v1.1"
    first = infos[0] if infos else {}
    cams = first.get("cams")
    camera = next(iter(cams.values()), None) if isinstance(cams, Mapping) else None
    camera = camera if isinstance(camera, Mapping) else {}
    if "sensor2global_rotation" in camera:
        return "sweep"
    if "ann_infos" in first or "lidar_idx" in first:
        return "bevdet"
    if "lidar_token" in first:
        return "openoccupancy"
    if "sensor2lidar_rotation" in camera or not infos:
        return "mmdet3d_v1.0"
    raise ValueError(
        f"{path}: no info pickle of a known style (known: {', '.join(STYLES)}); its samples have {sorted(first)} and "
        f"their cameras {sorted(camera)}"
    )


def _info_list(document: Any) -> Sequence[Mapping] | None:
    infos = document.get("data_list", document.get("infos")) if isinstance(document, Mapping) else document
    if isinstance(infos, list | tuple) and all(isinstance(info, Mapping) for info in infos):
        return infos
    return None


class _Reader:
    """One info dict, with what its fields need: errors that name them, and the search for its files."""

    def __init__(
        self, info: Mapping, locate: ImageLocator, cameras: Sequence[str] | None, image_size: tuple[int, int]
    ):
        self.info = info
        self.locate = locate
        self.cameras = cameras
        self.image_size = image_size
        self.searched: dict[str, list[Path]] = {}

    def need(self, mapping: Mapping, key: str) -> Any:
        if not isinstance(mapping, Mapping):
            raise ValueError(f"has {mapping!r} where a record with {key!r} is wanted; make the infos again")
        if mapping.get(key) is None:
            present = sorted(str(name) for name, value in mapping.items() if value is not None)
            raise ValueError(f"lacks {key!r}, has {present}; make the infos again")
        return mapping[key]

    def intrinsics(self, mapping: Mapping, key: str) -> Tensor:
        """A camera matrix [3, 3]; some converters store the 4x4 matrix that holds it."""
        matrix = numbers(self.need(mapping, key), key)
        return matrix[:3, :3] if matrix.ndim == 2 else matrix

    def camera_names(self, present: Any) -> list[str]:
        if not isinstance(present, Mapping) or not present:
            raise ValueError(f"has no cameras but {present!r}; make the infos again")
        names = ordered_cameras(present) if self.cameras is None else list(self.cameras)
        absent = [name for name in names if name not in present]
        if absent:
            raise ValueError(f"has no camera {', '.join(absent)}; it has {sorted(present)}")
        return names

    def path(self, given: str, name: str, channel: str) -> Path:
        found, looked = self.locate(str(given), channel)
        if looked:
            self.searched[name] = looked
        return found

    def pose(self, mapping: Mapping, name: str, transposed: bool = False) -> Tensor:
        """[4, 4] of `<name>_translation` and `<name>_rotation`, a quaternion w x y z or a matrix, maybe transposed."""
        rotation = numbers(self.need(mapping, f"{name}_rotation"), f"{name}_rotation")
        translation = numbers(self.need(mapping, f"{name}_translation"), f"{name}_translation")
        if tuple(rotation.shape) == (4,):
            return pose_from_quaternion(translation, rotation)
        if tuple(rotation.shape) != (3, 3) or tuple(translation.shape) != (3,):
            raise ValueError(
                f"{name}: a pose of shapes {[*translation.shape]} and {[*rotation.shape]}; want [3] and [3, 3] or [4]"
            )
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = rotation.T if transposed else rotation
        pose[:3, 3] = translation
        return pose


def _frame_v11(reader: _Reader, names: Mapping[int, str]) -> Frame:
    info = reader.info
    lidar = reader.need(info, "lidar_points")
    lidar2ego = rigid_transform(reader.need(lidar, "lidar2ego"), "lidar2ego")
    images = reader.need(info, "images")
    rig, paths, stamps = {}, {}, {}
    for name in reader.camera_names(images):
        image = images[name]
        with about(name):
            lidar2cam = rigid_transform(reader.need(image, "lidar2cam"), "lidar2cam")
            # Not the `cam2ego` field: that one is the mount, without the motion since the camera fired.
            cam2ego = lidar2ego @ invert_rigid(lidar2cam)
            height, width = image.get("height") or reader.image_size[0], image.get("width") or reader.image_size[1]
            rig[name] = Camera(reader.intrinsics(image, "cam2img"), cam2ego, height, width)
            paths[name] = reader.path(reader.need(image, "img_path"), name, name)
            if "timestamp" in image:
                stamps[name] = _microseconds(image["timestamp"])
    return Frame(
        token=str(reader.need(info, "token")),
        scene=str(info.get("scene_name", "")),
        timestamp_us=_microseconds(reader.need(info, "timestamp")),
        cameras=CameraRig(rig),
        image_paths=paths,
        lidar_path=reader.path(lidar["lidar_path"], "lidar", "LIDAR_TOP") if "lidar_path" in lidar else None,
        lidar2ego=lidar2ego,
        ego2global=info.get("ego2global"),
        boxes=_boxes_v11(reader, names, lidar2ego) if info.get("instances") is not None else None,
        extras={
            "style": "mmdet3d_v1.1",
            "camera_timestamps_us": stamps,
            "camera_tokens": {n: images[n]["sample_data_token"] for n in paths if "sample_data_token" in images[n]},
            "searched": reader.searched,
        },
    )


def _boxes_v11(reader: _Reader, names: Mapping[int, str], lidar2ego: Tensor) -> Boxes:
    instances = reader.info["instances"]
    # Label -1 marks categories outside the detection task; the infos do not say which.
    labels = [int(reader.need(instance, "bbox_label_3d")) for instance in instances]
    rows = [numbers(reader.need(instance, "bbox_3d"), "bbox_3d").tolist() for instance in instances]
    wrong = [row for row in rows if len(row) != 7]
    if wrong:
        raise ValueError(f"a bbox_3d is x y z l w h yaw, got {wrong[0]}; make the infos again")
    given = [instance.get("velocity") for instance in instances]
    velocities = [(np.nan, np.nan) if velocity is None else velocity[:2] for velocity in given]
    return boxes_from_rows(
        np.array(rows, dtype=np.float64).reshape(-1, 7),
        [names.get(label, "other") for label in labels],
        lidar2ego,
        "lwh_yaw",
        np.array(velocities, dtype=np.float64),
        [int(instance.get("num_lidar_pts", -1)) for instance in instances],
        num_radar_points=[int(instance.get("num_radar_pts", -1)) for instance in instances],
        ego2global=reader.info.get("ego2global"),
    )


def _frame_v10(reader: _Reader, style: str, layout: str) -> Frame:
    info, need = reader.info, reader.need
    lidar2ego, ego2global = reader.pose(info, "lidar2ego"), reader.pose(info, "ego2global")
    cams = need(info, "cams")
    rig, paths, stamps, own_poses = {}, {}, {}, {}
    for name in reader.camera_names(cams):
        cam = cams[name]
        with about(name):
            paths[name] = reader.path(need(cam, "data_path"), name, name)
            if "ego2global_rotation" in cam:
                own_poses[name] = reader.pose(cam, "ego2global")
            if "sensor2lidar_rotation" in cam:
                cam2ego = lidar2ego @ reader.pose(cam, "sensor2lidar")
            elif "sensor2global_rotation" in cam:
                cam2ego = invert_rigid(ego2global) @ reader.pose(cam, "sensor2global", transposed=True)
            else:
                cam2ego = invert_rigid(ego2global) @ reader.pose(cam, "ego2global") @ reader.pose(cam, "sensor2ego")
            # SparseOcc's sweeps and some converters spell it in the plural.
            intrinsics = reader.intrinsics(cam, "cam_intrinsics" if "cam_intrinsics" in cam else "cam_intrinsic")
            # Our own infos say the size, which nuScenes' pictures all share and its infos leave out.
            height, width = cam.get("height") or reader.image_size[0], cam.get("width") or reader.image_size[1]
            rig[name] = Camera(intrinsics, cam2ego, height, width)
            if "timestamp" in cam:
                stamps[name] = _microseconds(cam["timestamp"])
    kept = ("scene_token", "lidar_token", "lidar_idx", "frame_idx", "sweeps", "occ_path", "valid_flag")
    extras = {key: info[key] for key in kept if key in info}
    if "lidar_idx" in info:
        extras.setdefault("lidar_token", info["lidar_idx"])
    occupancy = info.get("occ_path")
    return Frame(
        token=str(need(info, "token")),
        scene=str(info.get("scene_name", "")),
        timestamp_us=_microseconds(need(info, "timestamp")),
        cameras=CameraRig(rig),
        image_paths=paths,
        lidar_path=reader.path(info["lidar_path"], "lidar", "LIDAR_TOP") if info.get("lidar_path") else None,
        lidar2ego=lidar2ego,
        ego2global=ego2global,
        boxes=_boxes_v10(reader, layout, lidar2ego, ego2global) if info.get("gt_boxes") is not None else None,
        caption=info.get("description") or None,
        prev=info.get("prev") or None,
        next=info.get("next") or None,
        occupancy_path=Path(occupancy) if occupancy else None,
        extras=extras
        | {
            "style": style,
            "camera_timestamps_us": stamps,
            "camera_tokens": {n: cams[n]["sample_data_token"] for n in paths if "sample_data_token" in cams[n]},
            "camera_ego2global": own_poses,
            "searched": reader.searched,
        },
    )


def _boxes_v10(reader: _Reader, layout: str, lidar2ego: Tensor, ego2global: Tensor) -> Boxes:
    info = reader.info
    boxes = numbers(info["gt_boxes"], "gt_boxes").numpy()
    if boxes.size and (boxes.ndim != 2 or boxes.shape[1] not in (7, 9, 10)):
        raise ValueError(f"gt_boxes of shape {boxes.shape}; a box has 7, 9 or 10 numbers")
    return boxes_from_rows(
        boxes.reshape(-1, boxes.shape[1] if boxes.size else 7),
        [str(name) for name in reader.need(info, "gt_names")],
        lidar2ego,
        layout,
        np.asarray(info["gt_velocity"], dtype=np.float64) if info.get("gt_velocity") is not None else None,
        info.get("num_lidar_pts"),
        info.get("gt_instance_tokens"),
        info.get("num_radar_pts"),
        ego2global,
    )


def _microseconds(timestamp: float | int) -> int:
    """Microseconds from microseconds (int, 16 digits) or seconds (v1.1: float, 10 digits)."""
    return int(timestamp) if float(timestamp) > 1e12 else round(float(timestamp) * 1e6)
