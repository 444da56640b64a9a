"""Actors: what has a box in nuScenes, and where it is at any time.

Time is seconds from the first key frame; a trajectory is defined for all of it. Legend: T times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from syntheocc.worlds.ground import Ground
from syntheocc.worlds.paths import Offset, Path
from syntheocc.worlds.primitives import Primitives

__all__ = ["Actor", "Parked", "SpeedProfile", "Travel", "on_ground"]


@dataclass(frozen=True)
class SpeedProfile:
    """A speed over time that eases from knot to knot (smoothstep), constant before the first and after the last.

    Args:
        times: seconds, increasing.
        speeds: m/s at those times.
        start: metres along the path at t = 0.
    """

    times: tuple[float, ...]
    speeds: tuple[float, ...]
    start: float = 0.0

    def __post_init__(self):
        if len(self.times) != len(self.speeds) or not self.times or any(np.diff(self.times) <= 0):
            raise ValueError(f"a speed profile needs increasing times, one a speed; got {self.times}, {self.speeds}")

    def speed(self, t: float | np.ndarray) -> np.ndarray:
        """m/s at times t [...]."""
        t = np.asarray(t, dtype=np.float64)
        speed = np.full(t.shape, self.speeds[0])
        for t0, t1, v0, v1 in zip(self.times, self.times[1:], self.speeds, self.speeds[1:], strict=False):
            u = np.clip((t - t0) / (t1 - t0), 0, 1)
            speed = speed + (v1 - v0) * u * u * (3 - 2 * u)
        return speed

    def _integral(self, t: np.ndarray) -> np.ndarray:
        way = self.speeds[0] * t
        for t0, t1, v0, v1 in zip(self.times, self.times[1:], self.speeds, self.speeds[1:], strict=False):
            u = np.clip((t - t0) / (t1 - t0), 0, 1)
            # the integral of 3u^2 - 2u^3 is u^3 - u^4 / 2
            way = way + (v1 - v0) * ((t1 - t0) * (u**3 - u**4 / 2) + np.maximum(t - t1, 0))
        return way

    def distance(self, t: float | np.ndarray) -> np.ndarray:
        """Metres along the path at times t [...]."""
        t = np.asarray(t, dtype=np.float64)
        return self.start + self._integral(t) - self._integral(np.zeros(()))


@dataclass(frozen=True)
class Parked:
    """Stands at (x, y), heading `yaw`, for ever."""

    x: float
    y: float
    yaw: float

    def planar(self, t: float | np.ndarray) -> np.ndarray:
        """x, y, yaw, float64 [..., 3], at times t [...]."""
        t = np.asarray(t, dtype=np.float64)
        return np.broadcast_to(np.array([self.x, self.y, self.yaw]), (*t.shape, 3)).copy()

    @property
    def moves(self) -> bool:
        """False."""
        return False


@dataclass(frozen=True, eq=False)
class Travel:
    """Moves along a path.

    Args:
        path: where; beyond its ends it goes straight on.
        profile: metres along the path over time.
        wheelbase: the heading is that of the chord between two points this far apart, so that it turns smoothly
            where a straight becomes an arc.
    """

    path: Path | Offset
    profile: SpeedProfile
    wheelbase: float = 2.7

    def planar(self, t: float | np.ndarray) -> np.ndarray:
        """x, y, yaw, float64 [..., 3], at times t [...]."""
        s = self.profile.distance(np.asarray(t, dtype=np.float64))
        rear, front = self.path.points(s - self.wheelbase / 2), self.path.points(s + self.wheelbase / 2)
        chord = front - rear
        return np.concatenate([(rear + front) / 2, np.arctan2(chord[..., 1], chord[..., 0])[..., None]], -1)

    @property
    def moves(self) -> bool:
        """Whether it ever moves."""
        return any(speed > 0 for speed in self.profile.speeds)


def on_ground(ground: Ground, planar: np.ndarray, lift: float | np.ndarray = 0.0) -> np.ndarray:
    """Poses of things that stand on the ground, tilted as it is.

    Args:
        ground: the surface.
        planar: [..., 3] x, y (metres) and yaw (radians).
        lift: metres of the pose's origin above the surface, along its normal.

    Returns:
        float64 [..., 4, 4] local2world; local z is the ground's normal, local x the heading.
    """
    xy = torch.from_numpy(np.ascontiguousarray(planar[..., :2]))
    up = ground.normal(xy).numpy()
    heading = np.stack([np.cos(planar[..., 2]), np.sin(planar[..., 2]), np.zeros(planar.shape[:-1])], -1)
    left = np.cross(up, heading)
    left /= np.linalg.norm(left, axis=-1, keepdims=True)
    pose = np.zeros((*planar.shape[:-1], 4, 4))
    pose[..., :3, 0], pose[..., :3, 1], pose[..., :3, 2] = np.cross(left, up), left, up
    foot = np.concatenate([planar[..., :2], ground.height(xy).numpy()[..., None]], -1)
    pose[..., :3, 3] = foot + np.asarray(lift)[..., None] * up
    pose[..., 3, 3] = 1
    return pose


@dataclass(frozen=True, eq=False)
class Actor:
    """One object with a box.

    Args:
        token: names the object over time (an instance token, 32 hex digits).
        category: nuScenes category name, e.g. "vehicle.car".
        size: length (x), width (y), height (z) of its box, metres.
        primitives: its solids in the actor frame (origin = centre of the box, x forward, z up), inside the box.
        motion: `Parked` or `Travel`.
        ground: what it stands on.
        attribute: nuScenes attribute name, "" for none; "vehicle.moving" and the like change with the speed.
    """

    token: str
    category: str
    size: tuple[float, float, float]
    primitives: Primitives
    motion: Parked | Travel
    ground: Ground
    attribute: str = ""

    def poses_at(self, times: Sequence[float] | np.ndarray) -> np.ndarray:
        """float64 [T, 4, 4] actor2world at times [T] (seconds)."""
        return on_ground(self.ground, self.motion.planar(np.asarray(times, dtype=np.float64)), self.size[2] / 2)

    def pose_at(self, t: float) -> Tensor:
        """float64 [4, 4] actor2world at time t (seconds)."""
        return torch.from_numpy(self.poses_at([t])[0])

    def velocity_at(self, t: float) -> Tensor:
        """float64 [3] m/s along the world's axes at time t (seconds), a central difference over 2 ms."""
        before, after = self.poses_at([t - 1e-3, t + 1e-3])[:, :3, 3]
        return torch.from_numpy((after - before) / 2e-3)

    def attribute_at(self, t: float) -> str:
        """The attribute at time t: a car that waits at a light is "vehicle.stopped"."""
        still = float(self.velocity_at(t).norm()) < 0.2
        if self.attribute == "vehicle.moving" and still:
            return "vehicle.stopped"
        if self.attribute == "pedestrian.moving" and still:
            return "pedestrian.standing"
        return self.attribute
