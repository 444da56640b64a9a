import math
from pathlib import Path

import pytest
import torch

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.data.frames import Boxes, Frame, ordered_cameras
from syntheocc.occupancy.data.locate import ImageLocator


def a_box(yaw=0.0, center=(10.0, 2.0, 1.0), size=(4.0, 2.0, 1.0), name="car"):
    box2ego = torch.eye(4, dtype=torch.float64)
    box2ego[:2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    box2ego[:3, 3] = torch.tensor(center)
    return Boxes(box2ego[None], torch.tensor([size]), (name,))


def test_contains_knows_length_from_width():
    points = torch.tensor(
        [[12.0, 3.0, 1.5], [12.01, 2.0, 1.0], [10.0, 3.01, 1.0], [10.0, 2.0, 1.51], [10.0, 2.0, 1.0]]
    )
    assert a_box().contains(points).tolist() == [[True, False, False, False, True]]
    # A quarter turn: length now runs along y.
    turned = a_box(yaw=math.pi / 2)
    along_y = torch.tensor([[10.0, 3.9, 1.0], [11.9, 2.0, 1.0]])
    assert turned.contains(along_y).tolist() == [[True, False]]
    assert a_box().contains(torch.tensor([[12.05, 2.0, 1.0]]), margin=0.1).item()


def test_contains_agrees_with_the_definition():
    generator = torch.Generator().manual_seed(0)
    box = a_box(yaw=0.7)
    points = torch.rand(5000, 3, generator=generator, dtype=torch.float64) * 8 + torch.tensor([6.0, -2.0, -3.0])
    local = (torch.cat([points, torch.ones(5000, 1)], 1) @ torch.linalg.inv(box.box2ego[0]).T)[:, :3]
    expected = (local.abs() <= box.sizes[0] / 2).all(1)
    assert 50 < int(expected.sum()) and torch.equal(box.contains(points)[0], expected)


def test_corners_yaw_and_filter():
    boxes = Boxes(
        torch.cat([a_box().box2ego, a_box(yaw=0.5).box2ego]),
        torch.tensor([[4.0, 2.0, 1.0], [1.0, 1.0, 1.0]]),
        ("car", "barrier"),
        instance_tokens=("a", "b"),
    )
    assert boxes.corners()[0, 0].tolist() == [8.0, 1.0, 0.5] and boxes.corners()[0, 7].tolist() == [12.0, 3.0, 1.5]
    assert boxes.yaws.tolist() == pytest.approx([0.0, 0.5])
    assert boxes.velocities.isnan().all() and boxes.num_lidar_points.tolist() == [-1, -1]
    for keep in (lambda name: name == "barrier", torch.tensor([False, True]), [1]):
        kept = boxes.filter(keep)
        assert kept.names == ("barrier",) and kept.instance_tokens == ("b",) and kept.sizes[0, 0] == 1
    assert len(boxes.filter([])) == 0 and boxes.filter([]).contains(torch.zeros(3, 3)).shape == (0, 3)


def test_bad_boxes_are_refused():
    with pytest.raises(ValueError, match="2 names but 1 box2ego"):
        Boxes(torch.eye(4)[None], torch.ones(1, 3), ("car", "bus"))
    with pytest.raises(ValueError, match=r"box 0 \(car\) has size"):
        a_box(size=(4.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"box 0 \(car\) has a pose that is not rigid"):
        Boxes(2 * torch.eye(4)[None], torch.ones(1, 3), ("car",))
    with pytest.raises(ValueError, match="not rigid"):
        a_box(center=(math.nan, 0.0, 0.0))


def test_files_are_asked_for_only_when_wanted(make_frame):
    frame = make_frame()
    frame.check_files()
    assert frame.missing_files() == []
    frame.image_paths["CAM_BACK"].unlink()
    frame.lidar_path.unlink()
    assert frame.missing_files() == [frame.image_paths["CAM_BACK"], frame.lidar_path]
    with pytest.raises(ValueError, match="sample0: CAM_BACK car__CAM_BACK__1.jpg was not found .*; lidar .*data root"):
        frame.check_files()
    frame.check_files(images=False, lidar=False)
    two = frame.select_cameras(["CAM_FRONT", "CAM_FRONT_LEFT"])
    assert two.cameras.names == ("CAM_FRONT", "CAM_FRONT_LEFT") == tuple(two.image_paths)


def test_frames_are_validated(six_cameras):
    rig = six_cameras.select(["CAM_FRONT", "CAM_BACK"])
    with pytest.raises(ValueError, match="pictures of .*CAM_LEFT"):
        Frame("t", "", 0, rig, {"CAM_LEFT": Path("x.jpg")})
    with pytest.raises(ValueError, match="lidar2ego of sample t"):
        Frame("t", "", 0, rig, lidar2ego=torch.zeros(4, 4))
    with pytest.raises(ValueError, match="CAM_FRONT has no picture; CAM_BACK has no picture"):
        Frame("t", "", 0, rig).check_files()
    lidar2ego = torch.eye(4)
    lidar2ego[:3, 3] = torch.tensor([0.9, 0.0, 1.8])
    assert Frame("t", "", 0, rig, lidar2ego=lidar2ego).lidar_origin.tolist() == pytest.approx([0.9, 0.0, 1.8])


@pytest.mark.parametrize("name", ["../../etc/x", "/etc/x", "..", "a\\b", "a\0b"])
def test_names_that_lead_out_of_a_folder_are_refused(six_cameras, name):
    with pytest.raises(ValueError, match="the token .* is no plain name"):
        Frame(name, "scene", 0, six_cameras)
    with pytest.raises(ValueError, match="the scene .* is no plain name"):
        Frame("token", name, 0, six_cameras)
    with pytest.raises(ValueError, match="the camera .* is no plain name"):
        Frame("token", "scene", 0, CameraRig({name: six_cameras["CAM_FRONT"]}))


def test_camera_order():
    given = ["CAM_BACK", "SIDE", "CAM_FRONT", "CAM_FRONT_LEFT"]
    assert ordered_cameras(given) == ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_BACK", "SIDE"]


@pytest.mark.parametrize(
    "given",
    [
        "car__CAM_BACK__1.jpg",
        "samples/CAM_BACK/car__CAM_BACK__1.jpg",
        "./data/nuscenes/samples/CAM_BACK/car__CAM_BACK__1.jpg",
        "/mnt/disk7/samples/old/samples/CAM_BACK/car__CAM_BACK__1.jpg",
        "..\\data\\samples\\CAM_BACK\\car__CAM_BACK__1.jpg",
    ],
)
def test_the_search_rule_finds_foreign_paths(data_root, given):
    found, searched = ImageLocator(data_root)(given, "CAM_BACK")
    assert found == data_root / "samples" / "CAM_BACK" / "car__CAM_BACK__1.jpg" and searched == []


def test_the_search_rule_says_where_it_looked(data_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    locate = ImageLocator(data_root)
    found, searched = locate("data/samples/CAM_BACK/no.jpg", "CAM_BACK")
    assert found == data_root / "samples/CAM_BACK/no.jpg"
    assert searched == [Path("data/samples/CAM_BACK/no.jpg"), data_root / "data/samples/CAM_BACK/no.jpg", found]
    sweep, _ = locate("sweeps/LIDAR_TOP/no.pcd.bin", "LIDAR_TOP")
    assert sweep == data_root / "sweeps/LIDAR_TOP/no.pcd.bin", (
        "messages named a file below samples/, which none asked for"
    )
    # After one success by another rule, a later file in the working directory is still found.
    locate("car__CAM_BACK__1.jpg", "CAM_BACK")
    (tmp_path / "here.jpg").touch()
    assert locate("here.jpg", "CAM_BACK") == (Path("here.jpg"), [])
    assert ImageLocator(None)("no.jpg", "CAM_BACK") == (Path("no.jpg"), [Path("no.jpg")])
    with pytest.raises(ValueError, match="data root .*nowhere is not a folder"):
        ImageLocator(tmp_path / "nowhere")
