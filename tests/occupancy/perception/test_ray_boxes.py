"""Boxes matched between frames and points in them; lidar points of many frames in memory; neighbours of key frames."""

from dataclasses import replace

import pytest
import torch
from ray_scene import SPEC, boxes_at, car_at, ego_at, frame_at, pose

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.data.frames import Boxes, Frame
from syntheocc.occupancy.data.lidarseg import LidarPoints
from syntheocc.occupancy.grids import OCC3D_NUSCENES
from syntheocc.occupancy.perception import ray_boxes
from syntheocc.occupancy.perception.history import ShotHistory, key_shot
from syntheocc.occupancy.perception.ray_boxes import in_target_boxes, match_boxes
from syntheocc.occupancy.perception.ray_config import RayConfig
from syntheocc.occupancy.perception.ray_frames import PlacedBoxes, placed_boxes, ray_frame
from syntheocc.occupancy.perception.ray_store import StoredLidar
from syntheocc.occupancy.rendering.rays import BoxMotion
from syntheocc.occupancy.transforms import invert_rigid, transform_points

CONFIG = RayConfig(frame_offsets=(-1, 0, 1))


def three(**options):
    return [frame_at(t, number=80, **options) for t in (-1, 0, 1)]


def test_poses_are_the_objects_at_both_times():
    motion, appeared, vanished = match_boxes(three(), CONFIG, SPEC)
    motion.check()
    assert motion.labels.tolist() == [4, 7, 10] * 2 and motion.frames.tolist() == [0, 0, 0, 2, 2, 2]
    assert len(appeared) == len(vanished) == 0
    global2key = invert_rigid(ego_at(0))
    for row, t in ((0, -1), (3, 1)):
        torch.testing.assert_close(motion.source2ego[row].double(), global2key @ car_at(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(motion.target2ego[row].double(), global2key @ car_at(t), atol=1e-5, rtol=0)
        # A point on the bonnet, there and back.
        there = transform_points(global2key @ car_at(t), torch.tensor([[1.8, 0.3, 0.1]], dtype=torch.float64))
        here = transform_points(motion.target2source[row].double(), there)
        expected = transform_points(global2key @ car_at(0), torch.tensor([[1.8, 0.3, 0.1]], dtype=torch.float64))
        torch.testing.assert_close(here, expected, atol=1e-5, rtol=0)
    # What is parked does not move, though the car with the sensors does.
    torch.testing.assert_close(motion.source2ego[2], motion.target2ego[2], atol=1e-5, rtol=0)


def test_which_boxes_count():
    made = three()
    key = made[1]
    unseen = replace(key.boxes, num_points=torch.tensor([0, 1, -1, 5]))
    motion, appeared, _ = match_boxes([made[0], replace(key, boxes=unseen), made[2]], CONFIG, SPEC)
    assert motion.labels.tolist() == [7, 10] * 2 and appeared.labels.tolist() == [4, 4]
    far = replace(key.boxes, box2global=key.boxes.box2global.clone())
    far.box2global[0, 0, 3] += 30  # beyond the grid
    assert match_boxes([made[0], replace(key, boxes=far), made[2]], CONFIG, SPEC).motion.labels.tolist() == [7, 10] * 2
    # One token twice: the first counts. No token: nobody's.
    twice = replace(made[2].boxes, instances=("car", "car", "", "barrier"))
    motion, appeared, vanished = match_boxes([made[0], key, replace(made[2], boxes=twice)], CONFIG, SPEC)
    assert motion.frames.tolist() == [0, 0, 0, 2] and appeared.frames.tolist() == [2, 2]
    assert vanished.labels.tolist() == [7, 10]
    none = PlacedBoxes(
        *(getattr(key.boxes, name)[:0] for name in ("box2global", "sizes", "labels")), (), torch.zeros(0)
    )
    nothing = match_boxes([made[0], replace(key, boxes=none), None], CONFIG, SPEC)
    assert len(nothing.motion) == 0 and len(nothing.appeared) == 3 and len(nothing.vanished) == 0


@pytest.mark.parametrize("look", ["_frame_by_frame", "_all_pairs"])
def test_points_in_boxes_of_their_frame(look, monkeypatch):
    """Both ways, the one for GPUs in several pieces."""
    monkeypatch.setattr(ray_boxes, "PAIRS", 6 * 1500)
    monkeypatch.setattr(ray_boxes, "_frame_by_frame", getattr(ray_boxes, look))
    motion = match_boxes(three(), CONFIG, SPEC).motion
    g = torch.Generator().manual_seed(0)
    points = torch.rand(3, 4000, generator=g) * torch.tensor([[30.0], [20.0], [4.0]]) - torch.tensor(
        [[12.0], [8], [1]]
    )
    frames = torch.randint(0, 3, (4000,), generator=g)
    found = in_target_boxes(points, frames, motion)
    expected = torch.zeros_like(found)
    for t in (0, 2):
        own = motion.select(motion.frames == t)
        boxes = Boxes(own.target2ego, own.padded_sizes, ("",) * len(own))
        expected |= boxes.contains(points.T).any(0) & (frames == t)
    assert torch.equal(found, expected) and 50 < int(found.sum()) < 2000
    assert not in_target_boxes(points, frames, BoxMotion.empty()).any()
    assert len(in_target_boxes(points[:, :0], frames[:0], motion)) == 0


def test_v9_voxels_of_a_padded_box():
    """Section 6, V9: 504 voxel centres in the padded car at (10, 0, 0.6), x 118..131, y 97..102, z 1..6."""
    car = pose(10, 0, 0.6)[None].float()
    size, one = torch.tensor([[4.6, 1.9, 1.7]]), torch.zeros(1, dtype=torch.int64)
    motion = BoxMotion(car, car, size, one, one, one)
    centers = OCC3D_NUSCENES.spec.centers().flatten(0, 2).T.float()
    inside = in_target_boxes(centers, torch.zeros(centers.shape[1], dtype=torch.int64), motion)
    index = inside.view(200, 200, 16).nonzero()
    x, y, z = index.unbind(1)
    assert len(index) == 504 and [int(v) for v in (x.min(), x.max(), y.min(), y.max(), z.min(), z.max())] == [
        118, 131, 97, 102, 1, 6,
    ]  # fmt: skip


def test_frames_in_memory():
    made = three()
    store = StoredLidar.of(
        [made[0], replace(made[1], points=made[1].points[:50], labels=made[1].labels[:50])], (90, 160)
    )
    assert tuple(store.points.shape) == (2, 80, 3) and (store.labels[1, 50:] == 255).all() and len(store) == 2
    both = StoredLidar.cat([StoredLidar.of([replace(made[2], points=made[2].points[:9], labels=made[2].labels[:9])],
                                           (90, 160)), store])  # fmt: skip
    assert tuple(both.points.shape) == (3, 80, 3) and (both.labels[0, 9:] == 255).all()
    assert both.boxes[1] is made[0].boxes
    row = both.frame(1, made[0].frame2global, made[0].intrinsics, made[0].cam2global)
    assert torch.equal(row.points, made[0].points) and row.sizes.tolist() == [[90.0, 160.0]] * 3
    with pytest.raises(ValueError, match="different sizes"):
        StoredLidar.cat([store, StoredLidar.of(made[2:], (45, 80))])
    with pytest.raises(ValueError, match="boxes of 1 frames"):
        replace(store, boxes=(None,))
    with pytest.raises(ValueError, match="origins"):
        replace(store, origins=store.origins[:1])
    assert len(StoredLidar.of([], (90, 160))) == 0


def test_neighbours_of_a_key_frame(camera_at):
    rig = CameraRig({"CAM_FRONT": camera_at(0)})
    frames = [
        Frame(f"{scene}{i}", scene, 10**15 + 500_000 * i, rig, ego2global=ego_at(i))
        for i, scene in ((1, "a"), (0, "b"), (0, "a"), (2, "a"))
    ]
    history = ShotHistory(frames)
    name = lambda token, offset: getattr(history.neighbour(token, offset), "token", None)  # noqa: E731
    assert [name("a1", offset) for offset in (-2, -1, 0, 1, 2)] == [None, "a0", "a1", "a2", None]
    assert [name("b0", offset) for offset in (-1, 0, 1)] == [None, "b0", None]


def test_a_frame_of_a_data_set(camera_at):
    camera = camera_at(0)
    lidar2ego = pose(0.9, 0, 1.8, -1.57)
    names = ("car", "pedestrian", "animal", "vehicle.emergency.police")
    boxes = Boxes(pose(5, 1, 1).repeat(4, 1, 1), torch.ones(4, 3), names, instance_tokens=("a", "b", "c", "d"))
    frame = Frame(
        "s", "x", 10**15, CameraRig({"CAM_FRONT": camera}), {"CAM_FRONT": "none.jpg"}, lidar2ego=lidar2ego,
        ego2global=ego_at(2), boxes=boxes,
    )  # fmt: skip
    points = LidarPoints(torch.tensor([[0.0, 4.0, -1.0]]), torch.tensor([4], dtype=torch.uint8))
    cameras = [None, key_shot(frame).cameras["CAM_FRONT"]]
    made = ray_frame(frame, lambda _: points, cameras, ego_at(2))
    expected = transform_points(lidar2ego, points.points.double())
    torch.testing.assert_close(made.points.double(), expected, atol=1e-5, rtol=0)
    assert made.exists.tolist() == [False, True]
    torch.testing.assert_close(made.lidar_origin, lidar2ego[:3, 3])
    torch.testing.assert_close(made.cam2global[1], ego_at(2) @ camera.cam2ego)
    assert made.boxes.labels.tolist() == [4, 7, -1, -1] and made.boxes.instances == ("a", "b", "c", "d")
    torch.testing.assert_close(made.boxes.box2global[0], ego_at(2) @ pose(5, 1, 1))
    # A grid in the lidar's frame.
    other = ray_frame(frame, lambda _: points, cameras, ego_at(2) @ lidar2ego)
    torch.testing.assert_close(other.points, points.points, atol=1e-5, rtol=0)
    blind = ray_frame(frame, lambda _: None, cameras, ego_at(2))
    assert tuple(blind.points.shape) == (0, 3) and len(placed_boxes(boxes.filter([]), ego_at(2))) == 0
    assert boxes_at(0).labels.tolist() == [4, 7, 10, 1]
    with pytest.raises(ValueError, match="lidar2ego"):
        ray_frame(replace(frame, lidar2ego=None), lambda _: points, cameras, ego_at(2))
