"""Classes of lidar points: the files, the table of raw ids, and what is missing or damaged."""

import numpy as np
import pytest
import torch

from syntheocc.engine.files import atomic_write_json
from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.lidar import write_lidar
from syntheocc.occupancy.data.lidarseg import (
    LIDARSEG_NAMES,
    NOISE_AND_EGO,
    LidarReader,
    lidarseg_names,
    lidarseg_table,
    read_lidarseg,
    read_panoptic,
)
from syntheocc.occupancy.data.nuscenes import NuScenesTables
from syntheocc.occupancy.taxonomy import OCC3D_TAXONOMY, SYNTHEOCC_TAXONOMY

RAW = np.array([17, 17, 24, 5, 0, 31, 30], np.uint8)


@pytest.fixture
def root(tmp_path):
    """A sweep of seven points with both label files, of the mini split."""
    points = np.arange(35, dtype=np.float32).reshape(7, 5)
    write_lidar(points, tmp_path / "samples/LIDAR_TOP/a.pcd.bin")
    for kind in ("lidarseg", "panoptic"):
        (tmp_path / kind / "v1.0-mini").mkdir(parents=True)
    RAW.tofile(tmp_path / "lidarseg/v1.0-mini/tok_lidarseg.bin")
    instance = np.array([1, 999, 0, 3, 0, 0, 0])
    np.savez(
        tmp_path / "panoptic/v1.0-mini/tok_panoptic.npz", data=(RAW.astype(int) * 1000 + instance).astype(np.uint16)
    )
    return tmp_path


def frame_of(root, camera_at, **changes):
    values = {
        "token": "s",
        "scene": "scene-0001",
        "timestamp_us": 10**15,
        "cameras": CameraRig({"CAM_FRONT": camera_at(0)}),
        "lidar_path": root / "samples/LIDAR_TOP/a.pcd.bin",
        "extras": {"lidar_token": "tok", "style": "bevdet"},
    }
    return Frame(**(values | changes))


def test_the_published_table():
    """Section 1.2: raw id -> class."""
    table = lidarseg_table()
    of = {name: OCC3D_TAXONOMY.classes[table[i]] for i, name in enumerate(LIDARSEG_NAMES)}
    assert of["vehicle.car"] == "car" and of["vehicle.bus.bendy"] == of["vehicle.bus.rigid"] == "bus"
    assert of["human.pedestrian.police_officer"] == "pedestrian" and of["vehicle.trailer"] == "trailer"
    assert of["human.pedestrian.stroller"] == of["static.other"] == of["vehicle.ego"] == of["noise"] == "others"
    assert of["flat.driveable_surface"] == "driveable_surface" and of["movable_object.trafficcone"] == "traffic_cone"
    assert table[:32].tolist() == [
        0, 0, 7, 7, 7, 0, 7, 0, 0, 1, 0, 0, 8, 0, 2, 3, 3, 4, 5, 0, 0, 6, 9, 10, 11, 12, 13, 14, 15, 0, 16, 0
    ]  # fmt: skip
    assert (table[32:] == 255).all()


def test_the_choices():
    assert lidarseg_table("pedestrian")[5] == 7 and lidarseg_table("others")[5] == 0
    dropped = lidarseg_table(drop_raw_ids=NOISE_AND_EGO)
    assert dropped[0] == dropped[31] == 255 and dropped[29] == 0
    other = lidarseg_table(taxonomy=SYNTHEOCC_TAXONOMY)
    assert SYNTHEOCC_TAXONOMY.classes[other[17]] == "car" and other[0] == 255
    turned = lidarseg_table(names=LIDARSEG_NAMES[::-1])
    assert turned[31 - 17] == OCC3D_TAXONOMY.id_of("car")
    with pytest.raises(ValueError, match="personal_mobility"):
        lidarseg_table("scooter")
    with pytest.raises(ValueError, match=r"\[32\]"):
        lidarseg_table(drop_raw_ids=[32])
    with pytest.raises(ValueError, match="vehicle.tank"):
        lidarseg_table(names=("noise", "vehicle.tank"))


def test_names_from_the_categories(tmp_path):
    rows = [{"token": f"t{i}", "name": name, "index": i} for i, name in enumerate(LIDARSEG_NAMES)]
    atomic_write_json(tmp_path / "category.json", rows[::-1])
    assert lidarseg_names(NuScenesTables(tmp_path, tmp_path)) == LIDARSEG_NAMES
    atomic_write_json(tmp_path / "category.json", rows[1:])
    with pytest.raises(ValueError, match="0, 1, 2"):
        lidarseg_names(NuScenesTables(tmp_path, tmp_path))
    atomic_write_json(tmp_path / "category.json", [{"token": "t", "name": "noise"}])
    with pytest.raises(ValueError, match="index"):
        lidarseg_names(NuScenesTables(tmp_path, tmp_path))


def test_the_files(root):
    assert read_lidarseg(root / "lidarseg/v1.0-mini/tok_lidarseg.bin").tolist() == RAW.tolist()
    raw, instance = read_panoptic(root / "panoptic/v1.0-mini/tok_panoptic.npz", 7)
    assert raw.tolist() == RAW.tolist() and instance.tolist() == [1, 999, 0, 3, 0, 0, 0]


@pytest.mark.parametrize("kind", ["lidarseg", "panoptic"])
def test_points_with_classes(root, camera_at, kind):
    points, labels = LidarReader(root, kind)(frame_of(root, camera_at))
    assert points.dtype == torch.float32 and tuple(points.shape) == (7, 3) and points.is_contiguous()
    assert points[1].tolist() == [5, 6, 7]
    assert labels.tolist() == [4, 4, 11, 0, 255, 255, 16]
    published = LidarReader(root, kind, "v1.0-mini", "pedestrian", ())(frame_of(root, camera_at)).labels
    assert published.tolist() == [4, 4, 11, 7, 0, 0, 16]


def test_what_is_missing(root, camera_at):
    assert LidarReader(root)(frame_of(root, camera_at, lidar_path=None)) is None
    with pytest.raises(ValueError, match="sweep's token"):
        LidarReader(root)(frame_of(root, camera_at, extras={"style": "mmdet3d_v1.1"}))
    gone = frame_of(root, camera_at, extras={"lidar_token": "other"})
    with pytest.raises(ValueError, match="v1.0-mini/other_lidarseg.bin"):
        LidarReader(root)(gone)
    with pytest.raises(ValueError, match="v1.0-trainval/tok_panoptic.npz"):
        LidarReader(root, "panoptic", "v1.0-trainval")(frame_of(root, camera_at))
    assert LidarReader(root, allow_missing_files=True)(gone) is None
    sweep = frame_of(root, camera_at, lidar_path=root / "none.bin")
    assert LidarReader(root, allow_missing_files=True)(sweep) is None
    with pytest.raises(ValueError, match="none.bin"):
        LidarReader(root)(sweep)
    with pytest.raises(ValueError, match="'depth'"):
        LidarReader(root, "depth")


def test_what_is_damaged(root, camera_at):
    path = root / "lidarseg/v1.0-mini/tok_lidarseg.bin"
    RAW[:5].tofile(path)
    with pytest.raises(ValueError, match="5 points, but the sweep has 7"):
        LidarReader(root)(frame_of(root, camera_at))
    np.full(7, 32, np.uint8).tofile(path)
    with pytest.raises(ValueError, match="raw id 32"):
        LidarReader(root)(frame_of(root, camera_at))
    for data in (np.zeros(7), np.full(7, -1), np.zeros((7, 1), np.int64), np.full(7, 256_000)):
        np.savez(root / "panoptic/v1.0-mini/tok_panoptic.npz", data=data)
        with pytest.raises(ValueError, match="raw id \\* 1000"):
            LidarReader(root, "panoptic")(frame_of(root, camera_at))
