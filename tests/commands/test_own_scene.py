"""`generate --rig --occupancy`: a user's own cameras and grids, from the command line to the pictures."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from syntheocc.commands import exit_status, main
from syntheocc.commands.generate import GenerateConfig, InferConfig, run
from syntheocc.engine.files import read_json
from syntheocc.engine.flags import parse_flags
from syntheocc.occupancy import OCC3D_NUSCENES, GridSpec, OccupancyGrid, taxonomy_named
from syntheocc.occupancy.data.grid_files import write_grid_file
from syntheocc.occupancy.data.occ3d import Occ3DLabels, write_occ3d

SMALL = {"width": 96, "height": 64, "num_inference_steps": 1, "cfg_scale": 1.0}
EYE = {"model": "fisheye", "width": 64, "height": 48, "fov_deg": 180, "position": [1.0, 0.5, 1.0], "yaw_deg": 90}


@pytest.fixture
def rig(tmp_path):
    path = tmp_path / "rig.yaml"
    front = {"width": 80, "height": 60, "fov_deg": 70, "position": [1.5, 0, 1.5], "yaw_deg": 0}
    path.write_text(yaml.safe_dump({"cameras": {"FRONT": front, "LEFT": EYE}}, sort_keys=False))
    return path


@pytest.fixture
def grid(tmp_path):
    """A hall of another size than any data set's: a floor, and a wall 10 m ahead."""
    labels = np.zeros((60, 40, 20), dtype=np.uint8)
    labels[:, :, 0], labels[50:52] = 11, 15
    spec = GridSpec((0.0, -4.0, -0.2), 0.2, labels.shape)
    write_grid_file(OccupancyGrid(labels, spec, taxonomy_named("syntheocc")), tmp_path / "hall.npz")
    return tmp_path / "hall.npz"


def job(model, save, **more):
    return GenerateConfig(model_path_infer=str(model), save_img_path=save, **SMALL, **more)


def test_from_a_grid_and_two_cameras_to_pictures(rig, grid, tiny_model, tmp_path, capsys):
    save = tmp_path / "out"
    assert exit_status(run, job(tiny_model, save, rig=rig, occupancy=(str(grid),))) == 0
    assert "wrote the views of 1 sample" in capsys.readouterr().out
    assert Image.open(save / "FRONT" / "hall.jpg").size == (80, 60)
    assert Image.open(save / "LEFT" / "hall.jpg").size == (64, 48)
    assert (save / "strips" / "hall_3d.jpg").is_file()
    labels = read_json(save / "labels" / "hall.json")
    assert labels["cameras"]["LEFT"]["model"] == "fisheye" and labels["boxes"] is None
    strip = np.asarray(Image.open(save / "strips" / "hall.jpg").convert("RGB")).astype(int)
    assert strip.shape[0] == 2 * 64 + 4  # condition and generated: there is no real row
    wall = taxonomy_named("syntheocc").colors()[15].astype(int)
    assert np.abs(strip[20:40, 40:56] - wall).mean() < 30  # what the front camera's condition shows in its middle
    # The same command goes on, another rig is another folder's work.
    assert exit_status(run, job(tiny_model, save, rig=rig, occupancy=(str(grid),))) == 0
    assert "1 were there already" in capsys.readouterr().out
    other = rig.with_name("other.yaml")
    other.write_text(rig.read_text())
    assert exit_status(run, job(tiny_model, save, rig=other, occupancy=(str(grid),))) == 2
    assert "holds results of other settings" in capsys.readouterr().err


def test_grids_in_a_data_sets_format(rig, tiny_model, tmp_path):
    for token in ("a", "b"):
        (tmp_path / token).mkdir()
        labels = torch.full(OCC3D_NUSCENES.spec.shape, 17, dtype=torch.uint8)
        labels[:, :, 0] = 11
        write_occ3d(Occ3DLabels(OccupancyGrid(labels, *OCC3D_NUSCENES)), tmp_path / token / "labels.npz")
    files = tuple(str(tmp_path / token / "labels.npz") for token in ("a", "b"))
    save = tmp_path / "out"
    assert exit_status(run, job(tiny_model, save, rig=rig, occupancy=files, occ_kind="occ3d")) == 0
    assert sorted(path.name for path in (save / "FRONT").iterdir()) == ["a.jpg", "b.jpg"]


def test_own_cameras_on_a_data_sets_car(rig, tiny_dataset, tiny_model, tmp_path):
    save = tmp_path / "out"
    given = {"dataroot_path": tiny_dataset.root, "info_path": (str(tiny_dataset.info),), "max_samples": 1}
    assert exit_status(run, job(tiny_model, save, rig=rig, occ_kind="syntheocc_coarse", **given)) == 0
    assert (save / "FRONT" / "token0.jpg").is_file() and (save / "LEFT" / "token0.jpg").is_file()
    record = read_json(save / "records" / "token0.json")
    assert record["scene"] == "scene-0001" and list(record["views"]) == ["FRONT", "LEFT"]


def test_the_published_program_takes_the_flags(rig, grid):
    config = parse_flags(InferConfig, [f"--rig={rig}", f"--occupancy={grid}"], environ={})
    assert config.rig == rig and config.occupancy == (str(grid),)
    assert config.settings()["rig"] == str(rig) and "rig" not in GenerateConfig().settings()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"rig": None}, "needs --rig, the cameras that look at it (a file such as examples/rigs/front_only.yaml"),
        ({"occupancy": ()}, "--rig looks at grids, and MPI files are made for other cameras"),
        ({"occupancy": ("gone.npz",)}, "gone.npz: no such file or folder"),
        ({"as_dataset": "x"}, "--as_dataset writes a data set of its own cameras"),
        ({"occ_kind": "syntheocc"}, "labels lie in the lidar's frame; write lidar2ego (4x4) into"),
        ({"occ_kind": "lidar"}, "--occ_kind=lidar builds from a data set's sweeps"),
        ({"twice": True}, "would both be called 'hall'; rename one"),
        ({"broken": True}, "rig.yaml, camera FRONT: unknown fov"),
        ({"empty": True}, "hall.npz: cannot be read as numpy data"),
    ],
)
def test_what_is_wrong_is_named(rig, grid, tiny_model, tmp_path, capsys, change, words):
    given = {"rig": rig, "occupancy": (str(grid),)} | change
    if given.pop("twice", False):
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "hall.npz").write_bytes(grid.read_bytes())
        given["occupancy"] += (str(tmp_path / "b" / "hall.npz"),)
    if given.pop("broken", False):
        rig.write_text(rig.read_text().replace("fov_deg", "fov"))
    if given.pop("empty", False):
        grid.write_bytes(b"")

    def make(_):
        return run(job(tiny_model, tmp_path / "out", **given))

    status = exit_status(make, None)
    said = capsys.readouterr()
    assert status in (1, 2) and words in said.out + said.err
    assert not (tmp_path / "out" / "FRONT").exists()


def test_the_command_line(rig, grid, tiny_model, tmp_path):
    flags = ["--width", "96", "--height", "64", "--num-inference-steps", "1", "--cfg-scale", "1"]
    arguments = [
        "generate",
        "--rig",
        str(rig),
        "--occupancy",
        str(grid),
        "--model-path-infer",
        str(tiny_model),
        *flags,
    ]
    assert main([*arguments, "--save-img-path", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "LEFT" / "hall.jpg").is_file()
