import sys

import numpy as np
import pytest
import torch
from kitti_scene import CAR, WALL, left_camera, render, write_planes
from PIL import Image

from syntheocc.occupancy.data import kitti
from syntheocc.occupancy.data.stereo_matching import (
    Rectified,
    depth_of_disparity,
    match_pair,
    rectified_pair,
    stereo_depth,
)
from syntheocc.occupancy.data.stereo_pairs import calibrated_pair, read_object_frames, read_stereo_pair
from syntheocc.occupancy.perception.depth_supervision import nearest_depths
from syntheocc.occupancy.transforms import transform_points


def pictures(folder, name="000000"):
    return [np.asarray(Image.open(folder / camera / f"{name}.png")) for camera in kitti.STEREO]


def test_depth_is_focal_length_times_baseline_over_disparity():
    disparity = np.array([[0.0, 0.4, 0.5, 10.0, 20.0]], np.float32)
    pair = Rectified(700.0, 0.5)
    assert depth_of_disparity(disparity, pair)[0].tolist() == [0.0, 0.0, 700.0, 35.0, 17.5]
    # A right picture whose principal column is 3 pixels less shows everything 3 pixels further left.
    shifted = depth_of_disparity(np.where(disparity > 0, disparity + 3, 0), Rectified(700.0, 0.5, 3.0))
    assert shifted[0].tolist() == pytest.approx([0.0, 0.0, 700.0, 35.0, 17.5], abs=1e-3)
    with pytest.raises(ValueError, match="are left and right exchanged"):
        Rectified(700.0, -0.5)


def test_the_pair_of_two_projections():
    left = torch.tensor([[718.856, 0, 607.1928, 45.38225], [0, 718.856, 185.2157, 0], [0, 0, 1, 0]])
    right = left.clone()
    right[0, 2:] = torch.tensor([605.0, -337.2877])
    pair = rectified_pair(left, right)
    assert pair.baseline * pair.focal == pytest.approx(382.67, abs=1e-2) and pair.offset == pytest.approx(
        2.1928, abs=1e-4
    )
    right[1, 1] = 700.0
    with pytest.raises(ValueError, match="no rectified pair: .*rectify the pictures first"):
        rectified_pair(left, right)


def test_matching_finds_the_planes(tmp_path):
    folder = write_planes(tmp_path, names=["000000"], labels=False)
    left, right = pictures(folder)
    pair = rectified_pair(*kitti.read_projections(folder / "calib.txt").values())
    depth = stereo_depth(left, right, pair, max_disparity=48)
    _, exact = render(left_camera())
    known = (depth > 0) & (exact > 0)
    assert known.mean() > 0.95
    shift = pair.focal * pair.baseline
    off = np.abs(shift / depth[known] - shift / exact[known])
    assert (off < 1).mean() > 0.98 and np.median(off) < 0.2  # pixels
    # The wall that the car hides from the right camera has no match: left of the car.
    hidden = depth[45:60, 112:118]
    assert (hidden == 0).mean() > 0.5


def test_what_cannot_be_matched_is_refused(monkeypatch):
    image = np.zeros((20, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="two pictures .* of one size"):
        match_pair(image, image[:, 1:])
    for settings in ({"max_disparity": 40}, {"block": 4}, {"uniqueness": 101}):
        with pytest.raises(ValueError, match="a positive multiple of 16"):
            match_pair(image, image, **settings)
    assert not match_pair(image, image, max_disparity=16).any()  # nothing to tell places by
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"needs OpenCV: pip install 'syntheocc\[stereo\]'"):
        match_pair(image, image)


def test_pairs_of_the_object_benchmark(tmp_path):
    folder = write_planes(tmp_path, names=["000003"], labels=False)
    (folder / "calib").mkdir()
    (folder / "calib.txt").rename(folder / "calib" / "000003.txt")
    (frame,) = read_object_frames(folder)
    assert frame.token == "000003" and frame.cameras.names == ("image_2", "image_3")
    assert frame.lidar_path == folder / "velodyne" / "000003.bin"
    first, second = frame.cameras["image_2"], frame.cameras["image_3"]
    apart = (first.ego2cam @ second.cam2ego)[:3, 3].tolist()
    assert apart[0] == pytest.approx(0.5333, abs=1e-3) and abs(apart[1]) < 0.01
    # The same pair by its numbers.
    left, right = (folder / camera / "000003.png" for camera in kitti.STEREO)
    pair = calibrated_pair(left, right, first.intrinsics, apart[0], first.cam2ego)
    assert torch.allclose(pair.cameras["image_3"].cam2ego, second.cam2ego, atol=0.01)
    assert pair.token == "000003" and pair.lidar_path is None
    with pytest.raises(ValueError, match="the baseline is -1 m"):
        calibrated_pair(left, right, first.intrinsics, -1, first.cam2ego)
    Image.fromarray(np.zeros((94, 300, 3), np.uint8)).save(right)
    with pytest.raises(ValueError, match="image_3/000003.png: 94 x 300 pixels, but .* has 94 x 310"):
        read_object_frames(folder)
    right.unlink()
    with pytest.raises(ValueError, match="image_3/000003.png: no such file"):
        read_object_frames(folder)
    left.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="image_2/000003.png: cannot be read as a picture"):
        read_stereo_pair(left, left, folder / "calib" / "000003.txt")
    with pytest.raises(ValueError, match="image_2: no pictures NNNNNN.png"):
        read_object_frames(tmp_path / "nothing")


def test_the_scene_is_where_its_labels_are():
    """The picture's depths lie in the voxels that hold the classes: the scene of these tests is consistent."""
    camera = left_camera()
    _, depth = render(camera)
    assert depth[10, 30] == pytest.approx(WALL[1] - 0.27 - 0.0038, abs=0.01)
    assert depth[60, 150] == pytest.approx(CAR[1] - 0.27 - 0.0038, abs=0.01)


@pytest.mark.real_data
def test_the_real_pair_against_its_lidar(real_data):
    folder = real_data / "kitti_object_stereo"
    frame = read_stereo_pair(*(folder / name for name in ("left.png", "right.png", "calib.txt", "lidar.bin")))
    camera = frame.cameras["image_2"]
    assert (camera.height, camera.width) == (375, 1242)
    pair = rectified_pair(*kitti.read_projections(folder / "calib.txt").values())
    left, right = (np.asarray(Image.open(path).convert("RGB")) for path in frame.image_paths.values())
    depth = stereo_depth(left, right, pair)
    inside = transform_points(camera.ego2cam, torch.from_numpy(kitti.read_scan(frame.lidar_path)[:, :3]).double())
    pixels, z = camera.project(inside[inside[:, 2] > 0])
    scan = nearest_depths(pixels, z, torch.zeros(len(z), dtype=torch.int64), 1, depth.shape, 1)[0].numpy()
    both = np.isfinite(scan) & (scan > 2) & (scan < 54) & (depth > 0)
    assert both.sum() > 10000 and np.median(np.abs(depth - scan)[both]) < 0.3
