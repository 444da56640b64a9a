"""Rig files that people write, and KITTI-360's calibration: poses and pixels that can be checked by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from syntheocc.occupancy import OCC3D_NUSCENES, SYNTHEOCC, Camera, CameraRig, OccupancyGrid, render_mpi
from syntheocc.occupancy.data.grid_files import read_grid_file, write_grid_file
from syntheocc.occupancy.data.kitti360 import KITTI360_CAMERAS, read_kitti360_rig
from syntheocc.occupancy.data.rig_files import camera_pose, read_rig, write_rig

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "rigs"
CAMERA = {"width": 100, "height": 60, "fov_deg": 90, "position": [1.0, 2.0, 3.0], "yaw_deg": 0}


def write(path, cameras, **more):
    path.write_text(yaml.safe_dump({"cameras": cameras, **more}, sort_keys=False))
    return path


def direction(pose, axis):
    return pose[:3, axis].tolist()


class TestPoses:
    def test_yaw_pitch_and_roll(self):
        ahead = camera_pose([1, 2, 3])
        assert (
            direction(ahead, 2) == [1, 0, 0]
            and direction(ahead, 0) == [0, -1, 0]
            and direction(ahead, 1) == [0, 0, -1]
        )
        assert direction(ahead, 3) == [1, 2, 3]
        left = camera_pose([0, 0, 0], yaw_deg=90)
        assert direction(left, 2) == pytest.approx([0, 1, 0]) and direction(left, 0) == pytest.approx([1, 0, 0])
        up = camera_pose([0, 0, 0], pitch_deg=30)
        assert direction(up, 2) == pytest.approx([math.cos(math.pi / 6), 0, 0.5])
        rolled = camera_pose([0, 0, 0], roll_deg=90)  # clockwise: what was right is now down
        assert direction(rolled, 0) == pytest.approx([0, 0, -1]) and direction(rolled, 1) == pytest.approx([0, 1, 0])
        turned = camera_pose([0, 0, 0], 40, -20, 10)
        assert torch.allclose(turned[:3, :3] @ turned[:3, :3].T, torch.eye(3, dtype=torch.float64))
        assert torch.linalg.det(turned[:3, :3]) == pytest.approx(1)

    def test_the_ways_to_give_a_pose_agree(self, tmp_path):
        size = {"width": 100, "height": 60, "fov_deg": 90}
        path = write(
            tmp_path / "rig.yaml",
            {
                "angles": {**size, "position": [1.0, 2.0, 3.0], "yaw_deg": 90, "pitch_deg": 0, "roll_deg": 0.0},
                "quaternion": {**size, "position": [1.0, 2.0, 3.0], "rotation_wxyz": [0.5**0.5, -(0.5**0.5), 0, 0]},
                "matrix": {**size, "cam2ego": [[1, 0, 0, 1], [0, 0, 1, 2], [0, -1, 0, 3], [0, 0, 0, 1]]},
            },
        )
        rig = read_rig(path).cameras
        assert rig.names == ("angles", "quaternion", "matrix")
        assert torch.allclose(rig.cam2ego[0], rig.cam2ego[2]) and torch.allclose(rig.cam2ego[1], rig.cam2ego[2])


class TestIntrinsics:
    def test_a_field_of_view_reaches_from_edge_to_edge(self, tmp_path):
        rig = read_rig(
            write(tmp_path / "rig.yaml", {"A": CAMERA, "B": {**CAMERA, "model": "fisheye", "fov_deg": 180}})
        ).cameras
        # 100 columns: the edges lie at -0.5 and 99.5, the middle at 49.5.
        pixels, _ = rig["A"].project(torch.tensor([[1.0, 0, 1], [-1, 0, 1], [0, 0, 1]]))
        assert pixels[:, 0].tolist() == pytest.approx([99.5, -0.5, 49.5])
        pixels, _ = rig["B"].project(torch.tensor([[1.0, 0, 0], [-1, 0, 0], [1, 0, 1]]))
        assert pixels[:, 0].tolist() == pytest.approx([99.5, -0.5, 74.5])  # proportional to the angle

    def test_the_ways_to_give_intrinsics_agree(self, tmp_path):
        pose = {"width": 100, "height": 60, "position": [0, 0, 0], "yaw_deg": 0}
        matrix = [[50.0, 0, 49.5], [0, 50.0, 29.5], [0, 0, 1]]
        cameras = {
            "fov": {**pose, "fov_deg": 90},
            "matrix": {**pose, "intrinsics": matrix},
            "four": {**pose, "fx": 50, "fy": 50, "cx": 49.5, "cy": 29.5},
        }
        for camera in read_rig(write(tmp_path / "rig.yaml", cameras)).cameras.values():
            assert torch.allclose(camera.intrinsics, torch.tensor(matrix).double())


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_what_is_written_reads_back(tmp_path, suffix):
    pose, matrix = camera_pose([1, 2, 3], 30, 5, -2), [[300.0, 0, 319.5], [0, 310, 239.5], [0, 0, 1]]
    rig = CameraRig(
        {
            "plain": Camera(matrix, pose, 480, 640),
            "bent": Camera(matrix, pose, 480, 640, distortion=[-0.3, 0.1, 0.001, -0.002, 0.01]),
            "eye": Camera(matrix, pose, 480, 640, "fisheye", [0.1, -0.01, 0.0, 0.001]),
            "mirror": Camera(matrix, pose, 480, 640, "unified", [0.1, 0.2, 0, 0], xi=1.3),
        }
    )
    lidar2ego = camera_pose([0.9, 0, 1.8], 10)
    write_rig(tmp_path / f"rig.{suffix}", rig, lidar2ego, "four lenses")
    read = read_rig(tmp_path / f"rig.{suffix}")
    assert read.cameras.names == rig.names and torch.allclose(read.lidar2ego, lidar2ego) and read.images == {}
    for name, camera in rig.items():
        other = read.cameras[name]
        assert (other.model, other.xi, other.distortion) == (camera.model, camera.xi, camera.distortion)
        assert torch.equal(other.intrinsics, camera.intrinsics) and torch.equal(other.cam2ego, camera.cam2ego)


def test_pictures_are_relative_to_the_file(tmp_path):
    rig = read_rig(write(tmp_path / "rig.yaml", {"A": {**CAMERA, "image": "photos/a.jpg"}, "B": CAMERA}))
    assert rig.images == {"A": tmp_path / "photos" / "a.jpg"}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"widht": 3}, "camera A: unknown widht; a camera has cam2ego, "),
        ({"width": None}, "camera A: width must be a number, got None"),
        ({"width": "wide"}, "camera A: width must be a number, got 'wide'"),
        ({"width": 10.5}, "camera A: an image needs whole pixels"),
        ({"model": "plenoptic"}, "camera A: model 'plenoptic'; there are pinhole, fisheye, unified"),
        ({"fov_deg": 180}, "camera A: fov_deg must lie in 0..180, got 180"),
        ({"model": "unified"}, "camera A: fov_deg does not say a unified camera's focal length"),
        ({"fx": 5}, r"camera A: give one of intrinsics .* got \['fx, fy, cx, cy', 'fov_deg'\]"),
        ({"fov_deg": None, "fx": 5}, "camera A: lacks fy, cx, cy"),
        ({"fov_deg": None}, "camera A: give one of intrinsics .* got none"),
        ({"fov_deg": None, "intrinsics": [[1, 0], [0, 1]]}, "camera A: camera intrinsics must be a 3x3"),
        ({"position": [1, 2]}, "camera A: position must be three finite metres"),
        ({"position": None}, "camera A: lacks its pose"),
        ({"yaw_deg": None}, "camera A: lacks its turn"),
        ({"yaw_deg": "left"}, "camera A: yaw_deg must be a number"),
        ({"rotation_wxyz": [1, 0, 0, 0]}, "camera A: rotation_wxyz says all of the turn; leave out yaw_deg"),
        ({"cam2ego": np.eye(4).tolist()}, "camera A: cam2ego says all of the pose; leave out position, yaw_deg"),
        ({"position": None, "yaw_deg": None, "cam2ego": np.ones((4, 4)).tolist()}, "camera A: cam2ego"),
        ({"distortion": [1, 2, 3]}, "camera A: BrownConrady distortion of a pinhole camera takes"),
        ({"xi": 1.5}, "camera A: xi is the unified model's"),
    ],
)
def test_bad_cameras_are_named_with_their_key(tmp_path, change, words):
    camera = {key: value for key, value in {**CAMERA, **change}.items() if value is not None or key == "width"}
    with pytest.raises(ValueError, match=f"rig.yaml, {words}"):
        read_rig(write(tmp_path / "rig.yaml", {"A": camera}))


@pytest.mark.parametrize(
    "text, words",
    [
        ("cameras: {}", "a rig file has a mapping"),
        ("- 1", "a rig file has a mapping"),
        ("cameras: {A: [1]}", "camera A: a camera is a mapping"),
        ("cameras: {A: {}}\nlens: 3", "unknown lens"),
        ("cameras: {A: {}}", "camera A: lacks width and height"),
        ("cameras: {A/B: {}}", "is no plain name"),
        ("cameras: {A: {}}\nlidar2ego: [[1]]", "lidar2ego must be a 4x4"),
        ("cameras: [", "neither YAML nor JSON"),
        ("cameras: !!python/object/apply:os.getcwd []", "neither YAML nor JSON"),
    ],
)
def test_bad_files_are_named(tmp_path, text, words):
    (tmp_path / "rig.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"rig.yaml.*{words}"):
        read_rig(tmp_path / "rig.yaml")
    with pytest.raises(ValueError, match="none.yaml: no such file"):
        read_rig(tmp_path / "none.yaml")


def test_the_examples_see_the_street_in_front_of_them():
    labels = torch.full(OCC3D_NUSCENES.spec.shape, 17, dtype=torch.uint8)
    labels[:, :, 2] = 11  # a road a little below ego
    labels[120:125, 98:102, 3:7] = 4  # a car 8 m ahead
    grid = OccupancyGrid(labels, *OCC3D_NUSCENES)
    rigs = {path.stem: read_rig(path).cameras for path in sorted(EXAMPLES.glob("*.yaml"))}
    assert {name: len(rig) for name, rig in rigs.items()} == {"fisheye": 4, "front_only": 1, "three_cameras": 3}
    for name, rig in rigs.items():
        nearest = render_mpi(grid, rig, 28, 50).nearest
        seen = nearest[rig.names.index("FRONT")]
        assert 4 in seen[8:20, 20:30] and 11 in seen[20:], name
    assert rigs["fisheye"].neighbors().tolist() == [[3, 1], [0, 2], [1, 3], [2, 0]]  # a ring


# The front cameras look ahead (IMU x), as such cars have them; their right is IMU y, their down IMU z. The fisheye
# cameras look straight to the left and to the right.
POSES = """image_00: 0.0372 -0.0986 0.9944 1.5753 0.9993 -0.0054 -0.0379 0.0044 0.0091 0.9951 0.0983 -0.6500
image_01: 0.0194 -0.1052 0.9943 1.5977 0.9997 -0.0106 -0.0206 0.5982 0.0127 0.9944 0.1050 -0.6488
image_02: 1 0 0 0.7 0 0 -1 -0.3 0 1 0 -0.9
image_03: -1 0 0 0.7 0 0 1 0.9 0 1 0 -0.9
"""
PERSPECTIVE = """calib_time: 26-Jul-2020 10:00:00
corner_dist: 9.950000e-02
S_00: 1392 512
S_rect_00: 1408 376
R_rect_00: 0.99999 0.00000 0.00447 0.00000 1.00000 0.00000 -0.00447 0.00000 0.99999
P_rect_00: 552.554 0.0 682.049 0.0 0.0 552.554 238.770 0.0 0.0 0.0 1.0 0.0
S_rect_01: 1408 376
R_rect_01: 1.0 0.0 0.0 0.0 1.0 0.0 0.0 0.0 1.0
P_rect_01: 552.554 0.0 682.049 -328.318 0.0 552.554 238.770 0.0 0.0 0.0 1.0 0.0
"""
FISHEYE = """%YAML:1.0
---
model_type: MEI
camera_name: image_02
image_width: 1400
image_height:1400
mirror_parameters:
   xi: 2.2134
distortion_parameters:
   k1: 0.016798
   k2: 1.6549
   p1: 0.00042
   p2: 0.00042
projection_parameters:
   gamma1: 1336.32
   gamma2: 1335.78
   u0: 716.943
   v0: 705.765
"""


@pytest.fixture
def kitti360(tmp_path):
    folder = tmp_path / "calibration"
    folder.mkdir()
    (folder / "calib_cam_to_pose.txt").write_text(rounded_poses())
    (folder / "perspective.txt").write_text(PERSPECTIVE)
    for name in ("image_02", "image_03"):
        (folder / f"{name}.yaml").write_text(FISHEYE.replace("image_02", name))
    return folder


def rounded_poses():
    """The rows with rotations that are ones to more digits than are typed in."""
    lines = []
    for line in POSES.splitlines():
        name, _, text = line.partition(":")
        pose = np.array(text.split(), float).reshape(3, 4)
        u, _, v = np.linalg.svd(pose[:, :3])
        pose[:, :3] = u @ v
        lines.append(f"{name}: {' '.join(f'{value:.10f}' for value in pose.flatten())}")
    return "\n".join(lines) + "\n"


class TestKitti360:
    def test_ego_is_the_imu_turned_up(self, kitti360):
        rig = read_kitti360_rig(kitti360)
        assert rig.names == KITTI360_CAMERAS == ("image_02", "image_00", "image_01", "image_03")
        front = rig["image_00"]
        assert front.cam2ego[:3, 2].tolist() == pytest.approx([0.994, 0.038, -0.098], abs=0.01)  # ahead, slightly down
        assert front.cam2ego[:3, 3].tolist() == pytest.approx([1.5753, -0.0044, 0.65])  # above the IMU
        assert rig["image_01"].cam2ego[1, 3].item() == pytest.approx(-0.5982)  # the right camera is to the right
        # The fisheye cameras look to the left and to the right, and what is up is up in their pictures.
        assert rig["image_02"].cam2ego[:3, 2].tolist() == [0, 1, 0] and rig["image_03"].cam2ego[:3, 2].tolist() == [
            0,
            -1,
            0,
        ]
        assert rig["image_02"].cam2ego[:3, 1].tolist() == rig["image_03"].cam2ego[:3, 1].tolist() == [0, 0, -1]
        assert read_kitti360_rig(kitti360, ["image_00"], 0.93)["image_00"].cam2ego[2, 3].item() == pytest.approx(1.58)
        assert read_rig(kitti360).cameras.names == rig.names

    def test_perspective_pictures_are_the_rectified_cameras(self, kitti360):
        rig = read_kitti360_rig(kitti360)
        front = rig["image_00"]
        assert (front.width, front.height, front.model) == (1408, 376, "pinhole")
        assert front.intrinsics[0].tolist() == [552.554, 0.0, 682.049]
        poses = dict(line.split(": ") for line in rounded_poses().splitlines())
        cam2imu = np.array(poses["image_00"].split(), float).reshape(3, 4)
        point_imu = np.array([10.0, 1.0, 0.5])
        rect = np.array(PERSPECTIVE.split("R_rect_00: ")[1].split("\n")[0].split(), float).reshape(3, 3)
        in_rect = rect @ (cam2imu[:, :3].T @ (point_imu - cam2imu[:, 3]))
        ego = torch.tensor([[10.0, -1.0, -0.5]]).double()
        pixels, _ = front.project(ego @ front.ego2cam[:3, :3].T + front.ego2cam[:3, 3])
        expected = [552.554 * in_rect[0] / in_rect[2] + 682.049, 552.554 * in_rect[1] / in_rect[2] + 238.770]
        assert pixels[0].tolist() == pytest.approx(expected, abs=0.02)  # R_rect is typed in to five digits

    def test_fisheye_cameras_follow_mei(self, kitti360):
        camera = read_kitti360_rig(kitti360)["image_02"]
        assert camera.model == "unified" and camera.xi == 2.2134 and (camera.width, camera.height) == (1400, 1400)
        point = np.array([1.0, -0.5, 0.8])
        x, y, z = point / np.linalg.norm(point)
        x, y = x / (z + 2.2134), y / (z + 2.2134)
        r2 = x * x + y * y
        radial = 1 + 0.016798 * r2 + 1.6549 * r2 * r2
        u = 1336.32 * (x * radial + 2 * 0.00042 * x * y + 0.00042 * (r2 + 2 * x * x)) + 716.943
        v = 1335.78 * (y * radial + 0.00042 * (r2 + 2 * y * y) + 2 * 0.00042 * x * y) + 705.765
        pixels, _ = camera.project(torch.from_numpy(point)[None])
        assert pixels[0].tolist() == pytest.approx([u, v], abs=1e-6)

    def test_a_folder_with_some_of_the_cameras(self, kitti360):
        (kitti360 / "image_02.yaml").unlink()
        assert read_kitti360_rig(kitti360).names == ("image_00", "image_01", "image_03")
        with pytest.raises(ValueError, match="image_02.yaml: no such file"):
            read_kitti360_rig(kitti360, ["image_02"])
        with pytest.raises(ValueError, match="KITTI-360 has the cameras .* got image_04"):
            read_kitti360_rig(kitti360, ["image_04"])
        with pytest.raises(ValueError, match="got none of them"):
            read_rig(kitti360.parent)

    @pytest.mark.parametrize(
        "file, old, new, words",
        [
            (
                "calib_cam_to_pose.txt",
                "image_01:",
                "image_09:",
                "a row image_01: of 12 numbers is wanted; it is not there",
            ),
            ("calib_cam_to_pose.txt", "image_00: 0.0", "image_00: x", "line 1"),
            (
                "perspective.txt",
                "P_rect_00: 552.554",
                "P_rect_00:",
                "a row P_rect_00: of 12 numbers is wanted; it has 11",
            ),
            ("perspective.txt", "R_rect_00: 0.99999", "R_rect_00: 5", "R_rect_00"),
            ("image_02.yaml", "   xi: 2.2134", "   chi: 1", "image_02: lacks mirror_parameters/xi"),
            ("image_02.yaml", "gamma1: 1336.32", "gamma1: many", "gamma1 must be a number, got 'many'"),
            ("image_02.yaml", "mirror_parameters:", "mirror_parameters: [", "not the YAML"),
        ],
    )
    def test_damage_is_named_with_file_and_row(self, kitti360, file, old, new, words):
        text = (kitti360 / file).read_text()
        assert old in text
        (kitti360 / file).write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=f"{file}.*{words}"):
            read_kitti360_rig(kitti360)


class TestGridFiles:
    def test_what_is_written_reads_back(self, tmp_path):
        labels = torch.zeros(SYNTHEOCC.spec.shape, dtype=torch.uint8)
        labels[1, 2, 3] = 7
        grid = OccupancyGrid(labels, *SYNTHEOCC, grid2ego=camera_pose([1, 2, 3], 20))
        write_grid_file(grid, tmp_path / "grid.npz")
        read = read_grid_file(tmp_path / "grid.npz")
        assert torch.equal(read.labels, labels) and read.taxonomy == grid.taxonomy
        assert torch.equal(read.grid2ego, grid.grid2ego)
        assert (read.spec.lower, read.spec.voxel_size) == (grid.spec.lower, grid.spec.voxel_size)

    def test_hand_made_files(self, tmp_path):
        arrays = {"labels": np.zeros((4, 3, 2), np.int64), "lower": [0, 0, -1], "voxel_size": 0.5, "taxonomy": "occ3d"}
        np.savez(tmp_path / "grid.npz", **arrays)
        grid = read_grid_file(tmp_path / "grid.npz")
        assert (
            grid.spec.voxel_size == (0.5, 0.5, 0.5) and grid.spec.frame == "ego" and grid.labels.dtype == torch.uint8
        )
        for change, words in (
            ({"taxonomy": "mine"}, "no taxonomy is named 'mine'; known: syntheocc"),
            ({"labels": np.zeros((4, 3))}, r"labels must be \[X, Y, Z\], got shape \(4, 3\)"),
            ({"labels": np.full((4, 3, 2), 40)}, "class id 40"),
            ({"labels": np.zeros((4, 3, 2))}, "must be integers"),
            ({"lower": [0, 1]}, "lower is three metres"),
            ({"voxel_size": -1}, "voxel_size must be positive"),
            ({"grid2ego": np.zeros((4, 4))}, "grid2ego"),
        ):
            np.savez(tmp_path / "bad.npz", **{**arrays, **change})
            with pytest.raises(ValueError, match=f"bad.npz: .*{words}"):
                read_grid_file(tmp_path / "bad.npz")
        np.savez(tmp_path / "bad.npz", labels=arrays["labels"])
        with pytest.raises(ValueError, match="lacks array.*lower"):
            read_grid_file(tmp_path / "bad.npz")


def test_json_is_a_rig_file_too(tmp_path):
    (tmp_path / "rig.json").write_text(json.dumps({"cameras": {"A": CAMERA}}))
    assert read_rig(tmp_path / "rig.json").cameras["A"].width == 100
