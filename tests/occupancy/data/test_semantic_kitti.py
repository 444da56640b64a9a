import numpy as np
import pytest
import torch

from syntheocc.occupancy.data import semantic_kitti as sk
from syntheocc.occupancy.data.downsampling import downsample_labels
from syntheocc.occupancy.data.kitti import read_scan, read_sequence, write_scan
from syntheocc.occupancy.data.occupancy_files import occupancy_path
from syntheocc.occupancy.grids import OCC3D_NUSCENES, SEMANTIC_KITTI, OccupancyGrid

POSE = torch.eye(4, dtype=torch.float64)


def filled(marks):
    """A free grid with these voxels set."""
    labels = torch.zeros(256, 256, 32, dtype=torch.uint8)
    for voxel, label in marks.items():
        labels[voxel] = label
    return OccupancyGrid(labels, *SEMANTIC_KITTI, POSE)


def test_bits_are_packed_highest_first(tmp_path):
    data = np.zeros(262144, np.uint8)
    data[:2] = (0x81, 0x06)
    data.tofile(tmp_path / "000000.bin")
    bits = sk.read_voxel_bits(tmp_path / "000000.bin")
    assert bits[0, 0, :16].int().tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0]
    assert int(bits.sum()) == 4
    late = sk.read_voxel_bits(tmp_path / "000000.bin", release="before_2020_08_24")
    assert late[0, 0, :16].int().tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="release is one of current, before_2020_08_24, detect; got 'old'"):
        sk.read_voxel_bits(tmp_path / "000000.bin", release="old")


def test_the_learning_map():
    raw = np.array([0, 10, 252, 259, 99, 1, 52, 60, 81, 300, 65535])
    assert sk.classes_of_raw(raw).tolist() == [0, 1, 1, 5, 255, 255, 255, 9, 19, 255, 255]
    assert sk.classes_of_raw(np.array(sk.RAW_OF_CLASS)).tolist() == list(range(20))
    classes = SEMANTIC_KITTI.taxonomy.classes
    assert (classes[sk.LEARNING_MAP[30]], classes[sk.LEARNING_MAP[71]]) == ("person", "trunk")
    with pytest.raises(ValueError, match="0..65535"):
        sk.classes_of_raw(np.array([-1]))


def test_files_hold_raw_ids_in_the_order_x_y_z(tmp_path):
    grid = filled({(1, 2, 3): 1, (255, 255, 31): 19, (0, 0, 1): 255})
    path = tmp_path / "voxels" / "000000.label"
    sk.write_semantic_kitti(grid, path)
    raw = np.fromfile(path, "<u2")
    assert raw.size == 2097152 and raw[(1 * 256 + 2) * 32 + 3] == 10 and raw[-1] == 81 and raw[1] == 0
    assert np.fromfile(path.with_suffix(".invalid"), np.uint8)[0] == 0x40
    read = sk.read_semantic_kitti(path)
    assert torch.equal(read.labels, grid.labels) and torch.equal(read.grid2ego, POSE)
    assert not path.with_suffix(".bin").exists()


def test_all_files_of_a_frame_round_trip(tmp_path):
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(256, 256, 32, generator=generator) < 0.3 for _ in range(3)]
    grid = filled({(7, 7, 7): 9})
    sk.write_semantic_kitti(sk.SemanticKittiVoxels(grid, *masks), tmp_path / "000010.label")
    read = sk.read_semantic_kitti_voxels(tmp_path / "000010.bin")
    assert all(torch.equal(a, b) for a, b in zip((read.scan, read.invalid, read.occluded), masks, strict=True))
    assert torch.equal(read.grid.labels == 255, masks[1])
    (tmp_path / "000010.label").unlink()
    assert sk.read_semantic_kitti_voxels(tmp_path / "000010.bin").grid is None
    with pytest.raises(ValueError, match="000011.label: no such voxel files"):
        sk.read_semantic_kitti_voxels(tmp_path / "000011.label")


def test_the_old_release_is_detected_and_put_right(tmp_path):
    """Both releases of one frame, made by hand: the old writer counted before it wrote."""
    generator = torch.Generator().manual_seed(1)
    index = torch.stack([torch.randint(n, (4000,), generator=generator) for n in (256, 256, 32)], 1)
    centers = SEMANTIC_KITTI.spec.centers()[tuple(index.T)]
    distance = centers.norm(dim=1)
    index, centers = (x[(distance > 2.6) & (distance < 69)] for x in (index, centers))
    write_scan(np.pad(centers.numpy(), ((0, 0), (0, 1))), tmp_path / "velodyne" / "000000.bin")
    grid = filled({tuple(voxel): 9 for voxel in index.tolist()})
    path = tmp_path / "voxels" / "000000.label"
    sk.write_semantic_kitti(sk.SemanticKittiVoxels(grid, grid.occupied()), path)
    files = path.with_suffix(".bin"), tmp_path / "velodyne" / "000000.bin"
    assert sk.detect_release(*files) == "current"
    assert torch.equal(sk.read_semantic_kitti(path, release="detect").labels, grid.labels)
    for suffix in (".bin", ".invalid"):
        bits = np.unpackbits(np.fromfile(path.with_suffix(suffix), np.uint8))
        np.packbits(np.r_[np.uint8(0), bits[:-1]]).tofile(path.with_suffix(suffix))
    raw = np.fromfile(path, "<u2")
    np.r_[np.uint16(0), raw[:-1]].astype("<u2").tofile(path)
    assert sk.detect_release(*files) == "before_2020_08_24"
    for release in ("detect", "before_2020_08_24"):
        assert torch.equal(sk.read_semantic_kitti(path, release=release).labels, grid.labels)
    assert not torch.equal(sk.read_semantic_kitti(path).labels, grid.labels)
    assert torch.equal(sk.read_semantic_kitti_voxels(path, release="detect").scan, grid.occupied())
    write_scan(np.array([[10.0, 0, 0, 0]]), tmp_path / "velodyne" / "000000.bin")
    with pytest.raises(ValueError, match="neither as it is .*are both of the same frame"):
        sk.read_semantic_kitti(path, release="detect")


def test_the_old_release_is_detected_without_a_scan(tmp_path):
    """Sky is seen and underground is not: the masks alone tell whether columns begin where they should."""
    invalid = torch.zeros(256, 256, 32, dtype=torch.bool)
    invalid[:, 64:, :9] = True
    grid, path = filled({(50, 50, 20): 9}), tmp_path / "voxels" / "000000.label"
    sk.write_semantic_kitti(sk.SemanticKittiVoxels(grid, grid.occupied(), invalid, invalid), path)
    assert sk.release_of_mask(path.with_suffix(".invalid")) == "current"
    assert torch.equal(sk.read_semantic_kitti_voxels(path, release="detect").invalid, invalid)
    bits = np.unpackbits(np.fromfile(path.with_suffix(".invalid"), np.uint8))
    np.packbits(np.r_[np.uint8(0), bits[:-1]]).tofile(path.with_suffix(".invalid"))
    assert sk.release_of_mask(path.with_suffix(".invalid")) == "before_2020_08_24"
    assert torch.equal(sk.read_semantic_kitti_voxels(path, release="detect").invalid, invalid)
    np.zeros(262144, np.uint8).tofile(path.with_suffix(".invalid"))
    with pytest.raises(ValueError, match="000000.invalid: cannot be told .*name the release"):
        sk.release_of_mask(path.with_suffix(".invalid"))
    path.with_suffix(".invalid").unlink(), path.with_suffix(".occluded").unlink()
    with pytest.raises(ValueError, match="cannot be found out without"):
        sk.read_semantic_kitti_voxels(path, release="detect")


def test_most_points_decide_whether_a_voxel_is_occupied():
    points = np.array([[10.05, 0.05, 0.05]] * 3 + [[20.05, 0.05, 0.05]] * 2 + [[1.0, 0, 0], [10.0, 0.05, -3.0]])
    raw = np.array([0, 0, 40, 40, 0, 40, 40], np.uint16)
    every, voted = sk.voxelize_scan(points), sk.voxelize_scan(points, raw)
    assert np.argwhere(every).tolist() == [[50, 128, 10], [100, 128, 10]]
    # Two of three points without a class; of two, one each: the smaller id is the one without.
    assert not voted.any()
    raw[0] = 40
    assert np.argwhere(sk.voxelize_scan(points, raw)).tolist() == [[50, 128, 10]]
    with pytest.raises(ValueError, match="6 labels for 7 points"):
        sk.voxelize_scan(points, raw[:-1])


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "000000.label"
    sk.write_semantic_kitti(filled({}), path)
    for suffix in (".label", ".invalid"):
        whole = path.with_suffix(suffix).read_bytes()
        path.with_suffix(suffix).write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=f"000000{suffix}: {len(whole) - 1} bytes, want {len(whole)}"):
            sk.read_semantic_kitti(path)
        path.with_suffix(suffix).unlink()
        with pytest.raises(ValueError, match=f"000000{suffix}: no such file"):
            sk.read_semantic_kitti(path)
        path.with_suffix(suffix).write_bytes(whole)
    with pytest.raises(ValueError, match="000000.label: .*grid2ego"):
        sk.read_semantic_kitti(path, np.eye(3))
    occ3d = OccupancyGrid(torch.full((200, 200, 16), 17, dtype=torch.uint8), *OCC3D_NUSCENES)
    with pytest.raises(ValueError, match="resample or map it first"):
        sk.write_semantic_kitti(occ3d, tmp_path / "x.label")
    with pytest.raises(ValueError, match=r".bin is bool \[256, 256, 32\], got bool \[2\]"):
        sk.write_semantic_kitti(
            sk.SemanticKittiVoxels(filled({}), torch.ones(2, dtype=torch.bool)), tmp_path / "x.label"
        )
    with pytest.raises(ValueError, match="x.npy: .*named NNNNNN.label"):
        sk.write_semantic_kitti(filled({}), tmp_path / "x.npy")
    with pytest.raises(ValueError, match="neither a grid nor a mask"):
        sk.write_semantic_kitti(sk.SemanticKittiVoxels(None), tmp_path / "x.label")
    assert list(tmp_path.glob("*x.*")) == []


def test_point_labels_are_class_and_instance(tmp_path):
    sk.write_point_labels(np.array([10, 252, 0]), np.array([1, 65535, 0]), tmp_path / "a.label")
    assert np.fromfile(tmp_path / "a.label", "<u4").tolist() == [65546, 4294902012, 0]
    semantic, instance = sk.read_point_labels(tmp_path / "a.label")
    assert semantic.tolist() == [10, 252, 0] and instance.tolist() == [1, 65535, 0]
    (tmp_path / "a.label").write_bytes(b"12345")
    with pytest.raises(ValueError, match="5 bytes are no whole number"):
        sk.read_point_labels(tmp_path / "a.label")
    with pytest.raises(ValueError, match="16 bits"):
        sk.write_point_labels(np.array([1 << 16]), np.array([0]), tmp_path / "b.label")
    with pytest.raises(ValueError, match="two integer arrays"):
        sk.write_point_labels(np.array([1]), np.array([0, 1]), tmp_path / "b.label")


def test_downsampling_thresholds():
    def block(factor, classes, unknown=0):
        """One block: classes as {label: count}, unknown voxels, the rest free."""
        flat = np.zeros(factor**3, np.uint8)
        flat[:unknown] = 255
        at = unknown
        for label, count in classes.items():
            flat[at : at + count] = label
            at += count
        return int(downsample_labels(flat.reshape((factor,) * 3), factor)[0, 0, 0])

    # 26 of 512 labelled voxels carry a block, 25 do not (0.95 * 512 = 486.4 free ones).
    assert block(8, {7: 26}) == 7 and block(8, {7: 25}) == 0
    assert block(4, {7: 4}) == 7 and block(4, {7: 3}) == 0
    assert block(16, {7: 205}) == 7 and block(16, {7: 204}) == 0
    assert block(2, {7: 1}) == 7 and block(2, {}) == 0
    assert block(8, {}, unknown=256) == 255 and block(8, {}, unknown=255) == 0
    assert block(2, {9: 4, 7: 4}) == 7 and block(2, {9: 5, 7: 3}) == 9
    # Many unknown voxels do not outvote a class.
    assert block(4, {3: 4, 5: 5}, unknown=50) == 5
    with pytest.raises(ValueError, match="factor of 4 does not divide"):
        downsample_labels(np.zeros((8, 8, 6), np.uint8), 4)
    with pytest.raises(ValueError, match="uint8"):
        downsample_labels(np.zeros((8, 8, 8), np.float32), 4)


def test_downsampling_agrees_with_a_loop():
    generator = np.random.default_rng(0)
    labels = generator.choice([0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 255, 255], (8, 4, 12)).astype(np.uint8)
    for factor in (2, 4):
        fast = downsample_labels(labels, factor)
        for index in np.ndindex(*fast.shape):
            part = labels[tuple(slice(i * factor, (i + 1) * factor) for i in index)]
            count = np.bincount(part.ravel(), minlength=256)
            known = count[1:255]
            empty = count[0] + count[255] > 0.95 * factor**3
            want = (0 if count[0] > count[255] else 255) if empty else 1 + int(known.argmax())
            assert fast[index] == want


def test_preprocessed_targets(tmp_path):
    labels = torch.zeros(256, 256, 32, dtype=torch.uint8)
    labels[:8, :8, :8] = 13
    sk.write_preprocessed(OccupancyGrid(labels, *SEMANTIC_KITTI, POSE), tmp_path / "labels" / "00", "000000")
    full, coarse = (np.load(tmp_path / "labels" / "00" / f"000000_{scale}.npy") for scale in ("1_1", "1_8"))
    assert full.dtype == np.float32 and np.array_equal(full, labels.numpy())
    assert coarse.shape == (32, 32, 4) and coarse.dtype == np.uint8 and coarse[0, 0, 0] == 13 == coarse.sum()


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["000000", "000005"])
def test_the_real_files_are_the_old_release(real_data, name):
    folder = real_data / "semantickitti" / "sequences" / "00"
    assert sk.detect_release(folder / "voxels" / f"{name}.bin", folder / "velodyne" / f"{name}.bin") == sk.RELEASES[1]
    voxels = sk.read_semantic_kitti_voxels(folder / "voxels" / f"{name}.bin", release="detect")
    with np.load(real_data / "semantickitti" / "derived" / f"00_{name}_partial.npz") as derived:
        for key, bits in (("input", voxels.scan), ("invalid", voxels.invalid), ("occluded", voxels.occluded)):
            assert np.array_equal(np.packbits(bits.numpy()), derived[f"{key}_fixed"])
        occupied = torch.from_numpy(derived["label"] > 0)
    unshifted = sk.read_voxel_bits(folder / "voxels" / f"{name}.invalid")
    assert not bool((occupied & voxels.invalid).any()) and int((occupied & unshifted).sum()) > 6000
    semantic, instance = sk.read_point_labels(folder / "labels" / f"{name}.label")
    assert len(semantic) == (folder / "velodyne" / f"{name}.bin").stat().st_size // 16
    classes = sk.classes_of_raw(semantic)
    road = SEMANTIC_KITTI.taxonomy.id_of("road")
    assert 0.1 < (classes == road).mean() < 0.5 and instance.max() > 0


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["000000", "000005"])
def test_voxels_of_the_real_scan_are_the_repaired_file(real_data, name):
    folder = real_data / "semantickitti" / "sequences" / "00"
    raw, _ = sk.read_point_labels(folder / "labels" / f"{name}.label")
    own = sk.voxelize_scan(read_scan(folder / "velodyne" / f"{name}.bin"), raw)
    stored = sk.read_voxel_bits(folder / "voxels" / f"{name}.bin", release="detect").numpy()
    assert (own & stored).sum() / (own | stored).sum() > 0.999
    for mask in ("invalid", "occluded"):
        assert sk.release_of_mask(folder / "voxels" / f"{name}.{mask}") == sk.RELEASES[1]


@pytest.mark.real_data
def test_where_the_labels_of_the_real_sequence_lie(real_data):
    root = real_data / "semantickitti"
    frame = read_sequence(root / "sequences" / "00")[1]
    path = occupancy_path(root, frame, "semantic_kitti")
    assert path == root / "sequences" / "00" / "voxels" / "000005.label"
    assert path.with_suffix(".invalid").is_file() and frame.extras["point_labels"].is_file()
