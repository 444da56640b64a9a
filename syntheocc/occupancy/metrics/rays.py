"""The rays of the ray metrics: directions like a lidar's, origins along the drive (specs/sparseocc.md 3.1-3.2).

Legend: R rays, O origins.
"""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.transforms import invert_rigid, rigid_transform

__all__ = ["LIDAR_RAYS", "MAX_ORIGINS", "ORIGIN_RANGE", "lidar_rays", "ray_origins", "scene_origins"]

LIDAR_RAYS = "39 pitches x 360 azimuths"
ORIGIN_RANGE = 39.0
MAX_ORIGINS = 8


@cache
def _lidar_rays() -> np.ndarray:
    pitch = [-math.atan(1 / (k + 1)) for k in range(10)]
    step = pitch[-1] - pitch[-2]
    # The last one overshoots, as in the published set.
    while pitch[-1] < 0.21:
        pitch.append(pitch[-1] + step)
    p, a = np.meshgrid(pitch, np.deg2rad(np.arange(360.0)), indexing="ij")
    rays = np.stack([np.cos(p) * np.cos(a), np.cos(p) * np.sin(a), np.sin(p)], -1)
    return rays.reshape(-1, 3).astype(np.float32)


def lidar_rays() -> Tensor:
    """The published directions: 39 pitches (-45 to 12.5 degrees) x 360 azimuths, float32 [14040, 3], azimuth fastest.

    The lower ten pitches meet level ground 1.. 10 units away from one unit above; the others continue with their last
    step. Source: specs/sparseocc.md 3.1.
    """
    return torch.from_numpy(_lidar_rays().copy())


def ray_origins(
    frames: Sequence[Any], reference: int | str | None = None, limit: int = MAX_ORIGINS, reach: float = ORIGIN_RANGE
) -> Any:
    """Where a scene's lidar stood, as seen from its key frames: the published ray origins.

    Args:
        frames: key frames of ONE scene (`syntheocc.occupancy.data.frames.Frame`, or anything with `token`,
            `timestamp_us`, `lidar2ego` and `ego2global`), past and future, in any order.
        reference: the frame in whose ego frame origins are wanted: index in `frames`, or its token. None: all.
        limit: most origins a frame; if there are more, as many at even steps along the drive.
        reach: metres; an origin counts when its x and y lie strictly within.

    Returns:
        float64 [O, 3] metres in ego, 1 <= O <= limit, in the order of time; without `reference` a dict from token to
        that.

    Raises:
        ValueError: no frames, a frame without poses, NaN poses, an unknown reference, or no origin within reach.
    """
    if not len(frames):
        raise ValueError("ray origins need the key frames of a scene, got none")
    for frame in frames:
        if frame.lidar2ego is None or frame.ego2global is None:
            lacking = "lidar2ego" if frame.lidar2ego is None else "ego2global"
            raise ValueError(f"sample {frame.token}: its source holds no {lacking}, from which ray origins are made")
    # By time, not in the order given: that is how the published training-time path does it.
    drive = sorted(frames, key=lambda frame: frame.timestamp_us)
    lidar2global = torch.stack([_pose(f, "ego2global") @ _pose(f, "lidar2ego") for f in drive])
    if reference is not None:
        return _origins_from(_find(frames, reference), lidar2global, limit, reach)
    return {frame.token: _origins_from(frame, lidar2global, limit, reach) for frame in drive}


def scene_origins(frames: Iterable[Any], limit: int = MAX_ORIGINS, reach: float = ORIGIN_RANGE) -> dict[str, Tensor]:
    """`ray_origins` of all frames of many scenes, token -> float64 [O, 3]; scenes are told by `Frame.scene`."""
    scenes: dict[str, list[Any]] = {}
    for frame in frames:
        scenes.setdefault(frame.scene, []).append(frame)
    return {
        token: origins
        for members in scenes.values()
        for token, origins in ray_origins(members, limit=limit, reach=reach).items()
    }


def _find(frames: Sequence[Any], reference: int | str) -> Any:
    if isinstance(reference, str):
        found = [frame for frame in frames if frame.token == reference]
        if not found:
            raise ValueError(f"no frame has the token {reference!r}; give one of the scene's {len(frames)}")
        return found[0]
    if not -len(frames) <= reference < len(frames):
        raise ValueError(f"frame {reference} of a scene of {len(frames)} frames")
    return frames[reference]


def _origins_from(reference: Any, lidar2global: Tensor, limit: int, reach: float) -> Tensor:
    lidar2ego = _pose(reference, "lidar2ego")
    in_lidar = invert_rigid(_pose(reference, "ego2global") @ lidar2ego) @ lidar2global[:, :, 3:]
    # The published code rounds at this point.
    in_lidar = in_lidar[:, :3, 0].float().double()
    # By elements: a matrix product may round otherwise on another machine.
    origins = (in_lidar[:, None, :] * lidar2ego[:3, :3]).sum(-1) + lidar2ego[:3, 3]
    origins = origins[(origins[:, :2].abs() < reach).all(1)]
    if not len(origins):
        raise ValueError(f"sample {reference.token}: no lidar position of its scene lies within {reach} m of it")
    if len(origins) > limit:
        origins = origins[np.round(np.linspace(0, len(origins) - 1, limit)).astype(np.int64)]
    return origins


def _pose(frame: Any, name: str) -> Tensor:
    return rigid_transform(getattr(frame, name), f"{name} of sample {frame.token}")
