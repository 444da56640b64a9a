"""A scene as rows of the thirteen nuScenes tables, and of lidarseg's and panoptic's own.

Schema: nuscenes.org, "Data format" (v1.0). Rows that every scene shares (categories, attributes, sensors, visibility
levels) have tokens of their names, so that the scenes' rows can simply be put together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.transforms import quaternion_from_rotation
from syntheocc.worlds.taxonomy import LIDARSEG_NAMES
from syntheocc.worlds.timeline import LIDAR, Reading, global_shift, log_name, sample_token, scene_token, token_of

__all__ = ["ATTRIBUTES", "Seen", "location_of", "map_filename", "scene_rows", "visibility_token"]

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)
VISIBILITY_LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")
# Annotators box what they can tell apart in the sweep and the pictures.
ANNOTATED_DISTANCE = 80.0

Rows = dict[str, list[dict]]


@dataclass(frozen=True)
class Seen:
    """What the sensors saw of one actor at one key frame.

    Args:
        share: visible part of its pixels in all pictures together, 0..1; 0 where it is in none.
        points: lidar returns inside its box.
    """

    share: float
    points: int


def visibility_token(share: float) -> str:
    """Token "1" (below 40 %) to "4" (80 % and more)."""
    return str(1 + sum(share >= bound for bound in (0.4, 0.6, 0.8)))


def location_of(scene: Any) -> str:
    """The log's place: a map of its own for every scene."""
    return f"{scene.map_name}-{scene.name}"


def map_filename(scene: Any) -> str:
    """The map's picture, relative to the data root."""
    return f"maps/{token_of('map', scene_token(scene))}.png"


def scene_rows(scene: Any, fired: Sequence[Reading], seen: Sequence[Sequence[Seen]], version: str) -> Rows:
    """All rows of a scene.

    Args:
        scene: a `Scene`.
        fired: its readings (`timeline.readings`).
        seen: for every key frame, for every actor.
        version: the tables' folder, in which lidarseg and panoptic files lie too.
    """
    rows: Rows = _shared_rows(scene)
    own, log = scene_token(scene), token_of("log", scene_token(scene))
    frames = range(len(scene.key_times))
    samples = [sample_token(scene, i) for i in frames]
    lidar_stamps = {r.sample: r.timestamp_us for r in fired if r.key and r.channel == LIDAR}
    rows["log"] = [
        {"token": log, "logfile": log_name(scene), "vehicle": "world", "date_captured": "2020-09-13",
         "location": location_of(scene)}
    ]  # fmt: skip
    rows["map"] = [
        {"token": token_of("map", own), "category": "semantic_prior", "filename": map_filename(scene),
         "log_tokens": [log]}
    ]  # fmt: skip
    rows["scene"] = [
        {"token": own, "log_token": log, "nbr_samples": len(samples), "first_sample_token": samples[0],
         "last_sample_token": samples[-1], "name": scene.name, "description": scene.caption}
    ]  # fmt: skip
    rows["sample"] = [
        {"token": samples[i], "timestamp": lidar_stamps[i], "scene_token": own, **_links(samples, i)} for i in frames
    ]
    rows |= _sensor_rows(scene, fired, samples)
    rows |= _annotation_rows(scene, samples, seen)
    for kind, ending in (("lidarseg", "bin"), ("panoptic", "npz")):
        rows[kind] = [
            {"token": reading.token, "sample_data_token": reading.token,
             "filename": f"{kind}/{version}/{reading.token}_{kind}.{ending}"}
            for reading in fired if reading.key and reading.channel == LIDAR
        ]  # fmt: skip
    return rows


def _shared_rows(scene: Any) -> Rows:
    return {
        "category": [
            {"token": token_of("category", name), "name": name, "description": name.replace(".", ", "), "index": i}
            for i, name in enumerate(LIDARSEG_NAMES)
        ],
        "attribute": [
            {"token": token_of("attribute", name), "name": name, "description": name.replace(".", ", ")}
            for name in ATTRIBUTES
        ],
        "visibility": [
            {"token": str(i + 1), "level": level, "description": f"visibility of whole object is {level[1:]} %"}
            for i, level in enumerate(VISIBILITY_LEVELS)
        ],
        "sensor": [
            {"token": token_of("sensor", name), "channel": name, "modality": "lidar" if name == LIDAR else "camera"}
            for name in (LIDAR, *scene.rig.names)
        ],
    }


def _sensor_rows(scene: Any, fired: Sequence[Reading], samples: Sequence[str]) -> Rows:
    own, shift = scene_token(scene), global_shift(scene)
    mounts, poses, data = [], [], []
    for channel in (LIDAR, *scene.rig.names):
        camera = None if channel == LIDAR else scene.rig[channel]
        mount = token_of("calibrated_sensor", own, channel)
        mounts.append(
            {"token": mount, "sensor_token": token_of("sensor", channel),
             **_pose_fields(scene.lidar2ego if camera is None else camera.cam2ego),
             "camera_intrinsic": [] if camera is None else camera.intrinsics.tolist()}
        )  # fmt: skip
        mine = [reading for reading in fired if reading.channel == channel]
        tokens = [reading.token for reading in mine]
        for i, reading in enumerate(mine):
            pose = _pose_fields(shift @ scene.ego.pose_at(reading.t))
            poses.append({"token": reading.token, "timestamp": reading.timestamp_us, **pose})
            data.append(
                {"token": reading.token, "sample_token": samples[reading.sample], "ego_pose_token": reading.token,
                 "calibrated_sensor_token": mount, "timestamp": reading.timestamp_us,
                 "fileformat": "pcd" if camera is None else "jpg", "is_key_frame": reading.key,
                 "height": 0 if camera is None else camera.height, "width": 0 if camera is None else camera.width,
                 "filename": reading.filename, **_links(tokens, i)}
            )  # fmt: skip
    return {"calibrated_sensor": mounts, "ego_pose": poses, "sample_data": data}


def _annotation_rows(scene: Any, samples: Sequence[str], seen: Sequence[Sequence[Seen]]) -> Rows:
    own, shift = scene_token(scene), global_shift(scene)
    instances, annotations = [], []
    poses = torch.from_numpy(scene.actor_poses(list(scene.key_times)))  # [T, A, 4, 4]
    egos = torch.stack([scene.ego.pose_at(t) for t in scene.key_times])[:, None, :2, 3]
    near = (poses[:, :, :2, 3] - egos).norm(dim=-1) <= ANNOTATED_DISTANCE
    for a, actor in enumerate(scene.actors):
        frames = [k for k in range(len(samples)) if bool(near[k, a])]
        # As in nuScenes an object is annotated when the lidar met it at least once.
        if not any(seen[k][a].points for k in frames):
            continue
        tokens = [token_of("sample_annotation", own, actor.token, k) for k in frames]
        instances.append(
            {"token": actor.token, "category_token": token_of("category", actor.category),
             "nbr_annotations": len(frames), "first_annotation_token": tokens[0], "last_annotation_token": tokens[-1]}
        )  # fmt: skip
        length, width, height = actor.size
        for i, k in enumerate(frames):
            attribute = actor.attribute_at(scene.key_times[k])
            annotations.append(
                {"token": tokens[i], "sample_token": samples[k], "instance_token": actor.token,
                 "visibility_token": visibility_token(seen[k][a].share),
                 "attribute_tokens": [token_of("attribute", attribute)] if attribute else [],
                 **_pose_fields(shift @ poses[k, a]), "size": [width, length, height],
                 "num_lidar_pts": seen[k][a].points, "num_radar_pts": 0, **_links(tokens, i)}
            )  # fmt: skip
    # The tables list annotations by sample.
    order = {token: i for i, token in enumerate(samples)}
    annotations.sort(key=lambda row: order[row["sample_token"]])
    return {"instance": instances, "sample_annotation": annotations}


def _links(tokens: Sequence[str], i: int) -> dict[str, str]:
    return {"prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < len(tokens) else ""}


def _pose_fields(a2b: Tensor) -> dict[str, list[float]]:
    return {"translation": a2b[:3, 3].tolist(), "rotation": quaternion_from_rotation(a2b[:3, :3]).tolist()}
