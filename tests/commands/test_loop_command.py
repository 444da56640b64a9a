"""``syntheocc loop``: its stages on a small street, its scores against the metrics themselves, what it refuses."""

import json
import multiprocessing
import os
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from syntheocc.commands import exit_status, loop_stages, main
from syntheocc.commands.loop import LoopConfig, loop, run
from syntheocc.commands.loop_sources import data_root_inputs, procedural_inputs
from syntheocc.commands.loop_stages import Perceiver, PredictionEdits, closed, default_perception, on_preset
from syntheocc.commands.samples import SampleConfig
from syntheocc.engine.files import read_json, read_npz
from syntheocc.occupancy import NYUV2, OCC3D_NUSCENES, SYNTHEOCC, GridSpec, OccupancyGrid
from syntheocc.occupancy.data.nuscenes_frames import read_nuscenes
from syntheocc.occupancy.data.occ3d import read_occ3d
from syntheocc.occupancy.grids import Preset
from syntheocc.occupancy.metrics import OccupancyIoU
from syntheocc.occupancy.perception.sparseocc import SparseOcc


@pytest.fixture(scope="session")
def perception(tmp_path_factory):
    """A small SparseOcc of random weights that calls every voxel occupied which it keeps."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("perception")
    SparseOcc.from_preset("tiny", score_threshold=0.0, voxel_threshold=0.0).save_pretrained(folder)
    return folder


@pytest.fixture
def config(street_root, perception, tiny_model, tmp_path):
    def make(**more):
        given = {
            "dataroot": street_root,
            "perception": perception,
            "model": tiny_model,
            "output_dir": tmp_path / "loop",
            "height": 56,
            "width": 96,
            "num_inference_steps": 1,
            "guidance_scale": 1.0,
            "device": "cpu",
        }
        return LoopConfig(**(given | more))

    return make


def label_of(root, frame):
    return root / "gts" / frame.scene / frame.token / "labels.npz"


def test_a_scene_goes_round(config, street_root, perception, tmp_path, capsys):
    job = config(scenes=(read_nuscenes(street_root)[0].scene,), max_samples=2)
    assert exit_status(run, job) == 0
    said = capsys.readouterr().out
    assert "prediction / label" in said and "wrote 2 sheets" in said
    out = tmp_path / "loop"
    report = read_json(out / "report.json")
    assert list(report["arrows"]) == ["prediction / label", "read again / asked for", "read again / label",
                                      "views / condition"]  # fmt: skip
    frames = read_nuscenes(street_root)[:2]
    assert list(report["frames"]) == [frame.token for frame in frames] and report["failed"] == {}

    # the figures are the metric's own, on the model's grid
    model = Perceiver(perception)
    grids, bad = model.predict(frames)
    assert not bad
    metric = OccupancyIoU(model.preset.taxonomy, "camera")
    from syntheocc.commands.loop_scores import observed_by

    for frame in frames:
        kept = read_npz(out / "prediction" / f"{frame.token}.npz", ["pred"])["pred"]
        assert (kept == grids[frame.token].labels.numpy()).all()
        label = on_preset(read_occ3d(label_of(street_root, frame)).grid, model.preset)
        metric.update(grids[frame.token].labels, label.labels, observed_by(label, frame))
        # what was generated has the originals' names and sizes, and is what was read again
        for name, path in frame.image_paths.items():
            with Image.open(out / "generated" / name / path.name) as picture:
                assert picture.size == (96, 56)
        with Image.open(out / f"loop_{frame.token}.png") as sheet:
            assert sheet.width == 6 * 96 + 5 * 4 and sheet.height > 3 * 56
    assert report["arrows"]["prediction / label"]["mIoU"] == pytest.approx(metric.compute()["mIoU"])
    generated = [
        replace(f, image_paths={n: out / "generated" / n / p.name for n, p in f.image_paths.items()}) for f in frames
    ]
    again, _ = model.predict(generated)
    for frame in frames:
        kept = read_npz(out / "read_again" / f"{frame.token}.npz", ["pred"])["pred"]
        assert (kept == again[frame.token].labels.numpy()).all()
    # the older image of the second frame was a generated one
    alone, _ = model.predict(generated[1:])
    assert not torch.equal(alone[frames[1].token].labels, again[frames[1].token].labels)


def one_of_two(rank, port, job):
    """A process of torchrun's."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.exit(exit_status(run, job))


def test_two_processes_write_what_one_does(config, street_root, tmp_path, capfd):
    """Frames read history that the other process made; one frame is refused by the process that has it."""
    root = tmp_path / "street"
    shutil.copytree(street_root, root)
    frames = read_nuscenes(root)
    label_of(root, frames[2]).write_bytes(b"none")
    jobs = {}
    for world in (1, 2):
        jobs[world] = config(dataroot=root, output_dir=tmp_path / str(world))
        assert jobs[world].settings() == jobs[1].settings()
    assert run(jobs[1]) == 1
    alone = capfd.readouterr().out
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # everything is imported already
    processes = [context.Process(target=one_of_two, args=(rank, port, jobs[2])) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [1, 1]
    # what is said, is said once
    assert capfd.readouterr().out == alone.replace(str(tmp_path / "1"), str(tmp_path / "2"))
    found = {
        world: {p.relative_to(job.output_dir): p.read_bytes() for p in job.output_dir.rglob("*") if p.is_file()}
        for world, job in jobs.items()
    }
    assert set(found[1]) == set(found[2]) and len(list(jobs[2].output_dir.glob("loop_*.png"))) == 2
    assert [name for name in found[1] if found[1][name] != found[2][name]] == []
    report = read_json(jobs[2].output_dir / "report.json")
    assert list(report["frames"]) == [f.token for f in frames[:2]] and list(report["failed"]) == [frames[2].token]


def test_flags_that_torchrun_leaves_to_the_loop():
    """It refuses a flag that two of its own begin with: `--start` there are `--start-method` and `--start_method`."""
    from torch.distributed.run import get_args_parser

    from syntheocc.commands import with_help

    flags = ["--start-from", "label", "--max-samples", "2", "--no-read-again"]
    given = get_args_parser().parse_args(["-m", "syntheocc.commands", "loop", *flags])
    assert given.training_script_args == ["loop", *flags]
    config = tyro.cli(with_help(LoopConfig), args=flags)
    assert (config.start, config.max_samples, config.read_again) == ("label", 2, False)


def test_from_an_edited_label_without_reading_again(config, street_root, tmp_path):
    frame = read_nuscenes(street_root)[0]
    recipe = tmp_path / "recipe.json"
    label = read_occ3d(label_of(street_root, frame)).grid
    cars = [i for i, name in enumerate(frame.boxes.names) if name == "car"]
    nearest = min(cars, key=lambda i: -int(frame.boxes.num_lidar_points[i]))
    edit = {"edit": "repaint", "object": f"#{nearest}", "to": "bus"}
    recipe.write_text(json.dumps({"version": 1, "edits": [edit]}))
    report = loop(config(tokens=(frame.token,), start="label", read_again=False, perception=None, edit=recipe))
    assert list(report["arrows"]) == ["asked for / label", "views / condition"]
    asked = read_npz(tmp_path / "loop" / "asked_for" / f"{frame.token}.npz", ["pred"])["pred"]
    changed = asked != label.labels.numpy()
    assert changed.any() and (asked[changed] == OCC3D_NUSCENES.taxonomy.id_of("bus")).all()
    assert report["arrows"]["asked for / label"]["mIoU"] < 1


def test_a_label_alone(config, street_root, tmp_path):
    frame = read_nuscenes(street_root)[0]
    report = loop(config(dataroot=None, label=label_of(street_root, frame)))
    assert list(report["arrows"]) == ["read again / asked for", "read again / label", "views / condition"]
    assert (tmp_path / "loop" / f"loop_{frame.token}.png").is_file()


def read_view(one, camera):
    with Image.open(one.frame.image_paths[camera]) as picture:
        return np.asarray(picture)


def test_a_street_made_on_the_way(tmp_path):
    inputs = procedural_inputs(tmp_path, OCC3D_NUSCENES, seed=3, frames=1, size=(48, 32))
    (one,) = inputs
    assert one.label.occupied().any() and not [p for p in one.frame.missing_files() if p.suffix == ".jpg"]
    for path in one.frame.image_paths.values():
        with Image.open(path) as picture:
            assert picture.size == (48, 32)
    assert read_view(one, "CAM_FRONT").std() > 10


class TestRefusals:
    def test_a_frame_of_another_rig(self, config, street_root, tmp_path):
        root = tmp_path / "five"
        shutil.copytree(street_root, root)
        frames = read_nuscenes(root)
        frames[0].image_paths["CAM_BACK"].unlink()
        Image.new("RGB", (64, 56)).save(frames[1].image_paths["CAM_FRONT"])
        report = loop(config(dataroot=root, max_samples=3))
        assert set(report["failed"]) == {frames[0].token, frames[1].token} and set(report["sheets"]) == {
            frames[2].token
        }
        assert "CAM_BACK" in report["failed"][frames[0].token]
        assert "the pictures are not this rig's (CAM_FRONT 64x56" in report["failed"][frames[1].token]
        front = replace(frames[2].select_cameras(["CAM_FRONT"]))
        with pytest.raises(ValueError, match="CAM_FRONT_RIGHT.*has no picture; the rig has CAM_FRONT, but"):
            Perceiver(config().perception).check_rig(front)

    def test_cameras_that_see_nothing(self, config, street_root):
        from syntheocc.occupancy.cameras import CameraRig
        from syntheocc.occupancy.data.belonging import check_sees

        frame = read_nuscenes(street_root)[0]
        label = read_occ3d(label_of(street_root, frame)).grid
        check_sees(label, frame.cameras)
        far = {}
        for name, camera in frame.cameras.items():
            pose = camera.cam2ego.clone()
            pose[:3, 3] *= 1000  # millimetres
            far[name] = camera.moved(pose)
        with pytest.raises(ValueError, match="sees an occupied voxel; the rig is another car's or in other units"):
            check_sees(label, CameraRig(far), frame.token)

    def test_labels_of_another_frame(self, config, street_root, tmp_path, capsys):
        frames = read_nuscenes(street_root)
        wrong = config(label=label_of(street_root, frames[2]), tokens=(frames[0].token,))
        with pytest.raises(ValueError, match=f"is the label of sample {frames[2].token}, not of {frames[0].token}"):
            loop(wrong)
        hidden = tmp_path / "label" / "labels.npz"
        hidden.parent.mkdir()
        shutil.copy(label_of(street_root, frames[2]), hidden)
        assert exit_status(run, config(label=hidden, tokens=(frames[0].token,))) == 2
        assert f"the labels do not belong to sample {frames[0].token}" in capsys.readouterr().err
        # in a batch, the frame is listed and the others go on
        root = tmp_path / "mixed"
        shutil.copytree(street_root, root)
        shutil.copy(label_of(root, frames[2]), label_of(root, frames[0]))
        given = SampleConfig(dataroot_path=root, info_path=(str(root / "v1.0-trainval"),))
        inputs, lost = data_root_inputs(given, "occ3d")
        assert [one.frame.token for one in inputs] == [frame.token for frame in frames[1:]]
        assert list(lost) == [frames[0].token] and "do not belong" in lost[frames[0].token]

    def test_a_class_table_without_a_mapping(self, config, street_root):
        room = Preset(GridSpec((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (8, 8, 4)), NYUV2.taxonomy)
        grid = OccupancyGrid(torch.full((8, 8, 4), NYUV2.taxonomy.id_of("bed"), dtype=torch.uint8), *room)
        with pytest.raises(ValueError, match="no rule maps"):
            on_preset(grid, OCC3D_NUSCENES)

    def test_settings(self, config, perception, tmp_path, monkeypatch):
        with pytest.raises(ValueError, match="--label is one sample's; name it with --tokens"):
            config(label=Path("labels.npz"))
        with pytest.raises(ValueError, match="--start label begins with labels"):
            config(start="label", labels="none")
        with pytest.raises(ValueError, match="no sample or scene is called nowhere"):
            loop(config(scenes=("nowhere",)))
        monkeypatch.setattr(loop_stages, "CHECKPOINTS", tmp_path)
        with pytest.raises(ValueError, match="no perception model at .*sparseocc-nano; give the folder"):
            default_perception()
        shutil.copytree(perception, tmp_path / "sparseocc-nano")
        assert default_perception() == tmp_path / "sparseocc-nano"


class TestEditing:
    def test_a_hole_is_closed_and_a_gate_is_not(self):
        spec = GridSpec((0.0, 0.0, 0.0), (0.4, 0.4, 0.4), (20, 20, 8))
        labels = torch.full(spec.shape, 17, dtype=torch.uint8)
        labels[:, 10] = 15  # a wall
        labels[5, 10, 4] = 17  # a hole
        labels[12:18, 10, :4] = 17  # a gate
        labels[3, 3, 3] = 255
        grid = closed(OccupancyGrid(labels, spec, OCC3D_NUSCENES.taxonomy), 1)
        assert grid.labels[5, 10, 4] == 15 and (grid.labels[13:17, 10, :3] == 17).all() and grid.labels[3, 3, 3] == 255
        assert (grid.labels[:, :9] == labels[:, :9]).all()
        with pytest.raises(ValueError, match="close_holes is a number of voxels"):
            PredictionEdits(close_holes=-1)

    def test_confidence(self, street_root, perception):
        frame = read_nuscenes(street_root)[:1]
        number = [
            int(Perceiver(perception, confidence=value).predict(frame)[0][frame[0].token].occupied().sum())
            for value in (None, 0.0, 1e9)
        ]
        assert number[0] == number[1] > 0 == number[2]

    def test_another_geometry(self):
        """Labels of the finer lidar grid on the coarser ego grid: what lies at a voxel's centre."""
        lidar2ego = torch.tensor(
            [[0.0, 1.0, 0.0, 0.94], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.84], [0.0, 0.0, 0.0, 1.0]]
        ).double()
        ego2lidar = torch.linalg.inv(lidar2ego)
        labels = torch.zeros(SYNTHEOCC.spec.shape, dtype=torch.uint8)
        center = OCC3D_NUSCENES.spec.centers()[125, 107, 5]
        index, _ = SYNTHEOCC.spec.index_of((ego2lidar @ torch.cat([center, torch.ones(1)]))[:3])
        labels[tuple(index)] = SYNTHEOCC.taxonomy.id_of("car")
        found = on_preset(OccupancyGrid(labels, *SYNTHEOCC, grid2ego=lidar2ego), OCC3D_NUSCENES)
        assert (found.labels == OCC3D_NUSCENES.taxonomy.id_of("car")).nonzero().tolist() == [[125, 107, 5]]
        assert on_preset(found, OCC3D_NUSCENES) is found


def test_the_command_line(config, street_root, perception, tiny_model, tmp_path):
    given = f"loop --dataroot {street_root} --perception {perception} --model {tiny_model} --max-samples 1 --height 56"
    more = f"--width 96 --num-inference-steps 1 --guidance-scale 1 --no-read-again --output-dir {tmp_path / 'out'}"
    assert main([*given.split(), *more.split()]) == 0
    assert np.asarray(Image.open(next((tmp_path / "out").glob("loop_*.png")))).std() > 0


@pytest.mark.real_data
def test_a_real_key_frame_and_a_real_label(config, real_data, tmp_path):
    """No labels with the key frame, no pictures with the label: each goes as far as it can."""
    root = real_data / "nuscenes_scene0061"
    report = loop(config(dataroot=root, labels="none", output_dir=tmp_path / "frame"))
    assert list(report["arrows"]) == ["read again / asked for", "views / condition"] and report["failed"] == {}
    (token,) = report["sheets"]
    for path in (tmp_path / "frame" / "generated").glob("CAM_*/*.jpg"):
        with Image.open(path) as picture:
            assert picture.size == (1600, 900)
    label = real_data / "occ3d_scene1077" / "labels.npz"
    report = loop(config(dataroot=None, label=label, output_dir=tmp_path / "label"))
    assert list(report["arrows"]) == ["read again / asked for", "read again / label", "views / condition"]
    # The label is not the key frame's: its lidar says so.
    with pytest.raises(ValueError, match="the labels do not belong to sample"):
        loop(config(dataroot=root, label=label, tokens=(token,), start="label", output_dir=tmp_path / "wrong"))
