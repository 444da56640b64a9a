import math

import pytest
import torch

from syntheocc.occupancy.cameras import Camera
from syntheocc.occupancy.transforms import invert_rigid, transform_points
from syntheocc.worlds.camera_images import Shot, render_shots, render_view
from syntheocc.worlds.geometry import all_solids, poses_at
from syntheocc.worlds.intersect import GROUND, first_hit
from syntheocc.worlds.primitives import Primitives
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.taxonomy import WORLD_TAXONOMY


@pytest.fixture(scope="module")
def scene():
    return make_scene(0, image_size=(100, 56))


def world_solids(scene, t):
    solids, split, owner = all_solids(scene)
    pose = poses_at(scene, [t], scene.ego.pose_at(t)[None])[0]
    still, moving = torch.arange(split), torch.arange(split, len(solids))
    return Primitives.cat([solids.select(still), solids.select(moving).transformed(pose[owner])])


@pytest.mark.parametrize("model", ["pinhole", "fisheye"])
def test_depth_class_and_instance_are_those_of_the_exact_rays(scene, model):
    camera = scene.rig["CAM_FRONT"].resized(28, 50)
    if model == "fisheye":
        camera = Camera([[16, 0, 25], [0, 16, 14], [0, 0, 1]], camera.cam2ego, 28, 50, "fisheye")
    t = 1.3
    ego = scene.ego.pose_at(t)
    view = render_view(scene, camera, ego, t)
    v, u = torch.meshgrid(torch.arange(28.0), torch.arange(50.0), indexing="ij")
    rays = camera.pixel_rays(torch.stack([u, v], -1)).reshape(-1, 3)
    cam2world = ego @ camera.cam2ego
    directions = rays @ cam2world[:3, :3].T
    solids = world_solids(scene, t)
    distance, index, _ = first_hit(solids, scene.ground, cam2world[:3, 3].expand_as(directions), directions, 2000.0)
    depth = distance / directions.norm(dim=-1)
    points = cam2world[:3, 3] + depth.nan_to_num(posinf=0.0)[:, None] * directions
    label = torch.where(index >= 0, solids.label[index.clamp_min(0)].long(), WORLD_TAXONOMY.free)
    label = torch.where(index == GROUND, scene.ground.label_at(points[:, :2]).long(), label)
    instance = torch.where(index >= 0, solids.instance[index.clamp_min(0)], 0)
    assert (view.labels.flatten() != label).float().mean() < 0.005
    assert (view.instances.flatten() != instance).float().mean() < 0.005
    both = torch.isfinite(view.depth.flatten()) & torch.isfinite(depth)
    assert ((view.depth.flatten() - depth)[both].abs() / depth[both]).quantile(0.99) < 1e-4
    assert 0.2 < both.float().mean() and torch.isinf(view.depth[view.labels == WORLD_TAXONOMY.free]).all()


def test_the_same_seed_gives_the_same_bytes_and_another_instant_does_not(scene):
    camera, ego = scene.rig["CAM_BACK"], scene.ego.pose_at(2.0)
    first, again = (
        render_view(scene, camera, ego, 2.0),
        render_view(make_scene(0, image_size=(100, 56)), camera, ego, 2.0),
    )
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, render_view(scene, camera, ego, 2.5).image)
    assert first.image.shape == (56, 100, 3) and first.image.float().std() > 10


def test_numba_shading_is_the_torch_shading():
    pytest.importorskip("numba")
    for seed, chosen in ((0, {}), (1, {"weather": "rain", "light": "night"})):
        scene = make_scene(seed, image_size=(100, 56), **chosen)
        shots = [Shot(scene.rig["CAM_FRONT"], scene.ego.pose_at(1.0), 1.0)]
        slow, fast = (render_shots(scene, shots, backend=name, sharp=True)[0] for name in ("torch", "numba"))
        same = slow.labels == fast.labels
        assert same.float().mean() > 0.995
        assert ((slow.image.int() - fast.image.int()).abs().amax(-1)[same] > 4).float().mean() < 0.01


def test_shadow_falls_away_from_the_sun():
    """A person-checkable scene: brightness of the road behind a car, seen from the sun, against the road in light."""
    scene = make_scene(0, image_size=(100, 56), weather="clear", light="day")
    from syntheocc.worlds.geometry import scene_geometry
    from syntheocc.worlds.shadows import light_maps

    geometry = scene_geometry(scene)
    ego = scene.ego.pose_at(0.0)
    posed = geometry.posed(poses_at(scene, [0.0], ego[None]))
    eye = ego[None, :3, 3] + torch.tensor([0.0, 0.0, 1.5])
    maps = light_maps(geometry, posed, eye, eye, -scene.sun_direction, 256, 64.0)
    generator = torch.Generator().manual_seed(1)
    xy = eye[0, :2] + 16 * (torch.rand(300, 2, generator=generator, dtype=torch.float64) - 0.5)
    points = torch.cat([xy, scene.ground.height(xy)[:, None] + 0.05], -1)
    toward = scene.sun_direction.expand_as(points)
    blocked = torch.isfinite(first_hit(world_solids(scene, 0.0), None, points, toward)[0])
    lit = maps.lit(torch.zeros(300, dtype=torch.int64), (points - eye).float(), scene.ground.normal(xy).float(), 0.04)
    # Half a texel of a shadow's edge may go either way.
    assert ((lit < 0.5) == blocked).float().mean() > 0.93
    assert 0 < blocked.float().mean() < 1


def test_sizes_must_agree(scene):
    shot = Shot(scene.rig["CAM_BACK"], scene.ego.pose_at(0.0), 0.0)
    other = Shot(scene.rig["CAM_BACK"].resized(20, 30), scene.ego.pose_at(0.0), 0.0)
    with pytest.raises(ValueError, match="one size"):
        render_shots(scene, [shot, other])


def test_the_ego_body_shows_in_the_rear_camera(scene):
    view = render_view(scene, scene.rig["CAM_BACK"], scene.ego.pose_at(1.0), 1.0)
    near = view.depth[-1]
    assert (near < 3).any() and math.isfinite(float(near.min()))


def test_projected_points_of_a_depth_map_return_to_their_pixels(scene):
    camera, ego = scene.rig["CAM_FRONT_LEFT"], scene.ego.pose_at(1.0)
    view = render_view(scene, camera, ego, 1.0)
    v, u = torch.meshgrid(torch.arange(56.0), torch.arange(100.0), indexing="ij")
    pixels = torch.stack([u, v], -1).double()
    seen = torch.isfinite(view.depth)
    points = (camera.pixel_rays(pixels) * view.depth.double()[..., None])[seen]
    world = transform_points(ego @ camera.cam2ego, points)
    back, depth = camera.project(transform_points(invert_rigid(ego @ camera.cam2ego), world))
    assert (back - pixels[seen]).abs().max() < 1e-6 and (depth - view.depth[seen]).abs().max() < 1e-3
