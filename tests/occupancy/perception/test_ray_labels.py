"""Rays with labels of lidar points: against plain loops, against the specification's numbers, and at the edges."""

import math
from dataclasses import replace

import pytest
import torch
from ray_scene import HEIGHT, SPEC, WIDTH, K, camera2ego, ego_at, frame_at, pose

from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.grids import OCC3D_NUSCENES
from syntheocc.occupancy.perception import ray_projection
from syntheocc.occupancy.perception.ray_config import (
    FILTER_CLASSES,
    FLOW_CLASSES,
    RayConfig,
    published_occflownet_rays,
    published_renderocc_rays,
    published_splattingocc_rays,
)
from syntheocc.occupancy.perception.ray_frames import InputWindow, RayFrame
from syntheocc.occupancy.perception.ray_labels import build_rays
from syntheocc.occupancy.perception.ray_projection import RayCameras
from syntheocc.occupancy.perception.ray_reference import reference_rays
from syntheocc.occupancy.perception.transforms import ImageTransform
from syntheocc.occupancy.transforms import invert_rigid, transform_points

OFFSETS = (-1, 0, 2)
THREE = RayConfig(frame_offsets=OFFSETS)
WINDOW = InputWindow(
    torch.stack([ImageTransform(0.9, 4, 20, 60, 120, flip, 0.05).matrix() for flip in (False, True, False)]), 60, 120
)


def frames(**options):
    return [frame_at(t, **options) for t in OFFSETS]


CONFIGS = {
    "default": THREE,
    "lidar": replace(THREE, ray_origin="lidar"),
    "no filters": RayConfig(
        frame_offsets=OFFSETS, occlusion=False, dynamics="none", crop_to_grid=False, max_distance=None, border=0.0
    ),
    "filter": replace(THREE, dynamics="filter"),
    "keep unmatched": replace(THREE, drop_unmatched=False),
    "occflownet": replace(published_occflownet_rays(), frame_offsets=OFFSETS),
    "renderocc": replace(published_renderocc_rays(), frame_offsets=OFFSETS, num_rays=None),
    "splattingocc": replace(published_splattingocc_rays(), frame_offsets=OFFSETS),
}


@pytest.mark.parametrize("window", [None, WINDOW], ids=["whole", "cropped"])
@pytest.mark.parametrize("name", CONFIGS)
def test_as_the_loops_have_it(name, window):
    config, made = CONFIGS[name], frames(missing=(1,) if name == "filter" else ())
    fast, slow = build_rays(made, config, SPEC, window).rays, reference_rays(made, config, SPEC, window)
    fast.check()
    slow.check()
    assert len(fast) == len(slow) > 100 and len(fast.frames.unique()) == 3
    for value in ("labels", "frames", "cameras", "samples"):
        assert torch.equal(getattr(fast, value), getattr(slow, value)), value
    for value in ("origins", "directions", "distance", "depth", "weights"):
        torch.testing.assert_close(getattr(fast, value).double(), getattr(slow, value), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(fast.pixels.double(), slow.pixels, atol=2e-3, rtol=0)


def test_v8_projection():
    """Section 6, V8: the pixel and the ray of a point at (-4, 0.8, 12.5) in a camera; +0.5 pixel is 6.88 mm off."""
    k = torch.tensor([[1266.4172, 0, 816.2670], [0, 1266.4172, 491.5071], [0, 0, 1]], dtype=torch.float64)
    in_camera = torch.tensor([[-4.0, 0.8, 12.5]], dtype=torch.float64)
    cam2ego = camera2ego(0.0)
    frame = RayFrame(
        points=transform_points(cam2ego, in_camera).float(),
        labels=torch.tensor([4], dtype=torch.uint8),
        frame2global=ego_at(2),
        lidar_origin=torch.zeros(3, dtype=torch.float64),
        intrinsics=k[None],
        cam2global=(ego_at(2) @ cam2ego)[None],
        sizes=torch.tensor([[900.0, 1600.0]], dtype=torch.float64),
    )
    found = {}
    for pixels in ("exact", "half_pixel", "whole_pixel"):
        config = RayConfig(frame_offsets=(0,), dynamics="none", pixels=pixels)
        found[pixels] = build_rays([frame], config, OCC3D_NUSCENES.spec).rays
    exact = found["exact"]
    torch.testing.assert_close(exact.pixels, torch.tensor([[411.013496, 572.5578008]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(exact.depth, torch.tensor([12.5]), atol=1e-5, rtol=0)
    torch.testing.assert_close(exact.distance, torch.tensor([13.1487642]), atol=1e-5, rtol=0)
    # What z would be too short by: here, and in the image's corner.
    torch.testing.assert_close(exact.distance / exact.depth, torch.tensor([1.05190114]), atol=1e-6, rtol=0)
    cameras = RayCameras.of([frame], frame, None, torch.device("cpu"))
    corner = cameras.directions(torch.tensor([0]), torch.zeros(2, 1))
    torch.testing.assert_close(corner.norm(dim=0), torch.tensor([1.25142741]), atol=1e-6, rtol=0)
    direction = exact.directions.double() @ cam2ego[:3, :3]
    expected = torch.tensor([[-0.3042111, 0.06084222, 0.95065968]], dtype=torch.float64)
    torch.testing.assert_close(direction, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(exact.points, frame.points)
    assert found["whole_pixel"].pixels.tolist() == [[411.0, 572.0]]
    for pixels, millimetres in (("half_pixel", 6.88), ("whole_pixel", 4.60)):
        away = torch.linalg.cross(found[pixels].directions.double(), (exact.points - exact.origins).double())
        assert abs(1e3 * float(away.norm()) - millimetres) < 0.02


def test_points_of_neighbours_stand_where_they_were():
    """A point of another frame, carried through the global frame, is the end of its ray in the key frame's ego."""
    made = frames()
    rays = build_rays(made, replace(CONFIGS["no filters"], border=1.0), SPEC).rays
    for t, offset in enumerate(OFFSETS):
        all_points = transform_points(invert_rigid(ego_at(0)) @ ego_at(offset), made[t].points.double())
        ends = rays.select(rays.frames == t).points.double()
        assert float(torch.cdist(ends, all_points).amin(1).max()) < 1e-4
    # From where the camera was when it fired, not where it was at the lidar's time.
    origin = rays.origins[(rays.frames == 2) & (rays.cameras == 1)][0].double()
    camera = invert_rigid(ego_at(0)) @ ego_at(2 - 0.02) @ camera2ego(2 * math.pi / 3)
    torch.testing.assert_close(origin, camera[:3, 3], atol=1e-5, rtol=0)
    at_lidar_time = invert_rigid(ego_at(0)) @ ego_at(2) @ camera2ego(2 * math.pi / 3)
    assert float((origin - at_lidar_time[:3, 3]).norm()) > 0.05


def test_image_augmentation_only_hides():
    """Acceptance test 4: rays and labels are what they were, less those that the input does not show."""
    config = replace(THREE, occlusion=False)
    whole, cropped = (build_rays(frames(), config, SPEC, window).rays for window in (None, WINDOW))
    assert 50 < len(cropped) < 0.9 * len(whole)
    names = lambda rays: rays.pixels.double() + 1e4 * (rays.cameras + 10 * rays.frames)[:, None]  # noqa: E731
    rows = torch.cdist(names(cropped), names(whole)).argmin(1)
    same = whole.select(rows)
    for value in ("origins", "directions", "distance", "depth", "labels", "pixels", "frames", "cameras", "weights"):
        assert torch.equal(getattr(same, value), getattr(cropped, value)), value
    matrix = WINDOW.matrices[cropped.cameras]
    place = (matrix[:, :2, :2] @ cropped.pixels.double()[..., None])[..., 0] + matrix[:, :2, 2]
    assert (place >= -0.51).all() and (place < torch.tensor([119.51, 59.51])).all()
    left_out = torch.ones(len(whole), dtype=torch.bool)
    left_out[rows] = False
    matrix = WINDOW.matrices[whole.cameras[left_out]]
    place = (matrix[:, :2, :2] @ whole.pixels[left_out].double()[..., None])[..., 0] + matrix[:, :2, 2]
    assert ((place < -0.49) | (place > torch.tensor([119.49, 59.49]))).any(-1).all()


def one_ray_frame(points, labels, views=1):
    """A frame at the origin with a camera that looks ahead."""
    return replace(
        frame_at(0, views=views, skew=0.0),
        points=torch.tensor(points, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.uint8),
    )


def test_what_stands_behind_a_near_point_is_hidden():
    """8 of 1600 pixels are 0.8 of 160: at 10 m a cell is 8 cm wide."""
    behind = [[11.0, 0.0, 1.5], [13.0, 0.0, 1.5], [12.0, 1.5, 1.5], [11.4, 0.0, 1.5], [5.0, 0.0, 1.5]]
    frame = one_ray_frame(behind[:4], [11, 15, 16, 4])
    config = RayConfig(frame_offsets=(0,), dynamics="none")
    assert build_rays([frame], config, SPEC).rays.labels.tolist() == [11, 16, 4]
    frame = one_ray_frame(behind, [11, 15, 16, 4, 7])  # someone in front hides three
    assert build_rays([frame], config, SPEC).rays.labels.tolist() == [16, 7]
    assert len(build_rays([frame], replace(config, occlusion=False), SPEC).rays) == 5


def test_a_point_that_two_cameras_see_is_one_ray_of_the_lidar():
    made = [frame_at(0, views=8)]  # overlapping views
    config = RayConfig(frame_offsets=(0,), dynamics="none", occlusion=False)
    cameras, lidar = (build_rays(made, replace(config, ray_origin=o), SPEC).rays for o in ("camera", "lidar"))
    assert len(lidar) < len(cameras)
    ends = {tuple(p) for p in cameras.points.mul(100).round().long().tolist()}
    assert {tuple(p) for p in lidar.points.mul(100).round().long().tolist()} == ends and len(ends) == len(lidar)
    torch.testing.assert_close(lidar.origins, torch.tensor([[0.9, 0.0, 1.8]]).expand(len(lidar), 3))


def test_the_last_of_a_pixel_is_its_class():
    """RenderOcc's map: four points in one pixel share the last one's class; their depths stay their own."""
    place = lambda depth, shift: [1.0 + depth, shift * depth, 1.5]  # noqa: E731
    frame = one_ray_frame([place(5, 0.0), place(9, 0.001), place(7, -0.001), place(7, 0.1)], [4, 15, 16, 7])
    rays = build_rays([frame], replace(published_splattingocc_rays(), frame_offsets=(0,)), SPEC).rays
    assert rays.labels.tolist() == [16, 16, 16, 7] and rays.depth.round().tolist() == [5, 9, 7, 7]
    assert torch.equal(rays.pixels[0], rays.pixels[1]) and torch.equal(rays.directions[0], rays.directions[2])


def test_moving_classes_of_neighbours():
    made = frames()
    rays = build_rays(made, CONFIGS["filter"], SPEC).rays
    others = rays.select(~rays.is_key).labels
    assert not torch.isin(others, torch.tensor(FILTER_CLASSES)).any() and {2, 6} <= set(others.tolist())
    assert torch.isin(rays.select(rays.is_key).labels, torch.tensor(FILTER_CLASSES)).any()
    rays, motion, appeared, vanished = build_rays(made, THREE, SPEC)
    others = rays.select(~rays.is_key)
    flow = others.select(torch.isin(others.labels, torch.tensor(FLOW_CLASSES)))
    # What is left of them are points on the car; random points of these classes are in no box.
    assert 5 < len(flow) and float((flow.labels == 4).float().mean()) > 0.8
    assert len(motion) == 6 and len(appeared) == len(vanished) == 0
    assert len(build_rays(made, CONFIGS["keep unmatched"], SPEC).rays) > len(rays) + 50
    assert build_rays(made, CONFIGS["filter"], SPEC).motion is None


def test_boxes_that_appear_and_vanish():
    """The car is not in the key frame: its points in the others teach nothing that is there."""
    made = [frame_at(-1), frame_at(0, without=("car",)), frame_at(2, without=("walker",))]
    rays, motion, appeared, vanished = build_rays(made, THREE, SPEC)
    others = rays.select(~rays.is_key)
    assert int((others.labels == 4).sum()) < 3
    assert motion.frames.tolist() == [0, 0, 2] and motion.labels.tolist() == [7, 10, 10]
    assert appeared.labels.tolist() == [4, 4] and appeared.frames.tolist() == [0, 2]
    assert vanished.labels.tolist() == [7] and vanished.frames.tolist() == [2]
    appeared.check()


def test_nothing_looks_through_what_vanished():
    """The parked truck is gone in frame 2: what that frame's rays see through its place is not so in the key frame."""
    made = [frame_at(-1, 4000), frame_at(0, 4000), frame_at(2, 4000, without=("truck",))]
    config = replace(THREE, occlusion=False)
    through = build_rays(made, replace(config, drop_through_vanished=False), SPEC).rays
    rays, _, _, vanished = build_rays(made, config, SPEC)
    assert vanished.labels.tolist() == [10] and vanished.frames.tolist() == [2]
    gone, kept = through.select(through.frames == 2), rays.select(rays.frames == 2)
    truck = Boxes(vanished.box2ego, vanished.sizes, ("truck",))

    def meets(rays):
        steps = torch.linspace(0, 1, 200)[:, None, None]
        places = rays.origins + steps * (rays.points - rays.origins)
        return truck.contains(places.flatten(0, 1)).view(200, -1).any(0)

    assert 10 < len(gone) - len(kept) and not meets(kept).any()
    # All but rays that touch a corner between two of the steps.
    assert abs(int(meets(gone).sum()) - (len(gone) - len(kept))) <= 2
    for t in (0, 1):
        assert int((through.frames == t).sum()) == int((rays.frames == t).sum())
    slow = reference_rays(made, config, SPEC)
    assert len(slow) == len(rays) and torch.equal(slow.labels, rays.labels)


def test_beyond_the_scenes_ends():
    made = frames()
    absent = build_rays([None, made[1], None], THREE, SPEC)
    assert absent.rays.is_key.all() and len(absent.motion) == 0
    repeated = build_rays([None, made[1], None], replace(THREE, missing="repeat"), SPEC)
    counts = torch.bincount(repeated.rays.frames).tolist()
    moving = torch.isin(absent.rays.labels, torch.tensor(FLOW_CLASSES)).sum()
    # The key frame three times, but for points of flow classes outside of boxes, which neighbours do not keep.
    assert counts[1] == len(absent.rays) and len(absent.rays) - int(moving) < counts[0] == counts[2] < counts[1]
    torch.testing.assert_close(repeated.motion.source2ego, repeated.motion.target2ego)


def test_frames_without_lidar():
    made = frames()
    blind = [replace(f, points=torch.zeros(0, 3), labels=torch.zeros(0, dtype=torch.uint8)) for f in made]
    rays, motion, _, _ = build_rays([made[0], blind[1], made[2]], THREE, SPEC)
    assert set(rays.frames.tolist()) == {0, 2} and len(motion) == 6
    for config in CONFIGS.values():
        rays = build_rays(blind, replace(config, num_rays=10), SPEC, WINDOW, torch.Generator().manual_seed(0)).rays
        rays.check()
        assert len(rays) == 0 and rays.frame_offsets == OFFSETS
    unlabelled = [replace(f, labels=torch.full_like(f.labels, 255)) for f in made]
    assert len(build_rays(unlabelled, THREE, SPEC).rays) == 0
    # Nobody moved away while there is nothing to see.
    hidden = [replace(f, intrinsics=torch.zeros_like(f.intrinsics)) for f in made]
    assert len(build_rays(hidden, THREE, SPEC).rays) == 0


def test_draws_and_weights():
    made, g = frames(), torch.Generator()
    weights = tuple(float(c) for c in range(1, 18))
    whole = build_rays(made, replace(THREE, loss_weights=weights), SPEC).rays
    assert torch.equal(whole.weights, 1.0 + whole.labels)
    config = replace(THREE, num_rays=100, draw_weights=tuple(50.0 if c == 12 else 1.0 for c in range(17)))
    drawn = build_rays(made, config, SPEC, None, g.manual_seed(0)).rays
    assert len(drawn) == 100 and torch.equal(drawn.weights, torch.ones(100))
    again = build_rays(made, config, SPEC, None, g.manual_seed(0)).rays
    assert torch.equal(drawn.pixels, again.pixels)
    assert int((drawn.labels == 12).sum()) > 0.9 * min(100, int((whole.labels == 12).sum()))
    share = lambda rays: float(rays.is_key.float().mean())  # noqa: E731
    few = replace(config, draw_weights=None, neighbour_weight=0.0)
    assert share(build_rays(made, few, SPEC, None, g.manual_seed(0)).rays) == 1.0
    many = [build_rays(made, replace(config, draw_weights=None), SPEC, None, g.manual_seed(i)).rays for i in range(9)]
    assert sum(share(rays) for rays in many) / 9 > share(whole) + 0.1


def test_what_cannot_be():
    made = frames()
    with pytest.raises(ValueError, match="give a generator"):
        build_rays(made, replace(THREE, num_rays=5), SPEC)
    with pytest.raises(ValueError, match="2 frames for the offsets"):
        build_rays(made[:2], THREE, SPEC)
    with pytest.raises(ValueError, match="key frame among"):
        build_rays([made[0], None, made[2]], THREE, SPEC)
    with pytest.raises(ValueError, match="3 views"):
        build_rays([frame_at(-1, views=2), *made[1:]], THREE, SPEC)
    with pytest.raises(ValueError, match="no boxes"):
        build_rays([replace(made[0], boxes=None), *made[1:]], THREE, SPEC)
    nameless = replace(made[1].boxes, instances=("",) * 4)
    with pytest.raises(ValueError, match="instance tokens"):
        build_rays([made[0], replace(made[1], boxes=nameless), made[2]], THREE, SPEC)
    with pytest.raises(ValueError, match="loss_weights are of 3 classes"):
        build_rays(made, replace(THREE, loss_weights=(1.0, 1.0, 1.0)), SPEC)
    with pytest.raises(ValueError, match="num_rays"):
        reference_rays(made, replace(THREE, num_rays=5), SPEC)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"frame_offsets": (-1, 1)}, "0 among them"),
        ({"frame_offsets": (0, 1, 1)}, "different"),
        ({"num_rays": 0}, "num_rays"),
        ({"depth_range": (5.0, 2.0)}, "hold nothing"),
        ({"max_distance": 0.01}, "hold nothing"),
        ({"border": -1.0}, "border"),
        ({"dynamics": "flow"}, "dynamics must be one of motion"),
        ({"pixels": "half_pixel", "ray_origin": "lidar"}, "from the lidar"),
        ({"draw_weights": (-1.0,)}, "draw_weights"),
    ],
)
def test_settings_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        RayConfig(**changes)


def test_the_published_settings():
    flow, static = published_occflownet_rays(), published_occflownet_rays(flow=False)
    assert flow.dynamics == "motion" and static.dynamics == "filter" and flow.frame_offsets == tuple(range(-3, 4))
    assert abs(flow.loss_weights[2] - 1.7324) < 1e-4 and abs(sum(flow.loss_weights) / 17 - 1) < 1e-6
    renderocc = published_renderocc_rays()
    assert renderocc.num_rays == 38400 and abs(renderocc.draw_weights[2] - 933.3283) < 1e-2
    assert abs(renderocc.loss_weights[0] - 0.0716) < 1e-4 and renderocc.depth_range == (0.0, 52.0)
    assert published_splattingocc_rays().frame_offsets == (-1, 0, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_frames_in_one_go(name, monkeypatch):
    """As a GPU does it, and frames of one size in memory."""
    one = build_rays(frames(), CONFIGS[name], SPEC, WINDOW).rays
    monkeypatch.setattr(ray_projection, "_parts", lambda frames, present: [present])
    other = build_rays(frames(), CONFIGS[name], SPEC, WINDOW).rays
    for value in ("labels", "frames", "cameras"):
        assert torch.equal(getattr(one, value), getattr(other, value)), value
    for value in ("origins", "directions", "distance", "depth", "pixels", "weights"):
        torch.testing.assert_close(getattr(one, value), getattr(other, value), atol=1e-4, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("allow_tf32", [False, True])
def test_the_same_on_a_gpu(name, allow_tf32, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", allow_tf32)
    made = frames()
    cuda = [replace(f, points=f.points.cuda(), labels=f.labels.cuda()) for f in made]
    config = replace(CONFIGS[name], num_rays=150)
    g = torch.Generator()
    one = build_rays(made, config, SPEC, WINDOW, g.manual_seed(0))
    other = build_rays(cuda, config, SPEC, WINDOW, g.manual_seed(0))
    assert other.rays.device.type == "cuda" and len(one.rays) == len(other.rays)
    for value in ("labels", "frames", "cameras"):
        assert torch.equal(getattr(one.rays, value), getattr(other.rays, value).cpu()), value
    for value in ("origins", "directions", "distance", "depth", "pixels"):
        torch.testing.assert_close(getattr(one.rays, value), getattr(other.rays, value).cpu(), atol=2e-3, rtol=1e-4)
    if one.motion is not None:
        torch.testing.assert_close(one.motion.target2ego, other.motion.target2ego.cpu())


@pytest.mark.parametrize("place", [ray_projection._placed, ray_projection._written_out])
def test_points_are_placed_alike_by_both_ways(place):
    g = torch.Generator().manual_seed(0)
    matrices, points = torch.randn(2, 18, 4, generator=g), 40 * torch.randn(2, 3, 50, generator=g)
    expected = matrices[:, :, :3].double() @ points.double() + matrices[:, :, 3:].double()
    torch.testing.assert_close(place(matrices, points).double(), expected, atol=1e-4, rtol=1e-5)


def test_the_scene_is_what_the_tests_take_it_for():
    frame = frame_at(0)
    assert K[0, 2] != WIDTH / 2 - 0.5 and K[1, 2] != HEIGHT / 2 - 0.5  # a principal point that cannot be left out
    assert pose(1.0)[0, 3] == 1 and frame.exists.all()
