import math

import pytest
import torch

from syntheocc.occupancy.transforms import transform_points
from syntheocc.worlds.camera_images import render_view
from syntheocc.worlds.lidar import LidarModel, camera_time, scan
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.street import nominal_rig
from syntheocc.worlds.taxonomy import LIDARSEG_NAMES, LIDARSEG_TO_WORLD

MODEL = LidarModel(azimuths=300, range_noise=0.0)


@pytest.fixture(scope="module")
def sweep_of_scene():
    scene = make_scene(0, image_size=(100, 56), weather="clear", light="day")
    return scene, scan(scene, 1.0, MODEL)


def test_camera_stamps_are_those_of_a_real_frame():
    # ms after the lidar's stamp, nuScenes scene-0061, first frame; the nominal rig is level and unjittered
    real = {
        "CAM_FRONT_LEFT": -43.1, "CAM_FRONT": -35.5, "CAM_FRONT_RIGHT": -27.6, "CAM_BACK_RIGHT": -20.1,
        "CAM_BACK": -10.4, "CAM_BACK_LEFT": -0.5,
    }  # fmt: skip
    for name, camera in nominal_rig().items():
        assert 1e3 * camera_time(0.0, camera) == pytest.approx(real[name], abs=0.3)


def test_rings_and_directions(sweep_of_scene):
    scene, sweep = sweep_of_scene
    points, ring = sweep.points[:, :3].double(), sweep.points[:, 4]
    assert ring.unique().tolist() == list(range(32))
    elevation = torch.rad2deg(torch.asin(points[:, 2] / points.norm(dim=-1)))
    expected = -30.67 + ring * 41.34 / 31
    far = points.norm(dim=-1) > 10
    # The car drove on and rocked while it turned: a few tenths of a degree.
    assert (elevation - expected)[far].abs().max() < 2.0 and (elevation - expected)[far].abs().median() < 0.3
    assert sweep.points[:, 3].min() >= 0 and sweep.points[:, 3].max() <= 255
    assert (sweep.times.diff() >= 0).all() and sweep.times[0] > 0.95 and sweep.times[-1] == 1.0
    # clockwise from 106 degrees left of ahead
    yaw = torch.atan2(points[:, 1], points[:, 0]) - math.pi / 2
    last = yaw[far & (sweep.times > 0.995)].median()
    assert math.degrees(math.remainder(float(last) - math.radians(106), 2 * math.pi)) == pytest.approx(18, abs=12)


def test_points_lie_on_the_ground_whose_class_they_carry(sweep_of_scene):
    scene, sweep = sweep_of_scene
    lidar2world = scene.ego.pose_at(1.0) @ scene.lidar2ego
    world = transform_points(lidar2world, sweep.points[:, :3].double())
    flat = torch.tensor([name.startswith("flat.") for name in LIDARSEG_NAMES])[sweep.category.long()]
    assert flat.float().mean() > 0.2
    above = world[flat, 2] - scene.ground.height(world[flat, :2])
    # Curbs are flat.sidewalk too, but solids that stand out of the surface.
    assert above.min() > -1e-3 and above.max() < 0.3 and (above < 1e-3).float().mean() > 0.95
    label = torch.as_tensor(LIDARSEG_TO_WORLD)[sweep.category.long()][flat]
    same = label == scene.ground.label_at(world[flat, :2])
    assert same[above < 1e-3].float().mean() > 0.999


def test_points_of_an_object_lie_in_its_box_where_it_was_when_hit(sweep_of_scene):
    scene, sweep = sweep_of_scene
    world = transform_points(scene.ego.pose_at(1.0) @ scene.lidar2ego, sweep.points[:, :3].double())
    hit = (sweep.instance > 0).nonzero()[:, 0]
    assert len(hit) > 50
    for k in hit[:: max(1, len(hit) // 60)].tolist():
        actor = scene.actors[int(sweep.instance[k]) - 1]
        local = torch.linalg.solve(actor.pose_at(float(sweep.times[k])), torch.cat([world[k], world.new_ones(1)]))
        assert (local[:3].abs() <= torch.tensor(actor.size) / 2 + 0.02).all()
        assert LIDARSEG_NAMES[int(sweep.category[k])] == actor.category


def test_the_lidar_and_a_camera_agree_on_depth_and_class(sweep_of_scene):
    scene, sweep = sweep_of_scene
    camera = scene.rig["CAM_FRONT"].resized(224, 400)
    t = camera_time(1.0, camera)
    view = render_view(scene, camera, scene.ego.pose_at(t), t)
    world = transform_points(scene.ego.pose_at(1.0) @ scene.lidar2ego, sweep.points[:, :3].double())
    pixels, depth = camera.project(transform_points(torch.linalg.inv(scene.ego.pose_at(t) @ camera.cam2ego), world))
    column, row = pixels.round().nan_to_num(-1).long().unbind(-1)
    inside = (depth > 1) & (column >= 1) & (row >= 1) & (column < 399) & (row < 223)
    error = (view.depth[row[inside], column[inside]] - depth[inside]).abs()
    near = error < 0.5
    assert near.float().mean() > 0.7 and error[near].median() < 0.05
    seen = view.labels[row[inside], column[inside]][near]
    assert (seen == torch.as_tensor(LIDARSEG_TO_WORLD)[sweep.category.long()][inside][near]).float().mean() > 0.95


def test_rain_and_fog_take_points_away_and_the_same_seed_gives_the_same_sweep():
    clear, fog = (
        scan(make_scene(3, image_size=(100, 56), weather=w, light="day"), 2.0, MODEL) for w in ("clear", "fog")
    )
    far = [int((sweep.points[:, :3].norm(dim=-1) > 30).sum()) for sweep in (fog, clear)]
    assert far[0] < 0.8 * far[1]
    again = scan(make_scene(3, image_size=(100, 56), weather="clear", light="day"), 2.0, MODEL)
    assert torch.equal(clear.points, again.points) and torch.equal(clear.category, again.category)


@pytest.mark.gpu
def test_a_gpu_scans_the_same_points():
    scene = make_scene(5, image_size=(32, 16), key_frames=2)
    on_cpu, on_gpu = (scan(scene, scene.key_times[1], device=device) for device in ("cpu", "cuda"))
    assert on_gpu.points.device.type == "cpu"
    # A pulse along an edge may go either way by its last bit.
    assert abs(len(on_cpu.points) - len(on_gpu.points)) <= 3
    keys = [list(zip(s.times.tolist(), s.points[:, 4].tolist(), strict=True)) for s in (on_cpu, on_gpu)]
    known = {key: i for i, key in enumerate(keys[0])}
    pairs = [(known[key], i) for i, key in enumerate(keys[1]) if key in known]
    assert len(pairs) >= len(on_cpu.points) - 3
    first, second = torch.tensor(pairs).unbind(1)
    apart = (on_cpu.points[first] - on_gpu.points[second]).abs().amax(1) > 1e-3
    assert int(apart.sum()) <= 3
    assert int((on_cpu.category[first] != on_gpu.category[second]).sum()) <= 3
    assert int((on_cpu.instance[first] != on_gpu.instance[second]).sum()) <= 3
