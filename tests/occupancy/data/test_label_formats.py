import numpy as np
import pytest
import torch

from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.lidar import read_lidar, write_lidar
from syntheocc.occupancy.data.occ3d import Occ3DLabels, read_occ3d, write_occ3d
from syntheocc.occupancy.data.occupancy_files import (
    OCCUPANCY_KINDS,
    occupancy_path,
    preset_of,
    read_occupancy,
    write_occupancy,
)
from syntheocc.occupancy.data.openoccupancy import read_openoccupancy
from syntheocc.occupancy.data.surroundocc import SURROUNDOCC_FINE, read_surroundocc, write_surroundocc
from syntheocc.occupancy.data.syntheocc import read_syntheocc
from syntheocc.occupancy.grids import OCC3D_NUSCENES, OPENOCC_V2, SYNTHEOCC_COARSE, OccupancyGrid

POSE = torch.eye(4, dtype=torch.float64)
POSE[:3, 3] = torch.tensor([0.9, 0.0, 1.8])


def save(path, rows, dtype=np.int64):
    np.save(path, np.array(rows, dtype=dtype))
    return path


def test_syntheocc_rows_are_x_y_z_class(tmp_path):
    grid = read_syntheocc(save(tmp_path / "a.npy", [[499, 3, 39, 1], [0, 0, 0, 16], [7, 8, 9, 255]]), POSE)
    assert grid.labels[499, 3, 39] == 1 and grid.taxonomy.classes[1] == "car"
    assert grid.labels[0, 0, 0] == 16 and grid.taxonomy.classes[16] == "vegetation" and grid.labels[7, 8, 9] == 255
    assert int((grid.labels != 0).sum()) == 3 and torch.equal(grid.grid2ego, POSE)
    coarse = read_syntheocc(save(tmp_path / "c.npy", [[199, 199, 15, 11]], np.uint8), POSE, SYNTHEOCC_COARSE)
    assert coarse.labels.shape == (200, 200, 16) and coarse.labels[199, 199, 15] == 11


def test_surroundocc_class_0_is_noise_and_what_has_no_row_is_free(tmp_path):
    grid = read_surroundocc(save(tmp_path / "a.npy", [[1, 2, 3, 0], [4, 5, 6, 4]], np.float64), POSE)
    assert grid.labels[1, 2, 3] == 255 and grid.labels[4, 5, 6] == 4 and grid.taxonomy.classes[4] == "car"
    assert grid.labels[0, 0, 0] == 0 == grid.taxonomy.free and int(grid.occupied().sum()) == 1
    fine = read_surroundocc(save(tmp_path / "f.npy", [[499, 499, 39, 16]]), POSE, SURROUNDOCC_FINE)
    assert fine.labels.shape == (500, 500, 40) and fine.labels[499, 499, 39] == 16


def test_openoccupancy_rows_are_z_y_x_class(tmp_path):
    grid = read_openoccupancy(save(tmp_path / "a.npy", [[39, 1, 511, 4], [0, 2, 3, 0]]), POSE)
    assert grid.labels.shape == (512, 512, 40)
    assert grid.labels[511, 1, 39] == 4 and grid.labels[3, 2, 0] == 255 and int((grid.labels != 0).sum()) == 2


@pytest.mark.parametrize("kind", OCCUPANCY_KINDS)
def test_every_kind_round_trips(tmp_path, kind):
    preset = preset_of(kind)
    generator = torch.Generator().manual_seed(1)
    labels = torch.full(preset.spec.shape, preset.taxonomy.free, dtype=torch.uint8)
    index = [torch.randint(n, (300,), generator=generator) for n in preset.spec.shape]
    labels[tuple(index)] = torch.randint(preset.taxonomy.num_classes, (300,), generator=generator).to(torch.uint8)
    labels[0, 1, 2] = 255
    grid = OccupancyGrid(labels, *preset, POSE if preset.spec.frame == "lidar" else None)
    suffix = {"occ3d": "npz", "openocc_v2": "npz", "semantic_kitti": "label"}.get(kind, "npy")
    path = tmp_path / f"labels.{suffix}"
    write_occupancy(grid, path, kind)
    read = read_occupancy(path, kind, POSE)
    assert torch.equal(read.labels, labels) and read.spec == grid.spec and read.taxonomy == grid.taxonomy
    assert torch.equal(read.grid2ego, grid.grid2ego)
    other = next(k for k in OCCUPANCY_KINDS if preset_of(k) != preset)
    with pytest.raises(ValueError, match="resample or map it first"):
        write_occupancy(grid, tmp_path / "other.npy", other)
    assert not (tmp_path / "other.npy").exists()


@pytest.mark.parametrize(
    "rows, words",
    [
        ([[500, 0, 0, 1]], "x index 500 outside 0..499"),
        ([[0, -1, 0, 1]], "y index -1 outside 0..499"),
        ([[0, 0, 40, 1]], "z index 40 outside 0..39.*another resolution"),
        ([[0, 0, 0, 17]], "class id 17 is not in table 'syntheocc'"),
        ([[0, 0, 0]], r"shape \[1, 3\].*rows \[n, 4\]"),
        ([0, 0, 0, 1], r"shape \[4\]"),
        ([[0.5, 0, 0, 1]], "no whole numbers"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, words):
    with pytest.raises(ValueError, match=f"bad.npy: .*{words}"):
        read_syntheocc(save(tmp_path / "bad.npy", rows, None), POSE)


def test_a_bad_pose_is_named_with_the_file(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((0, 4), np.int64))
    for pose in (None, np.eye(3), np.full((4, 4), np.nan)):
        with pytest.raises(ValueError, match="a.npy: .*grid2ego"):
            read_surroundocc(tmp_path / "a.npy", pose)


def test_grids_of_another_kind_are_not_written(tmp_path):
    occ3d = OccupancyGrid(torch.full((200, 200, 16), 17, dtype=torch.uint8), *OCC3D_NUSCENES)
    labels = torch.zeros(200, 200, 16, dtype=torch.uint8)
    coarse = OccupancyGrid(labels, *SYNTHEOCC_COARSE, torch.eye(4))
    for grid, write, words in (
        (occ3d, write_surroundocc, "resample the grid first"),
        (coarse, write_surroundocc, r"grid.map_to\(taxonomy_named\('surroundocc'\)\)"),
        (coarse, write_occ3d, "resample or map it first"),
    ):
        with pytest.raises(ValueError, match=f"x: .*{words}"):
            write(grid, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_bad_npy_files_are_named(tmp_path):
    path = save(tmp_path / "cut.npy", [[0, 0, 0, 1]] * 100)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="cut.npy: .*truncated"):
        read_syntheocc(path, POSE)
    np.save(tmp_path / "o.npy", np.array([[0, 0, 0, None]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="o.npy: .*pickled"):
        read_openoccupancy(tmp_path / "o.npy", POSE)
    with pytest.raises(ValueError, match="pass the sample's lidar2ego"):
        read_occupancy(path, "surroundocc")
    with pytest.raises(ValueError, match="unknown occupancy kind 'waymo'; known: syntheocc"):
        read_occupancy(path, "waymo")
    assert read_syntheocc(save(tmp_path / "empty.npy", np.zeros((0, 4))), POSE).occupied().sum() == 0


def test_occ3d_keeps_masks_and_instances(tmp_path):
    labels = torch.full((200, 200, 16), 17, dtype=torch.uint8)
    labels[100, 50, 3] = 4
    seen = torch.zeros(200, 200, 16, dtype=torch.bool)
    seen[100] = True
    written = Occ3DLabels(OccupancyGrid(labels, *OCC3D_NUSCENES), seen, ~seen, seen.to(torch.uint8) * 3)
    write_occ3d(written, tmp_path / "labels.npz")
    read = read_occ3d(tmp_path / "labels.npz")
    assert torch.equal(read.grid.labels, labels) and read.grid.taxonomy.classes[17] == "free"
    assert torch.equal(read.mask_lidar, seen) and torch.equal(read.mask_camera, ~seen)
    assert read.instances[100, 0, 0] == 3 and read.instances[0, 0, 0] == 0
    with np.load(tmp_path / "labels.npz") as archive:  # the layout that others read
        assert all(archive[n].dtype == np.uint8 for n in ("semantics", "mask_lidar", "mask_camera"))
    write_occ3d(written.grid, tmp_path / "bare.npz")
    assert read_occ3d(tmp_path / "bare.npz").mask_camera.all()


def test_bad_occ3d_files_are_named(tmp_path):
    good = np.full((200, 200, 16), 16, np.uint8)
    path = tmp_path / "labels.npz"
    for arrays, words in (
        ({"labels": good}, "lacks array"),
        ({"semantics": good[:100]}, r"semantics has shape \[100, 200, 16\]"),
        ({"semantics": good, "mask_camera": good[..., 0]}, "mask_camera has shape"),
        ({"semantics": good, "mask_lidar": good}, "mask_lidar holds values other than 0 and 1"),
        ({"semantics": good + 2}, "class id 18"),
        ({"semantics": good.astype(np.float32)}, "integers"),
        ({"semantics": good.astype(str)}, "integers"),
        ({"semantics": good, "instances": good.astype(np.float32)}, "instances are integers"),
    ):
        np.savez_compressed(path, **arrays)
        with pytest.raises(ValueError, match=f"labels.npz: .*{words}"):
            read_occ3d(path)
    np.savez_compressed(path, semantics=good.astype(np.uint16))
    assert read_occ3d(path).grid.labels.unique().tolist() == [16]
    np.savez_compressed(path, semantics=good)
    assert read_occ3d(path, OPENOCC_V2).grid.taxonomy.classes[16] == "free"
    assert read_occ3d(path).mask_camera is None
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="labels.npz: .*truncated"):
        read_occ3d(path)
    with pytest.raises(ValueError, match="mask_lidar has shape"):
        write_occ3d(
            Occ3DLabels(OccupancyGrid(torch.from_numpy(good), *OCC3D_NUSCENES), torch.ones(2, dtype=torch.bool)), path
        )


def test_where_label_files_lie(make_frame, six_cameras):
    frame = make_frame()
    lidar = "car__LIDAR_TOP__1.pcd.bin.npy"
    for kind, expected in (
        ("syntheocc", f"r/dense_voxels_with_semantic_z-5/{lidar}"),
        ("surroundocc", f"r/samples/{lidar}"),
        ("openoccupancy", "r/scene_scenetoken/occupancy/lidar0.npy"),
        ("occ3d", "r/scene-0001/sample0/labels.npz"),
    ):
        assert occupancy_path("r", frame, kind).as_posix() == expected
    frame.extras["lidar_token"] = "../../x"
    with pytest.raises(ValueError, match="'../../x' is no plain name"):
        occupancy_path("r", frame, "openoccupancy")
    nameless = Frame("t", "", 0, six_cameras)
    for kind in OCCUPANCY_KINDS:
        with pytest.raises(ValueError, match="sample t: "):
            occupancy_path("r", nameless, kind)


def test_sweeps(tmp_path):
    points = np.arange(10, dtype=np.float32).reshape(2, 5)
    write_lidar(points, tmp_path / "a.bin")
    assert np.array_equal(read_lidar(tmp_path / "a.bin"), points)
    assert (tmp_path / "a.bin").stat().st_size == 40
    with pytest.raises(ValueError, match="40 bytes are no whole number of records of 4"):
        read_lidar(tmp_path / "a.bin", columns=4)
    (tmp_path / "a.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:-3])
    with pytest.raises(ValueError, match="a.bin: 37 bytes .*truncated"):
        read_lidar(tmp_path / "a.bin")
    write_lidar(points * np.nan, tmp_path / "nan.bin")
    with pytest.raises(ValueError, match="not finite"):
        read_lidar(tmp_path / "nan.bin")
    with pytest.raises(ValueError, match="no such file"):
        read_lidar(tmp_path / "nothing.bin")
    with pytest.raises(ValueError, match=r"\[10\]"):
        write_lidar(points.ravel(), tmp_path / "b.bin")


@pytest.mark.real_data
def test_the_real_occ3d_label(real_data):
    labels = read_occ3d(real_data / "occ3d_scene1077" / "labels.npz")
    road = labels.grid.labels == labels.grid.taxonomy.id_of("driveable_surface")
    assert int(labels.grid.occupied().sum()) == 39092
    assert int(road.sum()) == 8433 == int(road[:, :, 0].sum())
    assert int((labels.grid.labels == 0).sum()) == 169
    free = labels.grid.labels == 17
    assert torch.equal(labels.mask_lidar & free, labels.mask_camera & free)
    assert int((labels.mask_lidar & free).sum()) == 20491
    assert not bool((labels.mask_camera & ~labels.mask_lidar).any())


@pytest.mark.real_data
def test_the_real_sweep(real_data):
    (path,) = (real_data / "nuscenes_scene0061" / "samples" / "LIDAR_TOP").iterdir()
    assert read_lidar(path).shape == (34688, 5)
