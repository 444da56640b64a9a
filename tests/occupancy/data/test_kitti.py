import numpy as np
import pytest
import torch

from syntheocc.occupancy.data import kitti
from syntheocc.occupancy.data.png16 import read_png16, write_png16
from syntheocc.occupancy.data.semantic_kitti import voxelize_scan
from syntheocc.occupancy.grids import SEMANTIC_KITTI, GridSpec
from syntheocc.occupancy.transforms import invert_rigid, transform_points

# KITTI odometry, sequence 00 (specs/occdepth.md 1.2).
P2 = [718.856, 0, 607.1928, 45.38225, 0, 718.856, 185.2157, -0.1130887, 0, 0, 1, 0.003779761]
P3 = [718.856, 0, 607.1928, -337.2877, 0, 718.856, 185.2157, 2.369057, 0, 0, 1, 0.004915215]
TR = [
    4.276802385584e-04, -9.999672484946e-01, -8.084491683471e-03, -1.198459927713e-02,
    -7.210626507497e-03, 8.081198471645e-03, -9.999413164504e-01, -5.403984729748e-02,
    9.999738645903e-01, 4.859485810390e-04, -7.206933692422e-03, -2.921968648686e-01,
]  # fmt: skip


def row(name, values):
    return f"{name}: {' '.join(map(str, values))}\n"


ROWS = [row("P0", P2), row("P1", P3), row("P2", P2), row("P3", P3), row("Tr", TR)]


@pytest.fixture
def calibration(tmp_path):
    (tmp_path / "calib.txt").write_text("".join(ROWS))
    return kitti.read_calib(tmp_path / "calib.txt")


def test_extrinsics_hold_the_offsets_of_p2_and_p3(calibration):
    left, right = calibration.lidar2cam("P2"), calibration.lidar2cam("P3")
    assert left[:3, 3].tolist() == pytest.approx([0.047954, -0.055171, -0.288417], abs=1e-6)
    assert right[:3, 3].tolist() == pytest.approx([-0.485337, -0.052011, -0.287282], abs=1e-6)
    assert torch.equal(left[:3, :3], calibration.lidar2cam0[:3, :3])
    baseline = float((left - right)[0, 3])
    assert baseline == pytest.approx(0.53329, abs=1e-5) and 718.856 * baseline == pytest.approx(383.36, abs=0.01)


@pytest.mark.parametrize(
    "scale, voxel, left, right",
    [
        (2, (10, 64, 4), (580, 207, 3.9130), (482, 207, 3.9141)),
        (2, (30, 64, 4), (598, 189, 11.9128), (566, 189, 11.9139)),
        (2, (30, 50, 6), (936, 138, 11.9043), (904, 138, 11.9055)),
        (2, (60, 80, 8), (410, 138, 23.9041), (394, 138, 23.9052)),
        (2, (127, 127, 15), (248, 123, 50.6923), (240, 123, 50.6935)),
        (2, (0, 64, 8), (None, None, -0.0984), (None, None, -0.0973)),
        (1, (60, 100, 12), (945, 143, 11.8050), (913, 144, 11.8061)),
    ],
)
def test_projections_of_the_spec(calibration, scale, voxel, left, right):
    rig = kitti.stereo_rig(calibration, (370, 1220))
    center = torch.tensor([0.0, -25.6, -2.0]) + 0.2 * scale * (torch.tensor(voxel) + 0.5)
    for camera, (u, v, z) in zip(rig.values(), (left, right), strict=True):
        pixel, depth = camera.project(transform_points(camera.ego2cam, center[None].double()))
        assert float(depth) == pytest.approx(z, abs=6e-5)
        assert u is None or pixel[0].round().tolist() == [u, v]


def test_counts_in_view(calibration):
    """How many of the half-resolution voxels either picture sees (+-1 pixel in one voxel: the spec used float32)."""
    rig = kitti.stereo_rig(calibration, (370, 1220))
    spec = GridSpec(SEMANTIC_KITTI.spec.lower, 0.4, (128, 128, 16), "lidar")
    views = []
    for camera in rig.values():
        pixels, depth = camera.project(transform_points(camera.ego2cam, spec.centers().reshape(-1, 3)))
        pixels = pixels.round()
        views.append((depth > 0) & ((pixels >= 0) & (pixels < torch.tensor([1220, 370]))).all(-1))
    left, right = views
    counts = [int(view.sum()) for view in (left, right, left & right, left | right)]
    assert counts == pytest.approx([176742, 176691, 175500, 177933], abs=1)


def test_calibrations_without_the_velodyne_name_what_they_have(tmp_path):
    path = tmp_path / "calib.txt"
    path.write_text("".join(ROWS[:4]))
    with pytest.raises(ValueError, match=r"calib.txt: no row Tr; it has P0, P1, P2, P3\. Take calib.txt from"):
        kitti.read_calib(path)
    for text, words in (
        ("".join(ROWS[2:]), "no row P0, P1"),
        ("", "it has none"),
        ("".join([*ROWS[:4], row("Tr", TR[:11])]), "row Tr has 11 numbers, want 12"),
        ("".join([*ROWS[:4], row("Tr", ["x", *TR[1:]])]), "line 5: .*'x'"),
        ("".join([*ROWS[:4], row("Tr", np.array(TR) * 2)]), "Tr is not a rigid transform"),
        ("".join([*ROWS[:4], row("Tr", ["nan", *TR[1:]])]), "Tr holds NaN"),
        ("".join([*ROWS[:3], row("P3", [0] * 12), ROWS[4]]), "P3 is no rectified projection"),
        ("".join([*ROWS[:2], row("P2", P3), row("P3", P2), ROWS[4]]), "camera P3 stands 0.532 m to the left of P2"),
        ("no numbers here", "line 1 is not `name: numbers`"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"calib.txt: .*{words}"):
            kitti.read_calib(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="calib.txt: not a text file"):
        kitti.read_calib(path)
    with pytest.raises(ValueError, match="nothing.txt: no such file"):
        kitti.read_calib(tmp_path / "nothing.txt")


def test_calibrations_round_trip_through_the_rig(tmp_path, calibration):
    rig = kitti.stereo_rig(calibration, {"image_2": (376, 1241), "image_3": (370, 1220)})
    assert (rig["image_2"].height, rig["image_3"].width) == (376, 1220)
    kitti.write_calib(kitti.calibration_of(rig), tmp_path / "again.txt")
    again = kitti.stereo_rig(kitti.read_calib(tmp_path / "again.txt"), (370, 1220))
    for name in rig:
        assert torch.allclose(again[name].cam2ego, rig[name].cam2ego, atol=1e-10)
        assert torch.allclose(again[name].intrinsics, rig[name].intrinsics)
    turned = rig["image_3"].moved(rig["image_3"].cam2ego @ rig["image_3"].cam2ego)
    with pytest.raises(ValueError, match="image_3 is 'pinhole' and turned by .*rectify the rig"):
        kitti.calibration_of(type(rig)({"image_2": rig["image_2"], "image_3": turned}))


def test_poses_and_times(tmp_path):
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[:, 2, 3] = torch.tensor([0.0, 0.5, 1.25])
    kitti.write_poses(poses, tmp_path / "poses.txt")
    assert torch.equal(kitti.read_poses(tmp_path / "poses.txt"), poses)
    assert (tmp_path / "poses.txt").read_text().splitlines()[1].split()[11] == "5.000000000000e-01"
    kitti.write_times([0.0, 0.1037359], tmp_path / "times.txt")
    assert (tmp_path / "times.txt").read_text() == "0.000000e+00\n1.037359e-01\n"
    assert kitti.read_times(tmp_path / "times.txt") == [0.0, 0.1037359]
    for text, words in (("1 0 0", "line 1 has 3 numbers"), ("1 0 0 0 0 2 0 0 0 0 1 0", "line 1 is no rigid")):
        (tmp_path / "poses.txt").write_text(text)
        with pytest.raises(ValueError, match=f"poses.txt: {words}"):
            kitti.read_poses(tmp_path / "poses.txt")
    (tmp_path / "times.txt").write_text("0\nnan\n")
    with pytest.raises(ValueError, match="times.txt: line 2 is not one finite number"):
        kitti.read_times(tmp_path / "times.txt")


def test_depth_and_scans(tmp_path):
    depth = np.array([[0.0, 1.0, 10.5], [np.inf, np.nan, 300.0], [-1.0, 0.001, 255.99]], np.float32)
    kitti.write_depth(depth, tmp_path / "d.png")
    assert read_png16(tmp_path / "d.png")[0].tolist() == [0, 256, 2688]  # metres times 256
    expected = [[0, 1, 10.5], [0, 0, 0], [0, 0, 65533 / 256]]
    assert kitti.read_depth(tmp_path / "d.png").tolist() == expected
    (tmp_path / "cut.png").write_bytes((tmp_path / "d.png").read_bytes()[:50])
    with pytest.raises(ValueError, match="cut.png: cannot be read as a picture"):
        kitti.read_depth(tmp_path / "cut.png")
    with pytest.raises(ValueError, match="no.png: no such file"):
        kitti.read_depth(tmp_path / "no.png")
    with pytest.raises(ValueError, match=r"uint16 \[H, W\], got uint8"):
        write_png16(np.zeros((2, 2), np.uint8), tmp_path / "u.png")
    points = np.arange(8, dtype=np.float32).reshape(2, 4)
    kitti.write_scan(points, tmp_path / "s.bin")
    assert np.array_equal(kitti.read_scan(tmp_path / "s.bin"), points)
    with pytest.raises(ValueError, match=r"\[N, 4\] x, y, z, remission, got \[2, 3\]"):
        kitti.write_scan(points[:, :3], tmp_path / "s.bin")


def test_eight_bit_pictures_are_no_depth(tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match="rgb.png: a picture of mode 'RGB'"):
        kitti.read_depth(tmp_path / "rgb.png")


def sequence(folder, num=2):
    from PIL import Image

    (folder / "image_2").mkdir(parents=True)
    (folder / "image_3").mkdir()
    for i in range(num):
        for camera in ("image_2", "image_3"):
            Image.fromarray(np.zeros((6, 10, 3), np.uint8)).save(folder / camera / f"{i:06d}.png")
    (folder / "calib.txt").write_text("".join(ROWS))
    kitti.write_times([0.1 * i for i in range(num)], folder / "times.txt")
    poses = torch.eye(4, dtype=torch.float64).repeat(num, 1, 1)
    poses[:, 2, 3] = torch.arange(num)  # camera 0 drives a metre a frame along its axis
    kitti.write_poses(poses, folder / "poses.txt")
    return folder


def test_a_sequence_is_frames(tmp_path):
    folder = sequence(tmp_path / "sequences" / "07")
    first, second = kitti.read_sequence(folder)
    assert (second.token, second.scene, second.timestamp_us) == ("07_000001", "07", 100_000)
    assert second.cameras.names == ("image_2", "image_3") and second.cameras["image_3"].width == 10
    assert second.image_paths["image_3"] == folder / "image_3" / "000001.png"
    assert torch.equal(second.lidar2ego, torch.eye(4, dtype=torch.float64))
    assert torch.allclose(first.ego2global, torch.eye(4, dtype=torch.float64), atol=1e-4)
    # A metre along the camera's axis is a metre along the velodyne's x.
    assert second.ego2global[:3, 3].tolist() == pytest.approx([1.0, 0.0, -0.007], abs=1e-3)
    assert first.occupancy_path is None and "point_labels" not in first.extras
    (folder / "image_3" / "000001.png").write_bytes(b"")
    with pytest.raises(ValueError, match="000001.png: not a .png picture"):
        kitti.read_sequence(folder)
    assert len(kitti.read_sequence(folder, cameras=["image_2"])) == 2
    kitti.write_times([0.0], folder / "times.txt")
    with pytest.raises(ValueError, match="frame 000001 but 1 times and 2 poses"):
        kitti.read_sequence(folder, cameras=["image_2"])
    (folder / "times.txt").unlink()
    assert kitti.read_sequence(folder, cameras=["image_2"])[1].timestamp_us == 100_000  # KITTI records at 10 Hz
    (folder / "poses.txt").unlink()
    kitti.write_times([0.0, 0.1], folder / "times.txt")
    assert kitti.read_sequence(folder, cameras=["image_2"])[0].ego2global is None


def test_named_frames_share_the_size_of_the_first_picture(tmp_path):
    folder = sequence(tmp_path / "sequences" / "07", num=3)
    (folder / "image_3" / "000001.png").unlink()
    (folder / "image_2" / "000002.png").write_bytes(b"")
    frames = kitti.read_sequence(folder, names=["000001", "000002"])
    assert [frame.token for frame in frames] == ["07_000001", "07_000002"]
    assert frames[0].cameras is frames[1].cameras and frames[0].cameras["image_3"].width == 10
    for picture in (folder / "image_3").glob("*.png"):
        picture.unlink()
    with pytest.raises(ValueError, match="image_3: no pictures NNNNNN.png; is this camera's part"):
        kitti.read_sequence(folder, names=["000001"])


def test_projections_need_no_velodyne(tmp_path):
    path = tmp_path / "calib.txt"
    path.write_text("".join(ROWS[:4]))
    found = kitti.read_projections(path)
    assert list(found) == ["P2", "P3"] and found["P2"].shape == (3, 4)
    path.write_text("".join(ROWS[:3]))
    with pytest.raises(ValueError, match="calib.txt: no row P3; it has P0, P1, P2"):
        kitti.read_projections(path)
    path.write_text("".join([*ROWS[:3], row("P3", ["nan"] * 12)]))
    with pytest.raises(ValueError, match="calib.txt: row P3 holds NaN"):
        kitti.read_projections(path)


@pytest.mark.real_data
def test_the_real_sequence(real_data):
    folder = real_data / "semantickitti" / "sequences" / "00"
    frames = kitti.read_sequence(folder)
    assert [frame.token for frame in frames] == ["00_000000", "00_000005"]
    for frame in frames:
        frame.check_files()
    assert (frames[0].cameras["image_2"].height, frames[0].cameras["image_2"].width) == (376, 1241)
    # The poses carry one scan onto the other: five frames, 3.55 m.
    relative = invert_rigid(frames[0].ego2global) @ frames[1].ego2global
    first, second = (kitti.read_scan(frame.lidar_path)[:, :3] for frame in frames)
    moved = transform_points(relative, torch.from_numpy(second).double()).numpy()
    voxels = voxelize_scan(first)
    agreement = [(voxels & v).sum() / (voxels | v).sum() for v in (voxelize_scan(moved), voxelize_scan(second))]
    assert float(relative[0, 3]) == pytest.approx(3.551, abs=1e-3)
    assert agreement == pytest.approx([0.405, 0.143], abs=0.005)
    with pytest.raises(ValueError, match="no row Tr; it has P0, P1, P2, P3"):
        kitti.read_calib(folder / "calib_without_Tr.txt")
    points = kitti.read_scan(frames[0].lidar_path)
    assert points.shape == (124668, 4) and 0 <= points[:, 3].min() and points[:, 3].max() <= 1


@pytest.mark.real_data
def test_the_real_object_calibration(real_data):
    """The object benchmark's rows; its scan falls on its picture."""
    folder = real_data / "kitti_object_stereo"
    calibration = kitti.read_calib(folder / "calib.txt")
    rig = kitti.stereo_rig(calibration, (375, 1242))
    points = torch.from_numpy(kitti.read_scan(folder / "lidar.bin")[:, :3]).double()
    assert len(points) == 103344
    pixels, depth = rig["image_2"].project(transform_points(rig["image_2"].ego2cam, points))
    inside = ((pixels >= 0) & (pixels < torch.tensor([1242, 375]))).all(-1) & (depth > 0)
    assert 0.15 < float(inside.double().mean()) < 0.2
    assert float((rig["image_2"].cam2ego - rig["image_3"].cam2ego)[:3, 3].norm()) == pytest.approx(0.5327, abs=1e-3)
