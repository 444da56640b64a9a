"""Predictions as the published scripts keep them: pickles of one and two views, and the .npz that is written here."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from syntheocc.occupancy.data import kitti
from syntheocc.occupancy.data.completion_files import read_completion_file, write_completion_file
from syntheocc.occupancy.data.nyuv2 import nyuv2_camera
from syntheocc.occupancy.grids import NYUV2, OCC3D_NUSCENES, SEMANTIC_KITTI, OccupancyGrid
from syntheocc.worlds.kitti_tree import nominal_calibration

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "examples"))
import draw_completion  # noqa: E402

RIG = kitti.stereo_rig(nominal_calibration((370, 1220)), (370, 1220))


def street(marks):
    labels = torch.zeros(SEMANTIC_KITTI.spec.shape, dtype=torch.uint8)
    labels[10:60, 100:150, 1] = 9
    for place, label in marks.items():
        labels[place] = label
    return OccupancyGrid(labels, *SEMANTIC_KITTI, torch.eye(4))


PREDICTION, TRUTH = street({(40, 128, 5): 1}), street({(41, 128, 5): 1, (250, 0, 0): 255})


def published(views=2):
    """What generate_output.py pickles for a frame of KITTI."""
    cameras = list(RIG.values())[:views]
    seen = np.zeros((views, 256 * 256 * 32, 1), bool)
    seen[:, (40 * 256 + 128) * 32 + 5] = True
    values = {
        "y_pred": PREDICTION.labels.numpy().astype(np.uint16),
        "target": TRUTH.labels.numpy().astype(np.uint16),
        "fov_mask_1": seen,
        "cam_k": np.stack([camera.intrinsics.numpy() for camera in cameras]),
        "T_velo_2_cam": np.stack([camera.ego2cam.numpy() for camera in cameras]),
    }
    if views == 1:  # MonoScene's: without the axis of the views
        values = {k: v[0] if k in ("fov_mask_1", "cam_k", "T_velo_2_cam") else v for k, v in values.items()}
    return values


@pytest.mark.parametrize("views", [1, 2])
def test_pickles_of_one_and_two_views(tmp_path, views):
    (tmp_path / "000000.pkl").write_bytes(pickle.dumps(published(views)))
    found = read_completion_file(tmp_path / "000000.pkl")
    assert torch.equal(found.prediction.labels, PREDICTION.labels) and torch.equal(found.truth.labels, TRUTH.labels)
    assert found.cameras.names == ("left", "right")[:views]
    for camera, wanted in zip(found.cameras.values(), RIG.values(), strict=False):
        assert torch.allclose(camera.cam2ego, wanted.cam2ego) and torch.equal(camera.intrinsics, wanted.intrinsics)
    assert found.in_view.sum() == 1 and found.in_view[40, 128, 5]


def test_what_is_written_reads_alike(tmp_path):
    path = tmp_path / "output" / "kitti" / "08" / "000000.npz"
    write_completion_file(path, PREDICTION, RIG, TRUTH)
    with np.load(path) as arrays:
        assert set(arrays.files) == set(published())
        assert arrays["y_pred"].dtype == np.uint16 and arrays["fov_mask_1"].shape == (2, 256 * 256 * 32, 1)
        # As many as the published projection finds in view, on a calibration that is a little different.
        assert arrays["fov_mask_1"][0].sum() == pytest.approx(1413743, rel=0.02)
    found = read_completion_file(path)
    assert torch.equal(found.prediction.labels, PREDICTION.labels) and torch.equal(found.truth.labels, TRUTH.labels)
    assert torch.allclose(found.cameras["right"].cam2ego, RIG["image_3"].cam2ego)


def test_rooms_are_kept_with_up_in_the_middle(tmp_path):
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = torch.tensor([-1.0, 0.5, 2.0])
    labels = torch.zeros(NYUV2.spec.shape, dtype=torch.uint8)
    labels[3, 4, 5] = 7
    room = OccupancyGrid(labels, *NYUV2, pose)
    camera = nyuv2_camera(torch.eye(4))
    write_completion_file(tmp_path / "NYU0001_0000.npz", room, type(RIG)({"camera": camera}), room)
    with np.load(tmp_path / "NYU0001_0000.npz") as arrays:
        assert set(arrays.files) == {"y_pred", "target", "cam_pose", "vox_origin"}
        assert arrays["y_pred"].shape == (60, 36, 60) and arrays["y_pred"][3, 5, 4] == 7
        assert arrays["vox_origin"].tolist() == [-1.0, 0.5, 2.0]
    found = read_completion_file(tmp_path / "NYU0001_0000.npz", "nyuv2")
    assert torch.equal(found.prediction.labels, labels) and torch.equal(found.prediction.grid2ego, pose)


class Trap:
    def __reduce__(self):
        return print, ("run",)


def test_what_is_no_such_file_is_refused(tmp_path, capsys):
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps({"y_pred": Trap()}))
    with pytest.raises(ValueError, match="trap.pkl"):
        read_completion_file(tmp_path / "trap.pkl")
    assert "run" not in capsys.readouterr().out
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"target": np.zeros(3)}))
    with pytest.raises(ValueError, match="other.pkl: holds no prediction"):
        read_completion_file(tmp_path / "other.pkl")
    values = published()
    del values["cam_k"]
    (tmp_path / "less.pkl").write_bytes(pickle.dumps(values))
    with pytest.raises(ValueError, match="less.pkl: lacks cam_k"):
        read_completion_file(tmp_path / "less.pkl")
    with pytest.raises(ValueError, match="no data set 'kitti'"):
        read_completion_file(tmp_path / "less.pkl", "kitti")
    grid = OccupancyGrid(torch.zeros(200, 200, 16, dtype=torch.uint8), *OCC3D_NUSCENES)
    with pytest.raises(ValueError, match="an .npz of semantic_kitti, nyuv2 or tartanair, got 'occ3d'"):
        write_completion_file(tmp_path / "a.npz", grid, RIG)


def test_the_example_draws_frames_and_drives(tmp_path, capsys):
    for views in (1, 2):
        (tmp_path / "drive").mkdir(exist_ok=True)
        alone = {name: value for name, value in published(views).items() if name != "target"}
        (tmp_path / "drive" / f"00000{views}.pkl").write_bytes(pickle.dumps(alone))
        Image.fromarray(np.full((37, 122, 3), 90, np.uint8)).save(tmp_path / f"00000{views}.png")
    arguments = [str(tmp_path / "drive" / "000002.pkl"), "--width", "480", "--ply", str(tmp_path / "surface.ply")]
    pictures = ["--images", str(tmp_path / "000002.png"), "--output", str(tmp_path / "sheet.png")]
    assert draw_completion.main([*arguments, *pictures]) == tmp_path / "sheet.png"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] == 480
    assert (tmp_path / "surface.ply").read_bytes().startswith(b"ply")
    drive = [str(tmp_path / "drive"), "--width", "240", "--no-mesh", "--images", str(tmp_path)]
    assert draw_completion.main([*drive, "--output", str(tmp_path / "drive.webp")]) == tmp_path / "drive.webp"
    with Image.open(tmp_path / "drive.webp") as animation:
        assert animation.n_frames == 2
