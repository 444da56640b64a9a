import os

import numpy as np
import pytest
import torch
from PIL import Image

from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy import OCC3D_NUSCENES, SURROUNDOCC, Camera, CameraRig, OccupancyGrid, Preset
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.occ3d import Occ3DLabels, write_occ3d
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.labels import LabelReader
from syntheocc.occupancy.perception.prediction_pictures import FOLDER, draw_predictions
from syntheocc.occupancy.pictures import instance_color

TAXONOMY = OCC3D_NUSCENES.taxonomy
CAR, ROAD = TAXONOMY.id_of("car"), TAXONOMY.id_of("driveable_surface")
SMALL = Preset(GridSpec((-8.0, -8.0, -1.0), (0.4, 0.4, 0.4), (40, 40, 8)), TAXONOMY)
FORWARD = torch.tensor([[0.0, 0, 1, 1], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]], dtype=torch.float64)


def street(spec, car_at=20):
    labels = np.full(spec.shape, TAXONOMY.free, np.uint8)
    labels[:, :, 1] = ROAD
    instances = np.zeros(spec.shape, np.int32)
    labels[car_at : car_at + 10, 25:30, 2:6] = CAR
    instances[car_at : car_at + 10, 25:30, 2:6] = 1
    return labels, instances


@pytest.fixture
def frames(tmp_path):
    """Two frames of a scene with a name, two of one that only their order tells; two cameras, one photograph lost."""
    Image.fromarray(np.full((54, 96, 3), 90, np.uint8)).save(tmp_path / "photo.jpg")
    rig = CameraRig(
        {
            name: Camera([[60, 0, 48], [0, 60, 27], [0, 0, 1]], FORWARD, height=54, width=96)
            for name in ("CAM_FRONT", "CAM_BACK")
        }
    )

    def frame(token, scene, time, prev=None):
        pose = torch.eye(4, dtype=torch.float64)
        paths = {"CAM_FRONT": tmp_path / "photo.jpg"}
        return Frame(token, scene, time, rig, paths, lidar2ego=pose, ego2global=pose, prev=prev)

    return [frame("d", "", 40, prev="c"), frame("a", "one", 10), frame("b", "one", 20), frame("c", "", 30)]


def write(folder, frames, spec=SMALL.spec, panoptic=True):
    folder.mkdir(exist_ok=True)
    for i, frame in enumerate(frames):
        labels, instances = street(spec, 20 + i)
        arrays = {"pred": labels} | ({"instances": instances * (i + 3)} if panoptic else {})
        np.savez(folder / f"{frame.token}.npz", **arrays)


def names(folder):
    return sorted(path.name for path in (folder / FOLDER).iterdir())


def test_every_prediction_and_every_scene_is_drawn_once(frames, tmp_path):
    out = tmp_path / "out"
    write(out, frames)
    assert draw_predictions(out, frames, SMALL) == {}
    kinds = ("3d", "bev", "cameras", "panoptic")
    assert names(out) == sorted([f"{t}_{k}.png" for t in "abcd" for k in kinds] + ["one.webp", "scene_c.webp"])
    with Image.open(out / FOLDER / "scene_c.webp") as animation:
        assert animation.n_frames == 2
    with Image.open(out / FOLDER / "a_bev.png") as picture:
        assert picture.width == 800
    with Image.open(out / FOLDER / "a_cameras.png") as picture:
        assert picture.size == (2 * 640 + 4, 360)
    # Every frame numbers the car anew; it keeps its colour.
    for token in "abcd":
        with Image.open(out / FOLDER / f"{token}_panoptic.png") as picture:
            away = np.abs(np.asarray(picture).astype(int) - instance_color(1)).max(-1)
            assert (away < 6).sum() > 50
    stamps = {path: path.stat().st_mtime_ns for path in (out / FOLDER).iterdir()}
    assert draw_predictions(out, frames, SMALL) == {}
    assert {path: path.stat().st_mtime_ns for path in (out / FOLDER).iterdir()} == stamps

    # A prediction made anew is drawn anew, and its scene's animation.
    later = max(stamps.values()) + 10**9
    os.utime(out / "b.npz", ns=(later, later))
    draw_predictions(out, frames, SMALL)
    changed = {path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {f"b_{kind}.png" for kind in kinds} | {"one.webp"}


def test_with_a_label_the_errors_are_drawn(frames, tmp_path):
    out, gts = tmp_path / "out", tmp_path / "gts"
    write(out, frames[:2], OCC3D_NUSCENES.spec, panoptic=False)
    labels, _ = street(OCC3D_NUSCENES.spec)
    write_occ3d(Occ3DLabels(OccupancyGrid(labels, *OCC3D_NUSCENES)), gts / "one" / "a" / "labels.npz")
    assert draw_predictions(out, frames[:2], OCC3D_NUSCENES, LabelReader(gts)) == {}
    assert names(out) == sorted(
        [f"{t}_{k}.png" for t in "ad" for k in ("3d", "bev", "cameras")] + ["a_comparison.png"]
    )
    assert draw_predictions(out, frames[:2], OCC3D_NUSCENES, LabelReader(gts, "surroundocc")) == {}


def test_a_damaged_file_is_named_and_the_rest_is_drawn(frames, tmp_path):
    out = tmp_path / "out"
    write(out, frames[1:3], panoptic=False)
    (out / "a.npz").write_bytes(b"no archive")
    bad = draw_predictions(out, frames, SMALL)
    assert list(bad) == ["a"] and "a.npz" in bad["a"]
    assert names(out) == ["b_3d.png", "b_bev.png", "b_cameras.png"]


def test_a_damaged_label_costs_the_comparison_alone(frames, tmp_path):
    out, gts, frames = tmp_path / "out", tmp_path / "gts", frames[1:3]
    write(out, frames, OCC3D_NUSCENES.spec, panoptic=False)
    path = gts / "one" / "a" / "labels.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no archive")
    bad = draw_predictions(out, frames, OCC3D_NUSCENES, LabelReader(gts))
    assert list(bad) == ["a"] and "labels.npz" in bad["a"]
    assert names(out) == sorted([f"{t}_{k}.png" for t in "ab" for k in ("3d", "bev", "cameras")] + ["one.webp"])
    with Image.open(out / FOLDER / "one.webp") as animation:
        assert animation.n_frames == 2


def test_a_camera_whose_picture_is_not_there_is_drawn_without_it(frames, tmp_path):
    out = tmp_path / "out"
    write(out, frames[1:2], panoptic=False)
    (tmp_path / "photo.jpg").unlink()
    assert draw_predictions(out, frames[1:2], SMALL) == {}
    assert names(out) == ["a_3d.png", "a_bev.png", "a_cameras.png"]


def test_processes_share_the_scenes_and_lidar_grids_are_placed_by_their_pose(frames, tmp_path):
    out = tmp_path / "out"
    lidar = Preset(GridSpec(SMALL.spec.lower, SMALL.spec.voxel_size, SMALL.spec.shape, "lidar"), TAXONOMY)
    assert SURROUNDOCC.spec.frame == lidar.spec.frame
    write(out, frames, panoptic=False)
    draw_predictions(out, frames, lidar, ranks=Ranks(0, 2))
    first = set(names(out))
    assert "one.webp" in first and "scene_c.webp" not in first
    draw_predictions(out, frames, lidar, ranks=Ranks(1, 2))
    assert set(names(out)) - first == {f"{t}_{k}.png" for t in "cd" for k in ("3d", "bev", "cameras")} | {
        "scene_c.webp"
    }
