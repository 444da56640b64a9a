import numpy as np
import pytest
import torch

from syntheocc.occupancy.data import nyuv2
from syntheocc.occupancy.data.downsampling import downsample_labels
from syntheocc.occupancy.data.png16 import read_png16
from syntheocc.occupancy.transforms import transform_points

# A camera 1.2 m up that looks along the world's y.
CAM2WORLD = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1.2], [0, 0, 0, 1]], dtype=torch.float64)


def voxels(ids=None, origin=(-1.5, 0.5, -0.05)):
    ids = np.zeros(nyuv2.FILE_SHAPE, np.uint8) if ids is None else ids
    return nyuv2.NyuVoxels(ids, torch.tensor(origin, dtype=torch.float64), CAM2WORLD)


def test_runs_and_the_class_map():
    ids = nyuv2.decode_runs(np.array([0, 3, 255, 2, 5, 3], np.uint32), 8)
    assert ids.tolist() == [0, 0, 0, 255, 255, 5, 5, 5]
    assert nyuv2._TABLE[ids].tolist() == [0, 0, 0, 255, 255, 11, 11, 11]
    assert len(nyuv2.CLASS_OF_ID) == 37
    names = nyuv2.NYUV2.taxonomy.classes
    assert [names[nyuv2.CLASS_OF_ID[i]] for i in (6, 7, 9, 16, 33, 36)] == "chair bed table tvs tvs objs".split()
    assert nyuv2.encode_runs(ids).tolist() == [0, 3, 255, 2, 5, 3]
    assert nyuv2.encode_runs(np.zeros(0, np.uint8)).size == 0
    for pairs, words in (([0, 7], "7 voxels, want 8"), ([0], "pairs"), ([256, 8], "value 256"), ([1, 4] * 3, "12 ")):
        with pytest.raises(ValueError, match=words):
            nyuv2.decode_runs(np.array(pairs, np.uint32), 8)


def test_file_axes_are_x_up_y(tmp_path):
    ids = np.zeros(nyuv2.FILE_SHAPE, np.uint8)
    ids[:4, :4] = 2  # a floor strip along y at x = 0
    ids[8:12, 20:24, 40:44] = 6  # a chair: x index 2, up 5, y 10
    ids[236:, 140:] = 255
    nyuv2.write_nyuv2(voxels(ids), tmp_path / "NYU0001.bin")
    grid = nyuv2.read_nyuv2(tmp_path / "NYU0001.bin")
    names = grid.taxonomy.classes
    assert grid.labels.shape == (60, 60, 36) and grid.spec.frame == "world"
    assert names[grid.labels[2, 10, 5]] == "chair" and int((grid.labels == names.index("chair")).sum()) == 1
    assert bool((grid.labels[0, :, 0] == names.index("floor")).all())
    assert bool((grid.labels[59, :, 35] == 255).all()) and int((grid.labels == 255).sum()) == 60
    # The chair's voxel in the room: origin + (index + 0.5) * 0.08.
    center = transform_points(grid.grid2ego, grid.spec.centers()[2, 10, 5][None])[0]
    assert center.tolist() == pytest.approx([-1.5 + 0.2, 0.5 + 0.84, -0.05 + 0.44])
    again = nyuv2.read_nyuv2_voxels(tmp_path / "NYU0001.bin")
    assert np.array_equal(again.ids, ids) and torch.allclose(again.cam2world, CAM2WORLD, atol=1e-6)


def test_targets_are_the_grid_at_two_scales(tmp_path):
    ids = np.random.default_rng(0).choice(
        np.array([0, 2, 6, 36, 255], np.uint8), (60, 36, 60), p=[0.6, 0.1, 0.1, 0.1, 0.1]
    )
    ids = ids.repeat(4, 0).repeat(4, 1).repeat(4, 2)
    path = tmp_path / "NYU0001.bin"
    nyuv2.write_nyuv2(voxels(ids), path)
    fine, coarse = nyuv2.read_nyuv2_targets(path)
    assert np.array_equal(fine, nyuv2.read_nyuv2(path).labels.numpy())
    want = downsample_labels(nyuv2._TABLE[ids], 16).transpose(0, 2, 1)
    assert coarse.shape == (15, 15, 9) and np.array_equal(coarse, want) and len(np.unique(coarse)) > 2
    origin, cam2world = nyuv2.read_nyuv2_pose(path)
    assert origin.tolist() == pytest.approx([-1.5, 0.5, -0.05]) and torch.allclose(cam2world, CAM2WORLD, atol=1e-6)
    path.write_bytes(path.read_bytes()[:-8] + np.array([37, 8294400], "<u4").tobytes())
    with pytest.raises(ValueError, match="NYU0001.bin: .*id 37"):
        nyuv2.read_nyuv2_targets(path)


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "a.bin"
    nyuv2.write_nyuv2(voxels(), path)
    good = path.read_bytes()
    assert len(good) == 84
    dummy = good[:-4] + np.array([8294399], "<u4").tobytes()
    bent = good[:12] + (2 * np.eye(4)).astype("<f4").tobytes() + good[76:]
    wrong = good[:-8] + np.array([37, 8294400], "<u4").tobytes()
    lost = np.array([np.nan] * 3, "<f4").tobytes() + good[12:]
    huge = good[:-8] + np.array([0, 2**32 - 1] * 3, "<u4").tobytes()
    for data, words in (
        (dummy, "runs of 8294399 voxels, want 8294400"),
        (huge, "want 8294400"),
        (good[:-3], "81 bytes"),
        (good[:40], "40 bytes"),
        (bent, "cam2world is not a rigid transform|cam2world must end"),
        (wrong, "id 37"),
        (lost, "origin must be three finite"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"a.bin: .*({words})"):
            nyuv2.read_nyuv2(path)
    with pytest.raises(ValueError, match="nothing.bin: no such file"):
        nyuv2.read_nyuv2(tmp_path / "nothing.bin")
    with pytest.raises(ValueError, match=r"uint8 \[240, 144, 240\]"):
        voxels(np.zeros((240, 240, 144), np.uint8))


def test_depth_is_millimetres_rotated_by_three_bits(tmp_path):
    depth = np.array([[0.0, 1.0, 8.191], [9.0, 70.0, np.nan]])
    nyuv2.write_depth(depth, tmp_path / "a.png")
    # 9000 = 0b0010001100101000 turns into 0b0001100101000001
    assert read_png16(tmp_path / "a.png").tolist() == [[0, 8000, 65528], [0b0001100101000001, 0, 0]]
    assert np.allclose(nyuv2.read_depth(tmp_path / "a.png"), [[0, 1, 8.191], [9, 0, 0]])


def test_a_file_is_a_frame(tmp_path):
    nyuv2.write_nyuv2(voxels(), tmp_path / "NYU0007_0000.bin")
    frame = nyuv2.read_nyuv2_frame(tmp_path / "NYU0007_0000.bin")
    assert frame.token == "NYU0007_0000" and frame.image_paths["camera"].name == "NYU0007_0000_color.jpg"
    assert frame.extras == {} and (frame.cameras["camera"].height, frame.cameras["camera"].width) == (480, 640)
    # The floor two metres ahead is below the picture's middle.
    camera = frame.cameras["camera"]
    pixel, depth = camera.project(transform_points(camera.ego2cam, torch.tensor([[0.0, 2.0, 0.0]]).double()))
    assert pixel[0].tolist() == pytest.approx([320, 240 + 518.8579 * 0.6], abs=1e-3)
    assert float(depth) == pytest.approx(2.0, abs=1e-6)


@pytest.mark.real_data
def test_the_real_scene(real_data):
    path = real_data / "nyuv2_ssc" / "NYU0001_0000.bin"
    frame, stored = nyuv2.read_nyuv2_frame(path), nyuv2.read_nyuv2_voxels(path)
    assert stored.origin.tolist() == pytest.approx([-1.545918, 0.8907361, -0.05], abs=1e-6)
    assert int(((stored.ids > 0) & (stored.ids < 255)).sum()) == 265671
    assert np.array_equal(nyuv2.decode_runs(nyuv2.encode_runs(stored.ids), stored.ids.size), stored.ids.ravel())
    # What the depth camera sees is what the grid calls occupied, in these axes and not with up and y exchanged.
    depth = torch.from_numpy(nyuv2.read_depth(frame.extras["depth"]))
    assert float(depth.max()) == pytest.approx(3.703) and float(depth.median()) == pytest.approx(2.922)
    rows, columns = torch.nonzero(depth, as_tuple=True)
    camera, grid = frame.cameras["camera"], stored.grid()
    rays = camera.pixel_rays(torch.stack([columns, rows], 1))
    points = transform_points(camera.cam2ego, rays * depth[rows, columns, None])
    index, inside = grid.spec.index_of(points - grid.grid2ego[:3, 3])
    labels = grid.labels[tuple(index[inside].T)]
    assert float(inside.double().mean()) > 0.97
    # 0.795: the labels are CAD models fitted to the room.
    assert float(((labels > 0) & (labels < 255)).double().mean()) > 0.78
    swapped = grid.labels.numpy().copy().transpose(0, 2, 1)
    inside &= (index[:, 1] < 36).logical_and(index[:, 2] < 36)
    labels = swapped[tuple(index[inside].numpy().T)]
    assert ((labels > 0) & (labels < 255)).mean() < 0.5


@pytest.mark.real_data
def test_the_class_map_of_the_real_table(real_data):
    from scipy.io import loadmat

    table = loadmat(real_data / "nyuv2_ssc" / "ClassMapping.mat")["map36to11"][0]
    names = ["free", *(str(cell[0]) for cell in table)]
    assert [nyuv2.NYUV2.taxonomy.classes[i] for i in nyuv2.CLASS_OF_ID] == names
