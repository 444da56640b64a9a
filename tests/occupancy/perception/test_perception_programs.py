"""Training, prediction and evaluation as programs, on a tree of two key frames."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_drives import write_drives
from test_backbones import published_state
from warm_start import run_program

from syntheocc.engine.trackers import read_log
from syntheocc.occupancy.data.infos_writing import write_infos
from syntheocc.occupancy.data.nuscenes_frames import read_nuscenes
from syntheocc.occupancy.data.occ3d import occ3d_path, write_occ3d
from syntheocc.occupancy.grids import OCC3D_NUSCENES, OccupancyGrid
from syntheocc.occupancy.perception import evaluate, predict, train
from syntheocc.occupancy.perception.sparseocc import SparseOcc

SETTINGS = {"preset": "tiny", "global_batch_size": 2, "micro_batch_size": 1, "lr_warmup_steps": 1}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def root(tmp_path_factory, camera_at):
    root = tmp_path_factory.mktemp("data")
    write_drives(root, camera_at, scenes=1, key_frames=2)
    return root


def flags(**settings):
    return [f"--{name}={value}" for name, value in settings.items()]


def train_flags(root, folder, **settings):
    return flags(**(SETTINGS | {"dataroot": root, "output_dir": folder, "max_train_steps": 3} | settings))


def curve(folder):
    return [line["loss"] for line in read_log(folder / "log.jsonl")]


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A model after three steps in one go."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        assert train.main(train_flags(root, folder, checkpointing_steps=2)) == 0
    return folder


def test_a_resumed_run_ends_like_one_in_one_go(root, trained, tmp_path):
    shutil.copytree(trained / "checkpoint-2", tmp_path / "checkpoint-2")
    shutil.copy(trained / "log.jsonl", tmp_path)
    assert train.main(train_flags(root, tmp_path, resume_from_checkpoint="latest")) == 0
    assert curve(tmp_path) == curve(trained) and len(curve(trained)) == 3
    expected = SparseOcc.from_pretrained(trained).state_dict()
    for name, value in SparseOcc.from_pretrained(tmp_path).state_dict().items():
        assert value.equal(expected[name]), name


def test_a_run_is_not_continued_on_other_samples(root, trained, tmp_path, capsys):
    shutil.copytree(trained / "checkpoint-2", tmp_path / "checkpoint-2")
    others = [replace(frame, token=f"other{i}", prev=None) for i, frame in enumerate(read_nuscenes(root))]
    write_infos(tmp_path / "others.pkl", others, data_root=root)
    settings = {"info_path": tmp_path / "others.pkl", "resume_from_checkpoint": "latest"}
    assert train.main(train_flags(root, tmp_path, **settings)) == 1
    assert "other samples" in capsys.readouterr().err


def test_two_processes_train_one_model(root, tmp_path):
    """Batch, order, initial weights, random points and dropout are those of one process, which takes sample by sample.

    Every kept cluster of voxels touches both classes, so the samples have the same number of segments: one process
    divides its mask losses by its own, two by their mean. The steps are small, so that the rounding of sums moves no
    voxel over an edge (into the kept ones, or into a mask).
    """
    encoder = SparseOcc.from_preset("tiny").image_encoder
    weights = tmp_path / "detector.pth"
    torch.save(published_state(encoder.backbone), weights)
    one, two = tmp_path / "one", tmp_path / "two"
    x, y, z = torch.meshgrid(*(torch.arange(n) for n in OCC3D_NUSCENES.spec.shape), indexing="ij")
    checkered = torch.where((x + y + z) % 2 == 0, 11, 15).to(torch.uint8)
    for frame in read_nuscenes(root):
        write_occ3d(OccupancyGrid(checkered, *OCC3D_NUSCENES), occ3d_path(tmp_path / "gts", frame))
    settings = {"backbone_weights": weights, "labels_root": tmp_path / "gts", "learning_rate": 1e-7}
    settings |= {"validation_steps": 3, "validation_info_path": root / "named.pkl"}
    assert train.main(train_flags(root, one, **settings)) == 0
    done = run_program("-m", "syntheocc.occupancy.perception.train", *train_flags(root, two, **settings), ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert curve(two) == pytest.approx(curve(one), rel=1e-5)
    norms = [[line["grad_norm"] for line in read_log(folder / "log.jsonl")] for folder in (one, two)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert len(curve(two)) == 3 and len(set(curve(two))) == 3
    validated = [read_log(folder / "validation.jsonl")[-1] for folder in (one, two)]
    assert validated[0] == pytest.approx(validated[1], rel=1e-3) and "validation/RayIoU" in validated[0]
    assert SparseOcc.from_pretrained(two).config == SparseOcc.from_pretrained(one).config


def test_prediction_goes_on_and_lists_bad_samples(root, trained, tmp_path):
    world = tmp_path / "nuscenes"
    shutil.copytree(root, world)
    first, second = read_nuscenes(world)
    picture = second.image_paths["CAM_FRONT"]
    good = picture.read_bytes()
    picture.write_bytes(b"no picture")
    out = tmp_path / "out"
    arguments = flags(dataroot=world, weights=trained, output_dir=out, device="cpu")
    assert predict.main(arguments) == 0
    bad = json.loads((out / "bad_samples.json").read_text())
    assert list(bad) == [second.token] and picture.name in bad[second.token]
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    assert set(before) == {f"{first.token}.npz"}

    picture.write_bytes(good)
    assert predict.main(arguments) == 0
    assert json.loads((out / "bad_samples.json").read_text()) == {}
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    assert set(after) == {f"{first.token}.npz", f"{second.token}.npz"} and before.items() <= after.items()
    with np.load(out / f"{first.token}.npz") as arrays:
        assert arrays["pred"].shape == (200, 200, 16) and arrays["pred"].dtype == np.uint8


def test_two_evaluations_agree_to_the_last_digit(root, trained, tmp_path, capsys):
    results = []
    for name in ("one", "two"):
        arguments = flags(dataroot=root, weights=trained, output_dir=tmp_path / name, device="cpu")
        assert evaluate.main(arguments) == 0
        results.append((tmp_path / name / "results.json").read_bytes())
    assert results[0] == results[1]
    assert json.loads(results[0])["frames"] == 2
    assert "mIoU" in capsys.readouterr().out


def test_perfect_predictions_score_one(root, trained, tmp_path):
    config = evaluate.EvaluateConfig(dataroot=root, weights=trained, output_dir=tmp_path, device="cpu")
    predict.predict(config)
    reader = config.reader()
    for frame in config.frames():
        np.savez(tmp_path / f"{frame.token}.npz", pred=reader(frame).semantics.numpy())
    results = evaluate.evaluate(config)
    assert results["miou"]["mIoU"] == 1.0 and results["rayiou"]["RayIoU"] == 1.0


def test_another_models_predictions_are_not_taken_for_ones_own(root, trained, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_text('{"model": "another"}')
    assert predict.main(flags(dataroot=root, weights=trained, output_dir=out, device="cpu")) == 1
    assert "another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "wrong", "said"),
    [
        (train, {"backbone_weights": "nowhere.pth"}, "nowhere.pth"),
        (train, {"labels_root": "nowhere"}, "nowhere"),
        (train, {"info_path": "nowhere.pkl"}, "nowhere.pkl"),
        (predict, {"weights": "nowhere"}, "nowhere"),
        (predict, {"output_dir": __file__}, "another output_dir"),
        (predict, {"threshold": "0.5"}, "leave --threshold out"),
        (evaluate, {"metrics": "raypq"}, "no objects apart"),
        (evaluate, {"labels": "openocc_v2"}, "--labels"),
        (evaluate, {"labels": "surroundocc"}, "--mask none"),
    ],
)
def test_what_is_wrong_is_named(root, trained, tmp_path, capsys, program, wrong, said):
    if program is train:
        arguments = train_flags(root, tmp_path, **wrong)
    else:
        arguments = flags(**({"dataroot": root, "weights": trained, "output_dir": tmp_path} | wrong))
    assert program.main(arguments) == 1
    assert said in capsys.readouterr().err


def test_the_weights_of_a_folder_are_no_released_file(root, trained, tmp_path, capsys):
    assert predict.main(flags(dataroot=root, weights=trained / "model.safetensors", output_dir=tmp_path)) == 1
    assert f"give {trained}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [{"preset": "huge"}, {"validation_steps": 1}, {"max_train_steps": 0}, {"max_samples": 0}]
)
def test_bad_flags_end_the_program(root, tmp_path, wrong):
    with pytest.raises(SystemExit) as ended:
        train.main(train_flags(root, tmp_path, **wrong))
    assert ended.value.code == 2
