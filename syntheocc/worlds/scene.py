"""A scene: geometry, actors, the ego car with its sensors, weather and light; made from a seed.

The world frame is z up, metres; `ego2global` of the real datasets is `Scene.ego.pose_at(t)`. Time is seconds from the
first key frame. Legend: P solids, A actors, T times.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.transforms import invert_rigid
from syntheocc.worlds.actors import Actor, on_ground
from syntheocc.worlds.ego import EGO_BOX, Ego, ego_body, jittered_lidar, jittered_rig, sway
from syntheocc.worlds.families import SPLITS, random_for
from syntheocc.worlds.footprints import Footprints
from syntheocc.worlds.furnish import Furnisher
from syntheocc.worlds.ground import Ground
from syntheocc.worlds.layout import make_plan
from syntheocc.worlds.lots import make_lots
from syntheocc.worlds.materials import Material
from syntheocc.worlds.paint import paint_ground
from syntheocc.worlds.palette import Palette
from syntheocc.worlds.primitives import Primitives
from syntheocc.worlds.taxonomy import LIDARSEG_NAMES, LIDARSEG_TO_WORLD, WORLD_TAXONOMY
from syntheocc.worlds.traffic import Cast
from syntheocc.worlds.weather import LIGHTS, WEATHERS, caption_of, sky_of, sun_of

__all__ = ["Ego", "Scene", "make_scene"]


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
    def moving_parts(self) -> tuple[Primitives, Tensor]:
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
        moving = [i for i, actor in enumerate(self.actors) if actor.motion.moves]
        if moving:
            # All at once: the ground's height and slope are what costs, much the same for one actor as for all.
            planar = np.stack([self.actors[i].motion.planar(times) for i in moving])  # [A, T, 3]
            lift = np.array([self.actors[i].size[2] / 2 for i in moving])[:, None]
            poses[:, moving] = on_ground(self.ground, planar, lift).swapaxes(0, 1)
        return poses

    def primitives_at(self, t: float) -> Primitives:
        """All solids in the world frame, actors where they are at time t; the static ones first."""
        solids, owner = self.moving_parts
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
    weather: str | None = None,
    light: str | None = None,
    name: str | None = None,
) -> Scene:
    """Make a scene from a seed; the same arguments give the same scene, tensor for tensor.

    Args:
        seed: what everything is drawn from. Consecutive seeds go round the layouts, weathers and lights.
        split: "train", "val" or "test": whose families of assets, layouts and textures are used.
        image_size: (width, height) of the cameras' images, pixels; None is 1600x900.
        rig: cameras to use as they are, instead of the nuScenes-like ones with jittered calibration; `image_size` does
            not touch it.
        key_frames: number of key frames, two a second.
        weather: one of `weather.WEATHERS` instead of the seed's.
        light: one of `weather.LIGHTS` instead of the seed's.
        name: the scene's name; "scene-" and the seed when left out.

    Raises:
        ValueError: an unknown split, weather or light, a negative seed, or no key frame.

    Example:
        >>> scene = make_scene(0)
        >>> len(scene.key_times), len(scene.boxes_at(0.0, scene.ego.pose_at(0.0))) > 50
        (20, True)
    """
    for what, value, known in (("split", split, SPLITS), ("weather", weather, WEATHERS), ("light", light, LIGHTS)):
        if value not in known and not (value is None and what != "split"):
            raise ValueError(f"{what} must be one of {', '.join(known)}; got {value!r}")
    if seed < 0 or key_frames < 1:
        raise ValueError(f"a scene needs a seed >= 0 and at least one key frame; got {seed} and {key_frames}")
    key_times = tuple(0.5 * i for i in range(key_frames))
    seeds_weather, seeds_light = sky_of(seed)
    weather, light = weather or seeds_weather, light or seeds_light
    plan = make_plan(seed, split, key_times[-1])
    lots = make_lots(plan, random_for(seed, "lots", split))
    paint = Palette(random_for(seed, "palette", split), split)
    ground = paint_ground(plan, lots, paint, random_for(seed, "ground", split))
    # Sweeps before the first and cameras around the last key frame still see a world without clashes.
    taken = Footprints(np.arange(-1.0, key_times[-1] + 1.01, 0.25))
    ego_middle = plan.ego.planar(taken.times)
    (x0, y0, _), (x1, y1, _) = EGO_BOX
    ahead = (x0 + x1) / 2
    ego_middle[:, 0] += ahead * np.cos(ego_middle[:, 2])
    ego_middle[:, 1] += ahead * np.sin(ego_middle[:, 2])
    taken.add(ego_middle, ((x1 - x0) / 2 + 0.6, (y1 - y0) / 2 + 0.3))
    static = Furnisher(plan, lots, ground, paint, split, random_for(seed, "furnish", split), taken).run()
    actors = Cast(seed, split, plan, lots, ground, paint, random_for(seed, "cast", split), taken).run()
    ego_random, calibration = random_for(seed, "ego", split), random_for(seed, "calibration", split)
    width, height = image_size or (1600, 900)
    return Scene(
        name=name or f"scene-{seed:04d}",
        seed=seed,
        split=split,
        weather=weather,
        light=light,
        sun_direction=sun_of(light, random_for(seed, "sun", split)),
        caption=caption_of(weather, light, plan.kind, [actor.category for actor in actors]),
        ground=ground,
        static=static,
        ego_body=ego_body(ego_random, paint),
        materials=tuple(paint.materials),
        actors=actors,
        ego=Ego(plan.ego, ground, sway(ego_random)),
        rig=rig or jittered_rig(calibration, height, width),
        lidar2ego=jittered_lidar(calibration),
        key_times=key_times,
    )
