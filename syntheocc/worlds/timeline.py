"""When each sensor of a scene fires, and what nuScenes calls it: stamps, tokens, file names.

A key frame's lidar stamp is the end of its sweep; a camera fires when the lidar crosses its axis, up to 50 ms before.
Everything is rounded to a whole microsecond first, so that poses belong to the stamps that are written. Tokens are
MD5 of what they name, so that the same seed gives the same tokens.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.transforms import invert_rigid

__all__ = ["LIDAR", "Reading", "global_shift", "key_frame", "log_name", "readings", "scene_token", "token_of"]

LIDAR = "LIDAR_TOP"
# 2020-09-13 12:26:40 UTC; scenes begin a thousand seconds apart, so that time orders them.
_FIRST_STAMP_US = 1_600_000_000_000_000
_SCENE_STEP_US = 1_000_000_000


@dataclass(frozen=True)
class Reading:
    """One firing of one sensor.

    Args:
        channel: "LIDAR_TOP" or a camera's name.
        t: seconds of the scene, a whole number of microseconds.
        timestamp_us: the stamp that is written.
        key: whether it belongs to a key frame; else it is a sweep on the way to one.
        sample: index of that key frame.
        token: of its sample_data row (and of its ego pose).
        filename: relative to the data root.
    """

    channel: str
    t: float
    timestamp_us: int
    key: bool
    sample: int
    token: str
    filename: str


def token_of(*parts: object) -> str:
    """32 hex digits that name something."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def scene_token(scene: Any) -> str:
    """Token of a scene."""
    return token_of("scene", scene.seed, scene.split, scene.name)


def sample_token(scene: Any, index: int) -> str:
    """Token of key frame `index`."""
    return token_of(scene_token(scene), "sample", index)


def log_name(scene: Any) -> str:
    """What the scene's log file would be called; the sensors' files are named after it."""
    return f"world-{scene.seed}-{scene.name}"


def global_shift(scene: Any) -> Tensor:
    """Transform [4, 4] from the scene's world to nuScenes' global frame, whose map begins at (0, 0)."""
    shift = torch.eye(4, dtype=torch.float64)
    shift[0, 3], shift[1, 3] = -scene.ground.origin[0], -scene.ground.origin[1]
    return shift


def readings(scene: Any, sweeps: bool = False, camera_hz: float = 12.0, lidar_hz: float = 20.0) -> list[Reading]:
    """Every firing of every sensor, lidar first, then the cameras in view order; each channel in time order.

    Args:
        scene: a `Scene`.
        sweeps: also between the key frames; else the key frames alone.
        camera_hz: firings a second of each camera.
        lidar_hz: turns a second.
    """
    from syntheocc.worlds.lidar import camera_time

    out = []
    for channel in (LIDAR, *scene.rig.names):
        rate = lidar_hz if channel == LIDAR else camera_hz
        for sample, key_time in enumerate(scene.key_times):
            ends = [(key_time, True)]
            if sweeps and sample:
                gap = key_time - scene.key_times[sample - 1]
                between = round(gap * rate)
                ends = [(key_time - gap * (1 - i / between), False) for i in range(1, between)] + ends
            for end, key in ends:
                t = end if channel == LIDAR else camera_time(end, scene.rig[channel])
                out.append(_reading(scene, channel, t, key, sample))
    return out


def _reading(scene: Any, channel: str, t: float, key: bool, sample: int) -> Reading:
    microseconds = round(float(t) * 1e6)
    digits = re.sub(r"\D", "", scene.name)
    first = _FIRST_STAMP_US + int(digits or 0) * _SCENE_STEP_US
    stamp = first + microseconds
    suffix = "pcd.bin" if channel == LIDAR else "jpg"
    folder = "samples" if key else "sweeps"
    return Reading(
        channel=channel,
        t=microseconds * 1e-6,
        timestamp_us=stamp,
        key=key,
        sample=sample,
        token=token_of(scene_token(scene), channel, stamp),
        filename=f"{folder}/{channel}/{log_name(scene)}__{channel}__{stamp}.{suffix}",
    )


def key_frame(scene: Any, index: int, root: Path = Path("."), of: Mapping[str, Reading] | None = None) -> Frame:
    """Key frame `index` as the readers of the written tree give it (boxes of every actor, without point counts).

    Args:
        scene: a `Scene`.
        index: which key frame.
        root: the data root that the files lie below.
        of: channel -> its reading of this key frame, where the caller has them.
    """
    of = of or {r.channel: r for r in readings(scene) if r.sample == index}
    shift, lidar = global_shift(scene), of[LIDAR]
    world2ego = invert_rigid(scene.ego.pose_at(lidar.t))
    cameras = {
        name: camera.moved(world2ego @ scene.ego.pose_at(of[name].t) @ camera.cam2ego)
        for name, camera in scene.rig.items()
    }
    return Frame(
        token=sample_token(scene, index),
        scene=scene.name,
        timestamp_us=lidar.timestamp_us,
        cameras=CameraRig(cameras),
        image_paths={name: Path(root) / of[name].filename for name in scene.rig},
        lidar_path=Path(root) / lidar.filename,
        lidar2ego=scene.lidar2ego,
        ego2global=shift @ scene.ego.pose_at(lidar.t),
        boxes=scene.boxes_at(lidar.t, scene.ego.pose_at(lidar.t)),
        caption=scene.caption,
        prev=sample_token(scene, index - 1) if index else None,
        next=sample_token(scene, index + 1) if index + 1 < len(scene.key_times) else None,
        extras={
            "style": "world",
            "scene_token": scene_token(scene),
            "lidar_token": lidar.token,
            "camera_tokens": {name: of[name].token for name in scene.rig},
            "camera_timestamps_us": {name: of[name].timestamp_us for name in scene.rig},
            "camera_ego2global": {name: shift @ scene.ego.pose_at(of[name].t) for name in scene.rig},
        },
    )
