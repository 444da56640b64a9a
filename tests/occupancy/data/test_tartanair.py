import math
import pickle

import numpy as np
import pytest
import torch

from syntheocc.occupancy.data import tartanair
from syntheocc.occupancy.grids import OCC3D_NUSCENES, TARTANAIR, OccupancyGrid
from syntheocc.occupancy.transforms import transform_points

EYE = torch.eye(4, dtype=torch.float64)


def turn(axis, angle):
    """A rotation about one axis of a north-east-down frame."""
    c, s = math.cos(angle), math.sin(angle)
    pose = EYE.clone()
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    pose[i, i], pose[i, j], pose[j, i], pose[j, j] = c, -s, s, c
    return pose


def test_classes_of_segments():
    ids = np.array([22, 147, 139, 239, 231, 211, 207, 120, 253, 158, 144, 28, 249, 0, 255])
    names = [TARTANAIR.taxonomy.classes[i] for i in tartanair.classes_of_segments(ids)]
    assert names == "ceiling ceiling floor wall window chair rug sofa screen tvs furn clock bonsai objs objs".split()
    table = tartanair.classes_of_segments(np.arange(256))
    assert np.bincount(table).tolist() == [0, 2, 1, 13, 3, 1, 2, 2, 2, 2, 9, 1, 2, 216]
    with pytest.raises(ValueError, match="0..255"):
        tartanair.classes_of_segments(np.array([256]))


def test_pose_lines(tmp_path):
    half = math.sqrt(0.5)
    (tmp_path / "pose_left.txt").write_text(f"1 2 3 0 0 0 1\n4 5 6 0 0 {half} {half}\n\n")
    poses = tartanair.read_poses(tmp_path / "pose_left.txt")
    assert torch.equal(poses[0, :3, 3], torch.tensor([1.0, 2.0, 3.0]).double())
    # A quarter turn about down: forward becomes east.
    assert poses[1, :3, 0].tolist() == pytest.approx([0, 1, 0])
    tartanair.write_poses(poses, tmp_path / "again.txt")
    assert torch.allclose(tartanair.read_poses(tmp_path / "again.txt"), poses, atol=1e-12)
    for text, words in (("1 2 3", "3 numbers"), ("0 0 0 0 0 0 2", "unit quaternion"), ("0 0 0 x 0 0 1", "'x'")):
        (tmp_path / "bad.txt").write_text("0 0 0 0 0 0 1\n" + text)
        with pytest.raises(ValueError, match=f"bad.txt: line 2: .*{words}"):
            tartanair.read_poses(tmp_path / "bad.txt")
    with pytest.raises(ValueError, match="no.txt: no such file"):
        tartanair.read_poses(tmp_path / "no.txt")


def test_levelling_keeps_pitch_and_roll_and_drops_yaw():
    level = turn(1, 0.2) @ turn(0, -0.1)
    yawed = turn(2, 2.5) @ level
    yawed[:3, 3] = torch.tensor([5.0, 6.0, 7.0])
    assert torch.allclose(tartanair.levelled(yawed), tartanair.levelled(level), atol=1e-12)
    # Pitched up by 0.2 (a turn about east lifts the nose): the optical axis rises, and y points down.
    axis = tartanair.levelled(turn(1, 0.2))[:3, 2]
    assert axis.tolist() == pytest.approx([0.0, -math.sin(0.2), math.cos(0.2)])
    assert torch.equal(tartanair.levelled(EYE), EYE)


@pytest.mark.parametrize("rule, voxel", [("rint", (60, 30, 20)), ("floor", (60, 30, 19))])
def test_one_pixel_falls_into_its_voxel(rule, voxel):
    depth = np.full((480, 640), np.inf, np.float32)
    segments = np.full((480, 640), 211, np.uint8)
    depth[240, 320] = 1.96  # the point (0, 0, 1.96)
    voxels = tartanair.export_voxels(depth, segments, EYE, index_rule=rule)
    labels = voxels.grid.labels
    assert TARTANAIR.taxonomy.classes[labels[voxel]] == "chair" and int((labels != 0).sum()) == 1
    # Ego is x forward, y left, z up: the voxel holds the point (1.96, 0, 0) under either rule.
    center = transform_points(voxels.grid.grid2ego, TARTANAIR.spec.centers()[voxel][None])[0]
    assert (center - torch.tensor([1.96, 0.0, 0.0])).abs().max() <= 0.05 + 1e-9
    assert voxels.camera.cam2ego[:3, 2].tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="index_rule is one of rint, floor; got 'round'"):
        tartanair.export_voxels(depth, segments, EYE, index_rule="round")
    with pytest.raises(ValueError, match=r"depth \[480, 640\] and segments \[2, 2\]"):
        tartanair.export_voxels(depth, segments[:2, :2], EYE)


def test_a_voxel_takes_its_most_frequent_class():
    depth = np.full((480, 640), np.nan, np.float32)
    segments = np.full((480, 640), 120, np.uint8)
    depth[240, 320:325] = 2.0  # five pixels within 2.5 cm
    segments[240, 320:322] = 211
    assert tartanair.export_voxels(depth, segments, EYE).grid.labels.max() == TARTANAIR.taxonomy.id_of("sofa")
    segments[240, 322] = 28
    segments[240, 323] = 28  # two chairs, two clocks, one sofa: the smaller id
    assert tartanair.export_voxels(depth, segments, EYE).grid.labels.max() == TARTANAIR.taxonomy.id_of("chair")


def scene():
    """A wall three metres ahead of a camera that is pitched up by 0.1."""
    pose = turn(2, 1.0) @ turn(1, 0.1)
    depth = np.full((480, 640), 3.0, np.float32)
    return tartanair.export_voxels(depth, np.full((480, 640), 90, np.uint8), pose)


def test_pickles_round_trip(tmp_path):
    voxels = scene()
    tartanair.write_tartanair(voxels, tmp_path / "000000.pkl")
    read = tartanair.read_tartanair(tmp_path / "000000.pkl")
    assert torch.equal(read.grid.labels, voxels.grid.labels) and set(read.grid.labels.unique().tolist()) == {0, 3}
    assert torch.allclose(read.grid.grid2ego, voxels.grid.grid2ego)
    assert torch.allclose(read.camera.cam2ego, voxels.camera.cam2ego, atol=1e-12)
    content = pickle.loads((tmp_path / "000000.pkl").read_bytes())
    assert content["target_1_4"].shape == (30, 12, 30) and content["target_1_4"].max() == 3
    assert content["fov_mask_1_1"].shape == (120 * 48 * 120, 1) and content["fov_mask_1_4"].shape == (30 * 12 * 30, 1)
    # The surface that the camera saw lies in its view, but for the border (the files' half voxel).
    seen = content["fov_mask_1_1"][:, 0].reshape(120, 48, 120)[content["target_1_1"] == 3]
    assert seen.mean() > 0.9 > content["fov_mask_1_1"].mean()


def test_damaged_pickles_are_named(tmp_path):
    path = tmp_path / "a.pkl"
    tartanair.write_tartanair(scene(), path)
    good = pickle.loads(path.read_bytes())
    for change, words in (
        ({"vox_origin": np.zeros(3)}, r"vox_origin \[0.0, 0.0, 0.0\]"),
        ({"target_1_1": good["target_1_1"][:60]}, r"shape \(60, 48, 120\)"),
        ({"target_1_1": good["target_1_1"] + np.uint8(20)}, "class id 23"),
        ({"T_velo_2_cam": np.eye(3)}, "T_velo_2_cam must be"),
        ({"T_velo_2_cam": np.diag([2.0, 1, 1, 1])}, "not a rigid transform"),
        ({"cam_k": np.full((3, 3), np.nan)}, "NaN"),
    ):
        path.write_bytes(pickle.dumps(good | change))
        with pytest.raises(ValueError, match=f"a.pkl: .*{words}"):
            tartanair.read_tartanair(path)
    path.write_bytes(pickle.dumps({k: v for k, v in good.items() if k != "cam_k"}))
    with pytest.raises(ValueError, match="a.pkl: a voxel file is a dict with .*cam_k"):
        tartanair.read_tartanair(path)
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match="a.pkl: .*print"):
        tartanair.read_tartanair(path)
    path.write_bytes(pickle.dumps(good)[:1000])
    with pytest.raises(ValueError, match="a.pkl: .*truncated"):
        tartanair.read_tartanair(path)
    occ3d = OccupancyGrid(torch.full((200, 200, 16), 17, dtype=torch.uint8), *OCC3D_NUSCENES)
    with pytest.raises(ValueError, match="resample or map it first"):
        tartanair.write_tartanair(tartanair.TartanAirVoxels(occ3d, scene().camera), tmp_path / "b.pkl")


def test_depth_and_segments(tmp_path):
    np.save(tmp_path / "d.npy", np.full((2, 3), 1.5, np.float32))
    np.save(tmp_path / "s.npy", np.full((2, 3), 211, np.int64))
    assert tartanair.read_depth(tmp_path / "d.npy").tolist() == [[1.5] * 3] * 2
    assert tartanair.read_segments(tmp_path / "s.npy").dtype == np.uint8
    with pytest.raises(ValueError, match="s.npy: depth is float"):
        tartanair.read_depth(tmp_path / "s.npy")
    with pytest.raises(ValueError, match="d.npy: segmentation ids are 0..255"):
        tartanair.read_segments(tmp_path / "d.npy")
