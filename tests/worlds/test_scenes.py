"""Scenes of the procedural world: the same from the same seed, plausible, and with room for everybody."""

import math
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch

from syntheocc.occupancy.taxonomy import OCC3D_TAXONOMY, SYNTHEOCC_TAXONOMY
from syntheocc.worlds.ego import EGO_BOX, MAX_SWAY
from syntheocc.worlds.families import ASSET_FAMILIES, LAYOUT_FAMILIES, SPLITS, TEXTURE_LOOKS
from syntheocc.worlds.footprints import overlap
from syntheocc.worlds.ground import MAX_SLOPE
from syntheocc.worlds.layout import LAYOUTS, MAX_SPEED, make_plan
from syntheocc.worlds.materials import VARIANTS
from syntheocc.worlds.primitives import Primitives
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.taxonomy import CLASS_TO_CATEGORY, LIDARSEG_NAMES, LIDARSEG_TO_WORLD, OTHERS, WORLD_TAXONOMY
from syntheocc.worlds.weather import LIGHTS, WEATHERS

SEEDS = (0, 1, 2, 3, 4, 5)


@cache
def scene_of(seed: int, split: str = "train"):
    return make_scene(seed, split)


def same(a: Primitives, b: Primitives) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Primitives))


def test_raw_categories_map_to_world_classes_and_on_to_the_datasets():
    assert len(LIDARSEG_NAMES) == 32
    of = lambda name: WORLD_TAXONOMY.classes[LIDARSEG_TO_WORLD[LIDARSEG_NAMES.index(name)]]  # noqa: E731
    assert of("vehicle.car") == "car" and of("vehicle.bus.bendy") == "bus" and of("static.vegetation") == "vegetation"
    assert of("human.pedestrian.police_officer") == "pedestrian" and of("flat.other") == "other_flat"
    assert of("movable_object.debris") == of("static.other") == of("vehicle.ego") == "others"
    assert WORLD_TAXONOMY.mapping_to(OCC3D_TAXONOMY)[OTHERS] == 0
    assert WORLD_TAXONOMY.mapping_to(SYNTHEOCC_TAXONOMY)[[OTHERS, 1, 16]].tolist() == [255, 1, 16]
    for label in range(1, 18):
        assert LIDARSEG_TO_WORLD[CLASS_TO_CATEGORY[label]] == label


def test_the_same_seed_gives_the_same_scene():
    a, b, other = scene_of(2), make_scene(2), scene_of(3)
    assert (
        same(a.static, b.static) and same(a.primitives_at(4.3), b.primitives_at(4.3)) and same(a.ego_body, b.ego_body)
    )
    assert torch.equal(a.ground.labels, b.ground.labels) and torch.equal(a.ground.materials, b.ground.materials)
    assert torch.equal(a.ground.waves, b.ground.waves) and torch.equal(a.ego.pose_at(3.3), b.ego.pose_at(3.3))
    assert a.materials == b.materials and a.caption == b.caption and torch.equal(a.lidar2ego, b.lidar2ego)
    assert [x.token for x in a.actors] == [x.token for x in b.actors]
    assert len({actor.token for actor in a.actors}) == len(a.actors)
    assert all(torch.equal(a.rig[n].intrinsics, b.rig[n].intrinsics) for n in a.rig.names)
    assert not torch.equal(a.rig["CAM_FRONT"].cam2ego, other.rig["CAM_FRONT"].cam2ego)


def test_splits_share_no_family():
    for table in (ASSET_FAMILIES, LAYOUT_FAMILIES, TEXTURE_LOOKS):
        assert set(table) == set(SPLITS)
        everything = [number for split in SPLITS for number in table[split]]
        assert len(everything) == len(set(everything))
    for split in SPLITS:
        looks = {material.seed % VARIANTS for material in scene_of(1, split).materials if not material.emission}
        assert looks and looks <= set(TEXTURE_LOOKS[split])
        assert make_plan(1, split, 9.5).style in LAYOUT_FAMILIES[split]


def test_every_class_occurs_over_a_few_scenes():
    seen = set()
    for seed in SEEDS:
        scene = scene_of(seed)
        seen |= set(scene.static.label.tolist()) | set(scene.ground.labels.unique().tolist())
        seen |= {int(LIDARSEG_TO_WORLD[LIDARSEG_NAMES.index(actor.category)]) for actor in scene.actors}
    assert seen >= set(range(1, 18))


def test_layouts_weathers_and_lights_all_occur():
    assert {make_plan(seed, "train", 9.5).kind for seed in range(len(LAYOUTS))} == set(LAYOUTS)
    from syntheocc.worlds.weather import sky_of

    skies = [sky_of(seed) for seed in range(60)]
    for position, shares in ((0, WEATHERS), (1, LIGHTS)):
        counts = {name: sum(sky[position] == name for sky in skies) / 60 for name in shares}
        assert all(abs(counts[name] - share) < 0.1 for name, share in shares.items()), counts


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ego_car_drives_like_a_car(seed):
    ego = scene_of(seed).ego
    times = np.arange(0, 9.5, 0.1)
    poses = ego.poses_at(times)
    speed = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) / 0.1
    assert speed.max() <= MAX_SPEED + 0.1
    assert np.abs(np.diff(speed)).max() / 0.1 < 5.0  # m/s^2
    yaw = np.unwrap(np.arctan2(poses[:, 1, 0], poses[:, 0, 0]))
    rate = np.diff(yaw) / 0.1
    assert np.abs(rate).max() < 0.9 and np.abs(rate * speed).max() < 4.5  # rad/s, m/s^2 to the side
    tilt = np.arccos(poses[:, 2, 2])
    assert 0 < tilt.max() < math.atan(MAX_SLOPE) + 2 * MAX_SWAY
    # Wheels on the ground: the frame's origin lies on it.
    height = scene_of(seed).ground.height(torch.from_numpy(poses[:, :2, 3]))
    assert torch.allclose(height, torch.from_numpy(poses[:, 2, 3]), atol=1e-9)
    moving = speed > 0.5
    if moving.any():
        way = np.diff(poses[:, :2, 3], axis=0)[moving]
        sideways = way[:, 0] * poses[:-1, 1, 0][moving] - way[:, 1] * poses[:-1, 0, 0][moving]
        assert np.abs(sideways).max() < 0.1 * np.abs(way).max() + 0.05


def test_the_ego_car_turns_left_and_right():
    for seed in SEEDS:
        kind = make_plan(seed, "train", 9.5).kind
        poses = scene_of(seed).ego.poses_at(np.linspace(0, 9.5, 96))
        yaw = np.unwrap(np.arctan2(poses[:, 1, 0], poses[:, 0, 0]))
        turned = math.degrees(yaw[-1] - yaw[0])
        if kind.startswith("turn"):
            assert abs(turned - {"turn_left": 90, "turn_right": -90}[kind]) < 15
        elif kind in ("straight", "stop"):
            assert abs(turned) < 3


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_collides(seed):
    scene = scene_of(seed)
    half = np.array([actor.size[:2] for actor in scene.actors]) / 2
    (x0, y0, _), (x1, y1, _) = EGO_BOX
    for t in np.arange(0.0, 9.5, 0.65):
        poses = scene.actor_poses([t])[0]
        flat = np.stack([poses[:, 0, 3], poses[:, 1, 3], np.arctan2(poses[:, 1, 0], poses[:, 0, 0])], -1)
        ego = scene.ego.pose_at(t).numpy()
        middle = ego[:2, 3] + (x0 + x1) / 2 * ego[:2, 0]
        flat = np.concatenate([flat, [[*middle, math.atan2(ego[1, 0], ego[0, 0])]]])
        sizes = np.concatenate([half, [[(x1 - x0) / 2, (y1 - y0) / 2]]])
        i, j = np.triu_indices(len(flat), 1)
        clash = overlap(flat[i], sizes[i], flat[j], sizes[j])
        assert not clash.any(), [scene.actors[k].category for k in i[clash]]


@pytest.mark.parametrize("seed", SEEDS)
def test_actors_stand_on_the_ground_inside_their_boxes(seed):
    scene = scene_of(seed)
    for actor in scene.actors:
        lower, upper = actor.primitives.bounds()
        size = torch.tensor(actor.size, dtype=torch.float64) / 2
        assert (lower.amin(0) >= -size).all() and (upper.amax(0) <= size).all()
        assert (upper.amax(0) - lower.amin(0) > 2 * size - 1e-4).all(), "the box is tight"
        pose = actor.pose_at(2.0)
        foot = pose @ torch.tensor([0, 0, -actor.size[2] / 2, 1], dtype=torch.float64)
        assert abs(float(scene.ground.height(foot[:2]) - foot[2])) < 1e-9
        speed = float(actor.velocity_at(2.0).norm())
        assert speed < (2.0 if actor.category.startswith("human") else 16.0)


def test_sizes_are_plausible():
    ranges = {
        "vehicle.car": (3.5, 5.6), "vehicle.truck": (4.9, 9.5), "vehicle.bus": (10, 19), "vehicle.trailer": (4, 13),
        "vehicle.construction": (2.5, 8), "vehicle.bicycle": (1.4, 2.2), "vehicle.motorcycle": (1.6, 2.6),
        "human.pedestrian": (0.2, 1.3), "movable_object.trafficcone": (0.2, 0.6), "movable_object.barrier": (0.3, 0.8),
    }  # fmt: skip
    for seed in SEEDS:
        for actor in scene_of(seed).actors:
            for start, (low, high) in ranges.items():
                if actor.category.startswith(start):
                    assert low < actor.size[0] < high, (actor.category, actor.size)
            if actor.category.startswith("human"):
                assert 1.0 < actor.size[2] < 2.0


def test_boxes_in_ego_frame_follow_the_actors():
    scene = scene_of(2)
    ego2global = scene.ego.pose_at(3.0)
    boxes = scene.boxes_at(3.0, ego2global)
    assert len(boxes) == len(scene.actors) and "car" in boxes.names and "pedestrian" in boxes.names
    i = next(i for i, actor in enumerate(scene.actors) if actor.motion.moves)
    expected = torch.linalg.inv(ego2global) @ scene.actors[i].pose_at(3.0)
    assert torch.allclose(boxes.box2ego[i], expected)
    velocity = (scene.actors[i].pose_at(3.01) - scene.actors[i].pose_at(2.99))[:3, 3] / 0.02
    assert torch.allclose(boxes.velocities[i], (torch.linalg.inv(ego2global)[:3, :3] @ velocity)[:2], atol=0.02)


def test_the_ground_under_the_ego_car_is_road_and_sidewalks_are_beside_it():
    for seed in SEEDS:
        scene = scene_of(seed)
        way = torch.from_numpy(scene.ego.poses_at(np.linspace(0, 9.5, 40))[:, :2, 3].copy())
        assert (scene.ground.label_at(way) == WORLD_TAXONOMY.id_of("driveable_surface")).all()
        people = [a for a in scene.actors if a.attribute == "pedestrian.standing" and "worker" not in a.category]
        where = torch.tensor(np.array([a.poses_at([0.0])[0, :2, 3] for a in people]))
        assert (scene.ground.label_at(where) != WORLD_TAXONOMY.id_of("driveable_surface")).all()


def test_weather_light_rig_and_length_by_argument():
    rig = scene_of(0).rig.select(["CAM_FRONT"])
    scene = make_scene(0, rig=rig, key_frames=24, weather="rain", light="night", name="scene-0103")
    assert scene.rig is rig and len(scene.key_times) == 24 and scene.key_times[-1] == 11.5
    assert scene.caption.startswith("a rainy night street") and scene.name == "scene-0103"
    assert scene_of(0).rig["CAM_FRONT"].width == 400 and len(scene_of(0).key_times) == 20
    assert float(scene.sun_direction.norm()) == pytest.approx(1)
    for wrong in ({"split": "all"}, {"weather": "snow"}, {"light": "noon"}, {"key_frames": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
            make_scene(0, **wrong)


def test_a_ground_that_is_too_steep_is_refused():
    ground = scene_of(0).ground
    assert ground.max_slope() <= MAX_SLOPE
    with pytest.raises(ValueError, match="limit is 0.04"):
        replace(ground, ramp=torch.tensor([0.1, 0.0], dtype=torch.float64))
