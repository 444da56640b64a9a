"""Ray labels and box motion: checks, selection, batching, augmentation, and the vectors V9 of the specification."""

import math

import pytest
import torch

from syntheocc.occupancy.perception.transforms import GridTransform
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels
from syntheocc.occupancy.transforms import rotation_z, transform_points


def make_rays(number=6, offsets=(-1, 0, 1), seed=0) -> RayLabels:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(number, 3, generator=generator)
    index = torch.arange(number)
    return RayLabels(
        origins=torch.randn(number, 3, generator=generator),
        directions=directions / directions.norm(dim=-1, keepdim=True),
        distance=1 + 20 * torch.rand(number, generator=generator),
        depth=1 + torch.rand(number, generator=generator),
        labels=index % 17,
        weights=torch.ones(number),
        frames=index % len(offsets),
        cameras=index % 6,
        pixels=900 * torch.rand(number, 2, generator=generator),
        samples=torch.zeros(number, dtype=torch.int64),
        frame_offsets=offsets,
    )


def pose(x, y, z, yaw=0.0):
    matrix = rotation_z(yaw)
    matrix[:3, 3] = torch.tensor([x, y, z], dtype=torch.float64)
    return matrix


def make_motion() -> BoxMotion:
    """The car of V9: from (10, 0, 0.6) to (15, 1, 0.6), turned by 10 degrees."""
    return BoxMotion(
        source2ego=pose(10, 0, 0.6)[None],
        target2ego=pose(15, 1, 0.6, math.radians(10))[None],
        sizes=torch.tensor([[4.6, 1.9, 1.7]], dtype=torch.float64),
        labels=torch.tensor([4]),
        frames=torch.tensor([2]),
        samples=torch.tensor([0]),
    )


def test_points_lie_where_the_rays_end():
    rays = make_rays()
    rays.check()
    torch.testing.assert_close((rays.points - rays.origins).norm(dim=-1), rays.distance)
    assert rays.offsets.tolist() == [-1, 0, 1, -1, 0, 1]
    assert rays.is_key.tolist() == [False, True, False] * 2


@pytest.mark.parametrize(
    "name, value",
    [
        ("directions", torch.zeros(6, 2)),
        ("distance", torch.zeros(5)),
        ("labels", torch.zeros(6)),
        ("depth", torch.zeros(6, dtype=torch.float64)),
        ("frame_offsets", (0, 0)),
    ],
)
def test_what_does_not_belong_together_is_refused(name, value):
    values = dict(vars(make_rays()))
    with pytest.raises(ValueError, match=name):
        RayLabels(**(values | {name: value}))


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("directions", torch.full((6, 3), 0.7), "unit"),
        ("distance", torch.zeros(6), "positive"),
        ("weights", torch.full((6,), -1.0), "negative"),
        ("frames", torch.full((6,), 3), "frames"),
        ("labels", torch.full((6,), -1), "labels"),
        ("origins", torch.full((6, 3), math.nan), "NaN"),
    ],
)
def test_values_are_checked_on_demand(name, value, words):
    rays = RayLabels(**(dict(vars(make_rays())) | {name: value}))
    with pytest.raises(ValueError, match=words):
        rays.check()


def test_selection_by_mask_and_by_index():
    rays = make_rays()
    mask = torch.tensor([True, False, False, True, False, False])
    torch.testing.assert_close(rays.select(mask).origins, rays.select(torch.tensor([0, 3])).origins)
    assert len(rays.select(torch.zeros(6, dtype=torch.bool))) == 0
    with pytest.raises(ValueError, match="mask of 2"):
        rays.select(torch.tensor([True, False]))
    with pytest.raises(ValueError, match="int64"):
        rays.select(torch.tensor([0.0]))


def test_a_batch_numbers_its_samples():
    batch = RayLabels.collate([make_rays(3), RayLabels.empty((-1, 0, 1)), make_rays(2, seed=1)])
    assert batch.samples.tolist() == [0, 0, 0, 2, 2]
    torch.testing.assert_close(batch.of_sample(2).origins, make_rays(2, seed=1).origins)
    assert len(batch.of_sample(1)) == 0


def test_parts_of_other_frames_do_not_go_together():
    with pytest.raises(ValueError, match="frame_offsets"):
        RayLabels.cat([make_rays(), make_rays(offsets=(-2, 0, 2))])
    with pytest.raises(ValueError, match="no RayLabels"):
        RayLabels.cat([])


def test_another_floating_type_keeps_the_integers():
    rays = make_rays().to(dtype=torch.float64)
    assert rays.origins.dtype == rays.pixels.dtype == torch.float64
    assert rays.labels.dtype == torch.int64
    assert RayLabels.empty((0,), dtype=torch.float64).to("cpu").distance.dtype == torch.float64


def test_no_rays_and_no_boxes_are_valid():
    rays, motion = RayLabels.empty((0,)), BoxMotion.empty()
    rays.check()
    motion.check()
    assert len(rays) == len(motion) == 0 and rays.points.shape == (0, 3) and motion.source2target.shape == (0, 4, 4)
    turned = GridTransform(yaw=0.3, flip_x=True).matrix()
    assert len(rays.transformed(turned)) == len(motion.transformed(turned)) == 0


@pytest.mark.parametrize(
    "turn",
    [
        GridTransform(flip_x=True),
        GridTransform(flip_y=True),
        GridTransform(flip_x=True, flip_y=True),
        GridTransform(yaw=0.3, flip_y=True, scale=1.1),
    ],
)
def test_rays_and_boxes_follow_the_grid(turn):
    rays, motion, matrix = make_rays().to(dtype=torch.float64), make_motion(), turn.matrix()
    moved, boxes = rays.transformed(matrix), motion.transformed(matrix)
    moved.check()
    boxes.check()
    torch.testing.assert_close(moved.points, transform_points(matrix, rays.points))
    torch.testing.assert_close(moved.distance, rays.distance * turn.scale)
    assert (torch.linalg.det(boxes.source2ego) > 0).all()
    # What is on the object is on it still, and moves as before.
    inside = torch.tensor([[10.2, 0.3, 0.9], [11.0, -0.7, 0.2]], dtype=torch.float64)
    before = transform_points(motion.source2target, inside[None])
    after = transform_points(boxes.source2target, transform_points(matrix, inside)[None])
    torch.testing.assert_close(after, transform_points(matrix, before[0])[None])
    local = transform_points(torch.linalg.inv(boxes.source2ego), transform_points(matrix, inside)[None])
    old = transform_points(torch.linalg.inv(motion.source2ego), inside[None])
    torch.testing.assert_close(local.abs(), old.abs() * turn.scale)


def test_a_shear_is_no_augmentation():
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 1] = 0.1
    with pytest.raises(ValueError, match="turns, mirrors"):
        make_rays().transformed(matrix)


def test_v9_padding_and_motion():
    motion = make_motion()
    motion.check()
    torch.testing.assert_close(motion.padded_sizes[0], torch.tensor([5.69, 2.585, 2.355], dtype=torch.float64))
    points = torch.tensor([[10.2, 0.2, 0.8], [11.4, 1.0, 0.8], [8.2, -0.6, 0.4]], dtype=torch.float64)
    moved = transform_points(motion.source2target, points[None])[0]
    expected = [[15.16223, 1.23169, 0.8], [16.20508, 2.22792, 0.8], [13.33153, 0.09655, 0.4]]
    torch.testing.assert_close(moved, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)
    targets = torch.tensor([[15.16223, 1.23169, 0.8], [16.0, 1.5, 0.4]], dtype=torch.float64)
    back = transform_points(motion.target2source, targets[None])[0]
    expected = torch.tensor([[10.2, 0.2, 0.8], [11.07163, 0.31876, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(back, expected, atol=1e-5, rtol=0)


def test_a_pose_that_is_not_rigid_is_found():
    motion = make_motion()
    motion.source2ego[0, 0, 0] = 2
    with pytest.raises(ValueError, match="source2ego"):
        motion.check()
