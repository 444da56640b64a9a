"""Warping between views whose overlap can be worked out by hand."""

import math

import pytest
import torch

from syntheocc.evaluation.consistency import overlaps, warp_difference
from syntheocc.occupancy.cameras import Camera, CameraRig

H, W, FOCAL = 12, 20, 10.0
FACING = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1]], dtype=torch.float64)


def camera(y: float, model: str = "pinhole") -> Camera:
    """A camera that looks along +x from (0, y, 1)."""
    pose = FACING.clone()
    pose[1, 3] = y
    return Camera([[FOCAL, 0, (W - 1) / 2], [0, FOCAL, (H - 1) / 2], [0, 0, 1]], pose, H, W, model)


def side_by_side(baseline: float) -> CameraRig:
    return CameraRig({"left": camera(baseline / 2), "right": camera(-baseline / 2)})


def wall(columns: torch.Tensor) -> torch.Tensor:
    """A picture [3, H, W] whose colour grows with the column of the left camera."""
    return (columns.float() / 40).expand(3, H, W).clone()


def test_a_wall_shifts_by_the_disparity():
    # A wall 5 m ahead, cameras 2 m apart: disparity = focal * baseline / depth = 10 * 2 / 5 = 4 pixels.
    rig, depth = side_by_side(2.0), torch.full((2, H, W), 5.0)
    found = overlaps(depth, rig, torch.tensor([[1], [-1]]))
    assert len(found.view) == H * (W - 4)
    assert set(found.view.tolist()) == {0} and set(found.other.tolist()) == {1}
    assert torch.allclose(found.position[:, 0], found.column.float() - 4, atol=1e-4)
    assert torch.allclose(found.position[:, 1], found.row.float(), atol=1e-4)
    left = wall(torch.arange(W))
    right = wall(torch.arange(W) + 4)
    difference, correlation, pixels = warp_difference(torch.stack([left, right]), found)
    assert difference == pytest.approx(0, abs=1e-6) and correlation == pytest.approx(1) and pixels == H * (W - 4)
    # Views that were not shifted are 4 columns, a tenth of the brightness, apart.
    assert warp_difference(torch.stack([left, left]), found)[0] == pytest.approx(0.1, abs=1e-6)
    # Someone else's neighbour, with a constant picture, correlates with nothing.
    assert math.isnan(warp_difference(torch.stack([left, right]), found, torch.ones(2, 3, H, W))[1])


def test_what_something_hides_or_the_sky_is_left_out():
    rig, depth = side_by_side(2.0), torch.full((2, H, W), 5.0)
    depth[1, :, :4] = 2.0  # a post in front of the right camera hides the wall in its first four columns
    depth[0, 0] = torch.inf  # sky in the left view's first row
    found = overlaps(depth, rig, torch.tensor([[1], [-1]]))
    assert len(found.view) == (H - 1) * (W - 8)
    assert int(found.column.min()) == 8 and int(found.row.min()) == 1


def test_neighbours_come_from_the_rig_and_images_may_be_smaller_than_the_cameras():
    rig = side_by_side(2.0)
    both = overlaps(torch.full((2, H, W), 5.0), rig)
    assert len(both.view) == 2 * H * (W - 4)
    half = overlaps(torch.full((2, H // 2, W // 2), 5.0), rig)
    assert len(half.view) == 2 * (H // 2) * (W // 2 - 2)


def test_errors_and_an_empty_overlap():
    with pytest.raises(ValueError, match="2 cameras"):
        overlaps(torch.ones(3, H, W), side_by_side(1.0))
    fisheye = CameraRig({"a": camera(0, "fisheye"), "b": camera(1, "fisheye")})
    with pytest.raises(ValueError, match="pinhole"):
        overlaps(torch.ones(2, H, W), fisheye)
    nothing = overlaps(torch.full((2, H, W), torch.inf), side_by_side(2.0))
    difference, correlation, pixels = warp_difference(torch.zeros(2, 3, H, W), nothing)
    assert math.isnan(difference) and math.isnan(correlation) and pixels == 0


def test_a_rendered_scene_agrees_with_itself_and_not_with_another():
    """Real renders: neighbours agree where they overlap, better than with the neighbour of another scene."""
    from syntheocc.worlds.camera_images import Shot, render_shots
    from syntheocc.worlds.lidar import camera_time
    from syntheocc.worlds.scene import make_scene
    from syntheocc.worlds.stream import rig_at

    frames = []
    for seed in (3, 4):
        scene = make_scene(seed, image_size=(100, 56), weather="clear", light="day")
        mounted = scene.rig.select(("CAM_FRONT_LEFT", "CAM_FRONT")).values()
        shots = [Shot(c, scene.ego.pose_at(camera_time(1.0, c)), camera_time(1.0, c)) for c in mounted]
        views = render_shots(scene, shots)
        images = torch.stack([view.image for view in views]).movedim(-1, 1).float() / 255
        rig = rig_at(scene, 1.0).select(("CAM_FRONT_LEFT", "CAM_FRONT"))
        frames.append((images, torch.stack([view.depth for view in views]), rig))
    (images, depth, rig), (strange, _, _) = frames
    found = overlaps(depth, rig)
    real, shuffled = warp_difference(images, found), warp_difference(images, found, strange)
    assert real[2] > 100 and real[1] > 0.7
    assert real[0] < 0.5 * shuffled[0] and real[1] > shuffled[1] + 0.3
