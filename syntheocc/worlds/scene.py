"""A scene: geometry, actors, the ego car with its sensors, weather and light; made from a seed.

The world frame is z up, metres; `ego2global` of the real datasets is `Scene.ego.pose_at(t)`. Time is seconds from the
first key frame. Legend: P solids, A actors, T times.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.transforms import invert_rigid
from syntheocc.worlds.actors import Actor, Parked, Travel, on_ground
from syntheocc.worlds.ground import Ground
from syntheocc.worlds.materials import Material
from syntheocc.worlds.primitives import Primitives
from syntheocc.worlds.taxonomy import LIDARSEG_NAMES, LIDARSEG_TO_WORLD, WORLD_TAXONOMY

__all__ = ["Ego", "Scene", "make_scene"]


@dataclass(frozen=True, eq=False)
class Ego:
    """The ego car; its frame is nuScenes': below the middle of the rear axle, on the ground, x forward, z up.

    Args:
        motion: where it drives.
        ground: what it drives on; the body is tilted as the ground is.
        sway: float64 [K, 4] of small rocking of the body: axis (0 pitch, 1 roll), amplitude (radians), rate (radians a
            second), phase.
    """

    motion: Parked | Travel
    ground: Ground
    sway: np.ndarray  # [K, 4]

    def poses_at(self, times: np.ndarray | list[float]) -> np.ndarray:
        """float64 [T, 4, 4] ego2global at times [T] (seconds)."""
        times = np.asarray(times, dtype=np.float64)
        poses = on_ground(self.ground, self.motion.planar(times))
        rocking = np.zeros((*times.shape, 2))
        for axis, amplitude, rate, phase in self.sway:
            rocking[..., int(axis)] += amplitude * np.sin(rate * times + phase)
        pitch, roll = rocking[..., 0], rocking[..., 1]
        zero, one = np.zeros_like(pitch), np.ones_like(pitch)
        about_y = np.stack([np.cos(pitch), zero, np.sin(pitch), zero, one, zero, -np.sin(pitch), zero, np.cos(pitch)])
        about_x = np.stack([one, zero, zero, zero, np.cos(roll), -np.sin(roll), zero, np.sin(roll), np.cos(roll)])
        turn = [np.moveaxis(m, 0, -1).reshape(*times.shape, 3, 3) for m in (about_y, about_x)]
        poses[..., :3, :3] = poses[..., :3, :3] @ turn[0] @ turn[1]
        return poses

    def pose_at(self, t: float) -> Tensor:
        """float64 [4, 4] ego2global at time t (seconds)."""
        return torch.from_numpy(self.poses_at([t])[0])

    def velocity_at(self, t: float) -> Tensor:
        """float64 [3] m/s along the world's axes at time t, a central difference over 2 ms."""
        before, after = self.poses_at([t - 1e-3, t + 1e-3])[:, :3, 3]
        return torch.from_numpy((after - before) / 2e-3)


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything there is to see and to measure in one scene.

    Args:
        name: "scene-0001" and the like.
        seed, split: what it was made from; split is "train", "val" or "test".
        weather: "clear", "overcast", "rain" or "fog".
        light: "day", "dusk" or "night".
        sun_direction: float64 [3] unit vector towards the sun (the moon at night), world axes.
        caption: a sentence about the scene.
        ground: surface and paint.
        static: solids in the world frame that never move and have no box (instance 0).
        materials: the table that every `material` index refers to.
        actors: everything with a box; the solids of actor i carry instance i + 1.
        ego: the ego car's poses.
        rig: the cameras as mounted (`cam2ego` to the ego frame at the camera's own time), jittered calibration.
        lidar2ego: float64 [4, 4], nuScenes' lidar frame: x right, y forward, z up.
        key_times: seconds of the key frames (2 Hz).
        ego_body: the ego car's own solids in the ego frame (category vehicle.ego).
        map_name: what a nuScenes log would call the place.
    """

    name: str
    seed: int
    split: str
    weather: str
    light: str
    sun_direction: Tensor
    caption: str
    ground: Ground
    static: Primitives
    materials: tuple[Material, ...]
    actors: tuple[Actor, ...]
    ego: Ego
    rig: CameraRig
    lidar2ego: Tensor
    key_times: tuple[float, ...]
    ego_body: Primitives
    map_name: str = "syntheocc-town"

    @cached_property
    def _moving_parts(self) -> tuple[Primitives, Tensor]:
        """All actors' solids in their own frames, and whose each is, int64 [P]."""
        parts = [actor.primitives.with_instance(i + 1) for i, actor in enumerate(self.actors)]
        solids = Primitives.cat(parts)
        return solids, solids.instance - 1

    @cached_property
    def _still_poses(self) -> np.ndarray:
        return np.stack([actor.poses_at([0.0])[0] for actor in self.actors]) if self.actors else np.zeros((0, 4, 4))

    def actor_poses(self, times: np.ndarray | list[float]) -> np.ndarray:
        """float64 [T, A, 4, 4] actor2world of every actor at times [T] (seconds)."""
        times = np.asarray(times, dtype=np.float64)
        poses = np.broadcast_to(self._still_poses, (len(times), *self._still_poses.shape)).copy()
        for i, actor in enumerate(self.actors):
            if actor.motion.moves:
                poses[:, i] = actor.poses_at(times)
        return poses

    def primitives_at(self, t: float) -> Primitives:
        """All solids in the world frame, actors where they are at time t; the static ones first."""
        solids, owner = self._moving_parts
        poses = torch.from_numpy(self.actor_poses([t])[0])
        return Primitives.cat([self.static, solids.transformed(poses[owner])])

    def boxes_at(self, t: float, ego2global: Tensor) -> Boxes:
        """The actors' boxes at time t in the ego frame given by ego2global [4, 4].

        `names` are class names where the category is one of the ten detection classes, else nuScenes categories.
        """
        global2ego = invert_rigid(ego2global)
        box2ego = global2ego @ torch.from_numpy(self.actor_poses([t])[0])
        velocity = [global2ego[:3, :3] @ actor.velocity_at(t) for actor in self.actors]
        return Boxes(
            box2ego=box2ego,
            sizes=torch.tensor([actor.size for actor in self.actors], dtype=torch.float64),
            names=tuple(detection_name(actor.category) for actor in self.actors),
            velocities=torch.stack(velocity)[:, :2] if velocity else None,
            instance_tokens=tuple(actor.token for actor in self.actors),
        )


def detection_name(category: str) -> str:
    """The detection class of a nuScenes category; the category itself where it has none."""
    label = int(LIDARSEG_TO_WORLD[LIDARSEG_NAMES.index(category)])
    return WORLD_TAXONOMY.classes[label] if label in WORLD_TAXONOMY.foreground else category


def make_scene(
    seed: int,
    split: str = "train",
    image_size: tuple[int, int] | None = (400, 224),
    rig: CameraRig | None = None,
    key_frames: int = 20,
) -> Scene:
    """Thin first version; see the module."""
    from syntheocc.worlds.actors import SpeedProfile
    from syntheocc.worlds.families import random_for
    from syntheocc.worlds.solids import Solids
    from syntheocc.worlds.street import LIDAR2EGO, nominal_rig

    random = random_for(seed, "thin")
    waves = torch.tensor([[0.5, 0.03, 0.01, 1.0]], dtype=torch.float64)
    n = 2500
    labels = torch.full((n, n), WORLD_TAXONOMY.id_of("terrain"), dtype=torch.uint8)
    y = (torch.arange(n) + 0.5) * 0.1 - 125
    labels[:, y.abs() < 8] = WORLD_TAXONOMY.id_of("sidewalk")
    labels[:, y.abs() < 5] = WORLD_TAXONOMY.id_of("driveable_surface")
    table = torch.zeros(256, dtype=torch.uint8)
    table[11], table[13], table[14] = 0, 1, 2
    ground = Ground(labels, table[labels.int()], (-75.0, -125.0), 0.0, torch.zeros(2, dtype=torch.float64), waves)
    materials = (
        Material((0.12, 0.12, 0.12), pattern="asphalt"),
        Material((0.35, 0.34, 0.33), pattern="slabs"),
        Material((0.1, 0.25, 0.05), pattern="grass"),
        Material((0.4, 0.1, 0.1), pattern="plain", roughness=0.3),
        Material((0.5, 0.4, 0.3), (0.05, 0.06, 0.08), pattern="windows", scale_m=12.0),
        Material((0.1, 0.3, 0.05), pattern="leaves"),
    )
    static = Solids("manmade")
    for x in range(-60, 160, 20):
        z = float(ground.height(torch.tensor([x, 16.0])))
        static.use("manmade").box((x, 10, z - 1), (x + 14, 22, z + 9), 4)
        static.use("vegetation").cylinder((x, -9.5, z + 1), 0.2, 4.0, 3)
        static.ellipsoid((x, -9.5, z + 4.5), (2, 2, 2), 5)
    car = Solids("vehicle.car")
    car.box((-2.3, -0.9, -0.5), (2.3, 0.9, 0.1), 3)
    car.box((-1.5, -0.8, 0.1), (1.0, 0.8, 0.75), 3)
    car.cylinder((1.4, 0, -0.45), 0.3, 1.8, 0, axis="y")

    class _Line:
        def points(self, s):
            return np.stack([s, np.full_like(s, -1.75)], -1)

    cars = [
        Actor(
            random.bytes(16).hex(),
            "vehicle.car",
            (4.6, 1.8, 1.5),
            car.primitives(),
            Travel(_Line(), SpeedProfile((0.0,), (8.0,), 15.0 + 12 * i)),
            ground,
            "vehicle.moving",
        )
        for i in range(3)
    ]
    ego = Ego(Travel(_Line(), SpeedProfile((0.0,), (8.0,))), ground, np.array([[0, 0.004, 5.0, 0.0], [1, 0.004, 4, 1]]))
    body = Solids("vehicle.ego")
    body.box((-0.9, -0.9, 0.3), (3.8, 0.9, 0.9), 3)
    return Scene(
        name=f"scene-{seed:04d}",
        seed=seed,
        split=split,
        weather="clear",
        light="day",
        sun_direction=torch.tensor([0.5, 0.3, math.sqrt(1 - 0.34)], dtype=torch.float64),
        caption="a sunny street",
        ground=ground,
        static=static.primitives(),
        materials=materials,
        actors=tuple(cars),
        ego=ego,
        rig=rig or nominal_rig(*(image_size[::-1] if image_size else (900, 1600))),
        lidar2ego=torch.from_numpy(LIDAR2EGO.copy()),
        key_times=tuple(0.5 * i for i in range(key_frames)),
        ego_body=body.primitives(),
    )
