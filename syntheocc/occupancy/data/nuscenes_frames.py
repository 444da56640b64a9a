"""Key frames out of the nuScenes tables, and tables out of key frames.

A camera fires up to 50 ms before the lidar and the car drives on: `cam2ego` here is
inv(ego2global at the lidar's time) @ ego2global at the camera's time @ the calibrated camera pose. Leaving the two ego
poses out moves a camera by up to 0.4 m.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import atomic_write_image
from syntheocc.occupancy.cameras import NUSCENES_CAMERAS, Camera, CameraRig
from syntheocc.occupancy.data.frames import Boxes, Frame, about, ordered_cameras
from syntheocc.occupancy.data.locate import ImageLocator
from syntheocc.occupancy.data.nuscenes import CATEGORY_TO_DETECTION, NuScenesTables, read_tables, write_tables
from syntheocc.occupancy.data.sweeps import camera_sweeps, lidar_sweeps, poses_of, table_numbers
from syntheocc.occupancy.transforms import invert_rigid, poses_from_quaternions, quaternion_from_rotation

__all__ = ["frame_of_sample", "frames_from_tables", "read_nuscenes", "write_nuscenes"]

LIDAR = "LIDAR_TOP"
# File name as the tables spell it, channel -> path, and where was looked in vain.
Locate = Callable[[str, str], tuple[Path, list[Path]]]


def read_nuscenes(
    root: str | os.PathLike,
    version: str | None = None,
    scenes: Iterable[str] | None = None,
    tokens: Iterable[str] | None = None,
    cameras: Sequence[str] = NUSCENES_CAMERAS,
) -> list[Frame]:
    """Key frames of a nuScenes data root, read from its JSON tables.

    Args:
        root: the data root, or the folder of the tables; see `read_tables`.
        version: the tables' folder below the root, e.g. "v1.0-mini"; see `read_tables`.
        scenes: scene names to keep; all when left out.
        tokens: sample tokens to keep; all when left out.
        cameras: the cameras that every frame must have, in view order.

    Returns:
        Frames in the order of the sample table. The pictures and sweeps need not exist (see `Frame.check_files`).

    Raises:
        ValueError: a scene or token that the tables lack, or a table, row, field or camera that is needed and missing.
    """
    tables = read_tables(root, version)
    keep = None if tokens is None else set(tokens)
    names = None if scenes is None else set(scenes)
    if names is not None:
        unknown = sorted(names - {row.get("name") for row in tables.table("scene")})
        if unknown:
            raise ValueError(f"{tables.folder}/scene.json: no scene is named {', '.join(unknown)}")
    if keep is not None:
        unknown = sorted(keep - {row.get("token") for row in tables.table("sample")})
        if unknown:
            raise ValueError(f"{tables.folder}/sample.json: no sample has the token {', '.join(unknown)}")

    def wanted(sample: dict) -> bool:
        return (keep is None or sample["token"] in keep) and (names is None or _scene(tables, sample)[0] in names)

    return frames_from_tables(tables, wanted, cameras)


def frames_from_tables(
    tables: NuScenesTables,
    wanted: Callable[[dict], bool] | None = None,
    cameras: Sequence[str] = NUSCENES_CAMERAS,
    unreadable: dict[str, str] | None = None,
    sweeps: Mapping[str, int] = {},  # noqa: B006 (read only)
    locate_files: bool = True,
) -> list[Frame]:
    """The frames of the sample rows for which `wanted(row)` holds; see `read_nuscenes`.

    Args:
        tables: where they come from.
        wanted: which rows of the sample table; all when left out.
        cameras: the cameras that every frame must have, in view order.
        unreadable: where a sample that is no valid frame goes (token -> reason); left out, it is an error.
        sweeps: how many sweeps to list: "lidar" puts `lidar_sweeps` into the frames' extras, "camera" `camera_sweeps`
            (`data.sweeps`).
        locate_files: look for the files; else they are taken to lie where the tables say, below the root.
    """
    locate: Locate = ImageLocator(tables.root) if locate_files else lambda given, _: (tables.root / given, [])
    frames = []
    for sample in tables.table("sample"):
        if wanted is None or wanted(sample):
            token = str(sample.get("token", "without token"))
            with about(f"{tables.folder}, sample {token}", token, unreadable):
                frames.append(frame_of_sample(tables, locate, sample, cameras, sweeps))
    return frames


def frame_of_sample(
    tables: NuScenesTables,
    path_of: Locate,
    sample: dict,
    cameras: Sequence[str],
    sweeps: Mapping[str, int] = {},  # noqa: B006 (read only)
) -> Frame:
    """The frame of one row of the sample table; the arguments are those of `frames_from_tables`.

    Args:
        tables: where it comes from.
        path_of: file name as the tables spell it, channel -> path, and where was looked for it in vain.
        sample: the row.
        cameras: the cameras that it must have, in view order.
        sweeps: "lidar", "camera" -> how many sweeps to list.
    """
    token = tables.field("sample", sample, "token")
    data = tables.key_data.get(token, {})
    absent = [name for name in (LIDAR, *cameras) if name not in data]
    if absent:
        raise ValueError(f"{tables.folder}/sample_data.json: sample {token} has no key frame of {', '.join(absent)}")
    mounts, poses = (torch.from_numpy(matrices) for matrices in poses_of(tables, [data[n] for n in (LIDAR, *cameras)]))
    lidar2ego, ego2global = mounts[0], poses[0]
    global2ego = invert_rigid(ego2global)
    cam2ego = global2ego @ poses[1:] @ mounts[1:]
    files: dict[str, Path] = {}
    searched: dict[str, list[Path]] = {}
    for name in (LIDAR, *cameras):
        files[name], looked = path_of(str(tables.field("sample_data", data[name], "filename")), name)
        if looked:
            searched["lidar" if name == LIDAR else name] = looked
    rig = {}
    for i, name in enumerate(cameras):
        with about(name):
            mount = tables.get("calibrated_sensor", data[name]["calibrated_sensor_token"])
            intrinsics = tables.field("calibrated_sensor", mount, "camera_intrinsic")
            height, width = (tables.field("sample_data", data[name], side) for side in ("height", "width"))
            rig[name] = Camera(intrinsics, cam2ego[i], height, width)
    scene, caption = _scene(tables, sample)
    extras: dict[str, Any] = {
        "style": "nuscenes",
        "scene_token": sample.get("scene_token", ""),
        "lidar_token": data[LIDAR]["token"],
        "camera_tokens": {name: data[name]["token"] for name in cameras},
        "camera_timestamps_us": {name: int(tables.field("sample_data", data[name], "timestamp")) for name in cameras},
        "camera_ego2global": {name: poses[1 + i] for i, name in enumerate(cameras)},
        "searched": searched,
    }
    if sweeps.get("lidar"):
        extras["lidar_sweeps"] = lidar_sweeps(tables, data[LIDAR], sweeps["lidar"])
    if sweeps.get("camera"):
        extras["camera_sweeps"] = camera_sweeps(tables, {name: data[name] for name in cameras}, sweeps["camera"])
    return Frame(
        token=token,
        scene=scene,
        timestamp_us=int(tables.field("sample_data", data[LIDAR], "timestamp")),
        cameras=CameraRig(rig),
        image_paths={name: files[name] for name in cameras},
        lidar_path=files[LIDAR],
        lidar2ego=lidar2ego,
        ego2global=ego2global,
        boxes=_boxes(tables, token, global2ego) if tables.has("sample_annotation") else None,
        caption=caption,
        prev=sample.get("prev") or None,
        next=sample.get("next") or None,
        extras=extras,
    )


def _scene(tables: NuScenesTables, sample: dict) -> tuple[str, str | None]:
    """Name and description of a sample's scene; empty where the tables do not say."""
    if "scene_token" not in sample or not tables.has("scene"):
        return "", None
    row = tables.get("scene", sample["scene_token"])
    return row.get("name", ""), row.get("description") or None


def _boxes(tables: NuScenesTables, token: str, global2ego: Tensor) -> Boxes:
    rows = tables.annotations.get(token, [])
    where = [f"{tables.folder}/sample_annotation.json, row {row.get('token')!r}" for row in rows]
    fields = {
        name: table_numbers(tables, "sample_annotation", rows, name, width)
        for name, width in (("translation", 3), ("rotation", 4), ("size", 3))
    }
    box2global = poses_from_quaternions(fields["translation"], fields["rotation"], where)
    velocities = np.array([tables.velocity_of(row) for row in rows], dtype=np.float64).reshape(-1, 3)
    # Their vertical part is noise, and info files leave it out.
    velocities[:, 2] = 0
    categories = [tables.category_of(row) for row in rows]
    return Boxes(
        box2ego=global2ego @ torch.from_numpy(box2global),
        # The tables write width, length, height.
        sizes=torch.from_numpy(fields["size"][:, [1, 0, 2]]),
        names=tuple(CATEGORY_TO_DETECTION.get(name, name) for name in categories),
        velocities=(torch.from_numpy(velocities) @ global2ego[:3, :3].T)[:, :2],
        num_lidar_points=torch.tensor([int(row.get("num_lidar_pts", -1)) for row in rows]),
        instance_tokens=tuple(row.get("instance_token", "") for row in rows),
        num_radar_points=torch.tensor([int(row.get("num_radar_pts", -1)) for row in rows]),
        attributes=tuple(tables.attribute_of(row) for row in rows),
    )


_DETECTION_TO_CATEGORY = {name: category for category, name in reversed(CATEGORY_TO_DETECTION.items())}


def write_nuscenes(
    root: str | os.PathLike, version: str, frames: Sequence[Frame], location: str = "synthetic"
) -> None:
    """Write the thirteen tables of `frames` to `<root>/<version>`, complete enough for the nuScenes devkit.

    Files are written as `filename`s relative to the root. Where a frame knows its cameras' own ego poses
    (`extras["camera_ego2global"]`) they are kept; else the lidar's serves and the mount carries the rest, which reads
    back as the same `cam2ego`. Frames of a scene are chained in time order. Boxes need `ego2global`; velocities are
    not stored, the tables derive them from the neighbouring frames.

    Args:
        root: the data root; `samples/` lies below it.
        version: the tables' folder, e.g. "v1.0-world".
        frames: key frames with `lidar2ego`, `ego2global` and a sweep.
        location: the log's place name.

    Raises:
        ValueError: a frame without pose or sweep, or a file that does not lie below the root.
    """
    rows: dict[str, dict[str, dict]] = {}

    def put(table: str, key: str, **values: Any) -> str:
        """Add a row once; its token is a hash of what it is, so that the same frames give the same files."""
        token = hashlib.md5(f"{table}/{key}".encode(), usedforsecurity=False).hexdigest()
        rows.setdefault(table, {}).setdefault(token, {"token": token, **values})
        return token

    def put_token(table: str, token: str, **values: Any) -> None:
        rows.setdefault(table, {})[token] = {"token": token, **values}

    by_scene: dict[str, list[Frame]] = {}
    for frame in frames:
        if frame.lidar2ego is None or frame.ego2global is None or frame.lidar_path is None:
            raise ValueError(f"sample {frame.token}: the tables need lidar2ego, ego2global and a lidar file")
        by_scene.setdefault(frame.scene, []).append(frame)
    for scene, members in by_scene.items():
        members.sort(key=lambda frame: frame.timestamp_us)
        log = put("log", scene, logfile=scene, vehicle="synthetic", date_captured="", location=location)
        scene_token = members[0].extras.get("scene_token") or hashlib.md5(f"scene/{scene}".encode()).hexdigest()
        put_token(
            "scene", scene_token, log_token=log, nbr_samples=len(members), first_sample_token=members[0].token,
            last_sample_token=members[-1].token, name=scene, description=members[0].caption or "",
        )  # fmt: skip
        chain: dict[str, list[str]] = {}
        for i, frame in enumerate(members):
            put_token(
                "sample", frame.token, timestamp=frame.timestamp_us, scene_token=scene_token,
                prev=members[i - 1].token if i else "", next=members[i + 1].token if i + 1 < len(members) else "",
            )  # fmt: skip
            _put_sensors(Path(root), frame, put, put_token, chain)
            _put_boxes(frame, put, put_token, chain)
        for key, tokens in chain.items():
            table = key.split("/")[0]
            for i, token in enumerate(tokens):
                rows[table][token]["prev"] = tokens[i - 1] if i else ""
                rows[table][token]["next"] = tokens[i + 1] if i + 1 < len(tokens) else ""
            if table == "sample_annotation":
                instance = rows["instance"][rows[table][tokens[0]]["instance_token"]]
                instance.update(
                    nbr_annotations=len(tokens), first_annotation_token=tokens[0], last_annotation_token=tokens[-1]
                )
    mask = Path("maps") / f"{location}.png"
    atomic_write_image(Path(root) / mask, np.zeros((8, 8), np.uint8))
    logs = list(rows.get("log", {}))
    put("map", location, category="semantic_prior", filename=mask.as_posix(), log_tokens=logs)
    levels = ("v0-40", "v40-60", "v60-80", "v80-100")
    for i, level in enumerate(levels):
        put_token("visibility", str(i + 1), level=level, description=level)
    write_tables(Path(root) / version, {name: list(table.values()) for name, table in rows.items()})


def _put_sensors(root: Path, frame: Frame, put: Callable, put_token: Callable, chain: dict[str, list[str]]) -> None:
    ego, lidar2ego = frame.ego2global, frame.lidar2ego
    assert ego is not None and lidar2ego is not None
    own_poses = frame.extras.get("camera_ego2global", {})
    stamps = frame.extras.get("camera_timestamps_us", {})
    tokens = frame.extras.get("camera_tokens", {})
    for name in (LIDAR, *ordered_cameras(frame.cameras.names)):
        camera = None if name == LIDAR else frame.cameras[name]
        path = frame.lidar_path if camera is None else frame.image_paths.get(name)
        if path is None or not path.is_relative_to(root):
            raise ValueError(f"sample {frame.token}: the file of {name} ({path}) does not lie below the root {root}")
        pose = own_poses.get(name, ego)
        mount = lidar2ego if camera is None else invert_rigid(pose) @ ego @ camera.cam2ego
        intrinsic = [] if camera is None else camera.intrinsics.tolist()
        sensor = put("sensor", name, channel=name, modality="lidar" if camera is None else "camera")
        translation, rotation = _pose_fields(mount)
        # Rounded to a nanometre in the key: the same mount in two frames differs in the last bits.
        key = f"{name}/{np.round(mount.numpy(), 9).tolist()}/{intrinsic}"
        calibrated = put(
            "calibrated_sensor", key, sensor_token=sensor, translation=translation, rotation=rotation,
            camera_intrinsic=intrinsic,
        )  # fmt: skip
        token = frame.extras.get("lidar_token") if camera is None else tokens.get(name)
        token = token or hashlib.md5(f"{frame.token}/{name}".encode()).hexdigest()
        stamp = frame.timestamp_us if camera is None else stamps.get(name, frame.timestamp_us)
        translation, rotation = _pose_fields(pose)
        put_token("ego_pose", token, timestamp=stamp, translation=translation, rotation=rotation)
        put_token(
            "sample_data", token, sample_token=frame.token, ego_pose_token=token, calibrated_sensor_token=calibrated,
            timestamp=stamp, fileformat=path.name.partition(".")[2] if camera is None else path.suffix[1:],
            is_key_frame=True, height=0 if camera is None else camera.height,
            width=0 if camera is None else camera.width, filename=path.relative_to(root).as_posix(),
        )  # fmt: skip
        chain.setdefault(f"sample_data/{frame.scene}/{name}", []).append(token)


def _put_boxes(frame: Frame, put: Callable, put_token: Callable, chain: dict[str, list[str]]) -> None:
    boxes, ego2global = frame.boxes, frame.ego2global
    if boxes is None or ego2global is None:
        return
    for i, (name, box2ego) in enumerate(zip(boxes.names, boxes.box2ego, strict=True)):
        category_name = _DETECTION_TO_CATEGORY.get(name, name)
        category = put("category", category_name, name=category_name, description=category_name)
        instance = boxes.instance_tokens[i] or hashlib.md5(f"{frame.token}/box/{i}".encode()).hexdigest()
        put_token("instance", instance, category_token=category)
        translation, rotation = _pose_fields(ego2global @ box2ego)
        length, width, height = boxes.sizes[i].tolist()
        token = hashlib.md5(f"{frame.token}/annotation/{i}".encode()).hexdigest()
        put_token(
            "sample_annotation", token, sample_token=frame.token, instance_token=instance, visibility_token="4",
            attribute_tokens=[], translation=translation, size=[width, length, height], rotation=rotation,
            num_lidar_pts=max(int(boxes.num_lidar_points[i]), 0), num_radar_pts=0,
        )  # fmt: skip
        chain.setdefault(f"sample_annotation/{frame.scene}/{instance}", []).append(token)


def _pose_fields(a2b: Tensor) -> tuple[list[float], list[float]]:
    return a2b[:3, 3].tolist(), quaternion_from_rotation(a2b[:3, :3]).tolist()
