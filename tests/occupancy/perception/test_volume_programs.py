"""Training with 2D labels, prediction, evaluation and threshold sweeps as programs, on a tree of three key frames."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from syntheocc.engine.optimizers import learning_rate_factor
from syntheocc.engine.trackers import read_log
from syntheocc.occupancy.data.nuscenes_frames import read_nuscenes
from syntheocc.occupancy.data.prediction_files import read_scene_predictions
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception import OccFlowNet, evaluate, predict, train
from syntheocc.occupancy.perception.registry import model_entry
from syntheocc.occupancy.perception.volume_entry import VolumeEntry, render_sampling

# The programs train on and predict Occ3D's grid, which takes a CPU seconds a step: the first model takes two, for the
# curve; test_volume_learns.py takes many of all of them, on a small grid.
NAMES = [pytest.param(name, marks=pytest.mark.slow) for name in ("occflownet", "splattingocc", "renderocc")]
STEPS = {"occflownet": 2, "splattingocc": 1, "renderocc": 1}
PRESETS = {
    "occflownet": "occflownet_2d_flow_tiny",
    "splattingocc": "splattingocc_tiny",
    "renderocc": "renderocc_7frame_tiny",
}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def root(street_root):
    return street_root


def flags(**settings):
    return [f"--{name}={value}" for name, value in settings.items()]


def train_flags(root, folder, name="occflownet", **settings):
    fixed = {"model": name, "preset": PRESETS[name], "max_train_steps": 2, "global_batch_size": 1}
    return flags(**(fixed | {"dataroot": root, "output_dir": folder, "lr_warmup_steps": 1} | settings))


@pytest.fixture(scope="module", params=NAMES)
def trained(request, root, tmp_path_factory):
    """A step or two of a model: its name and its folder."""
    folder, steps = tmp_path_factory.mktemp("trained"), STEPS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        assert train.main(train_flags(root, folder, request.param, max_train_steps=steps)) == 0
    return request.param, folder


def test_a_model_is_trained_predicts_and_is_scored(root, trained, tmp_path, capsys):
    name, folder = trained
    curve = read_log(folder / "log.jsonl")
    assert len(curve) == STEPS[name] and all(np.isfinite(line["loss"]) for line in curve)
    assert {"semantics", "depth", "lss_depth"} <= set(curve[0])
    arguments = flags(dataroot=root, weights=folder, output_dir=tmp_path, device="cpu", metrics="miou", max_samples=1)
    assert evaluate.main(arguments) == 0
    assert "mIoU" in capsys.readouterr().out
    first = read_nuscenes(root)[0]
    with np.load(tmp_path / f"{first.token}.npz") as arrays:
        assert arrays["pred"].shape == (200, 200, 16) and set(arrays.files) == {"pred"}


@pytest.mark.parametrize("trained", NAMES[:1], indirect=True)  # the sweep is the models' common code
def test_a_sweep_of_thresholds_comes_besides(root, trained, tmp_path):
    _, folder = trained
    arguments = flags(dataroot=root, weights=folder, device="cpu", metrics="miou", max_samples=1)
    assert evaluate.main([*arguments, *flags(output_dir=tmp_path, threshold="0.0,0.5,1.0")]) == 0
    scores = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert set(scores) == {"miou", "miou@0", "miou@0.5", "miou@1"}
    token = read_nuscenes(root)[0].token
    with np.load(tmp_path / f"{token}.npz") as arrays:
        free, occupancy, pred = arrays["free_space"], arrays["occupancy"], arrays["pred"]
    assert free.shape == (3, 200, 200, 16) and not free[0].any() and free[2].all() and occupancy.max() < 17
    assert np.array_equal(np.where(free[1], 17, occupancy), pred)  # the stored one is 0.5
    # The same by scene, as the published program saves it.
    frame = read_nuscenes(root)[0]
    classes, layers = read_scene_predictions(tmp_path, folder.stem, frame.scene)[token]
    assert np.array_equal(classes, occupancy) and np.array_equal(layers, free)
    # Another threshold's predictions are not mixed with these.
    arguments = flags(dataroot=root, weights=folder, device="cpu", max_samples=1)
    assert predict.main([*arguments, *flags(output_dir=tmp_path, threshold=0.4)]) == 1
    other = tmp_path / "other"
    assert predict.main([*arguments, *flags(output_dir=other, threshold=1.0)]) == 0
    with np.load(other / f"{token}.npz") as arrays:
        assert (arrays["pred"] == 17).all()
    assert OccFlowNet.from_pretrained(folder).config.threshold == 0.5
    # The best of a sweep is kept with a copy of the weights; one value is no choice.
    copied = shutil.copytree(folder, tmp_path / "copied")
    arguments = [
        *flags(dataroot=root, weights=copied, device="cpu", max_samples=1, metrics="miou"),
        "--store_threshold",
    ]
    assert evaluate.main([*arguments, *flags(output_dir=tmp_path / "kept", threshold="0.4,0.6")]) == 0
    scores = json.loads((tmp_path / "kept/results.json").read_text())["metrics"]
    best = max((0.4, 0.6), key=lambda value: scores[f"miou@{value:g}"]["figures"]["mIoU"])
    assert OccFlowNet.from_pretrained(copied).config.threshold == best
    with pytest.raises(ValueError, match="chooses among several"):
        evaluate.EvaluateConfig(dataroot=root, weights=copied, threshold=(0.4,), store_threshold=True)


def test_samples_are_augmented_as_published(root):
    """Each camera by itself, its frames alike; grids mirrored, never turned; the current frame for missing ones."""
    entry = model_entry("occflownet")
    assert isinstance(entry, VolumeEntry)
    config, recipe = entry.preset("occflownet_2d_flow_tiny")
    settings = entry.train_settings(model="occflownet", preset="occflownet_2d_flow_tiny", dataroot=root)
    config = replace(config, trunk=replace(config.trunk, grid=GridSpec((-40, -40, -1), 0.4, (200, 200, 16))))
    data = entry.training_data(config, replace(recipe, max_rotation_deg=5.4), settings)
    assert data.labels is None  # no labelled voxels are needed
    samples = [data[i] for i in range(6)]
    shots = sorted(tuple(s.shots[0]) for s in samples[:3])
    tokens = [frame.token for frame in data.frames]
    a, b, c = tokens
    assert shots == sorted([(a, a, a), (b, a, b), (c, b, a)])
    for sample in samples:
        transforms = sample.image_transforms[0]
        assert all(transforms[0].equal(transforms[t]) for t in (1, 2))
        assert len({tuple(m.flatten().tolist()) for m in transforms[0]}) == transforms.shape[1]
        assert sample.grid_transforms[0].abs().equal(sample.grid_transforms[0].abs().round())
        assert (
            len(sample.rays) > 100
            and sample.motion is not None
            and sample.rays.frame_offsets == (-3, -2, -1, 0, 1, 2, 3)
        )
    assert any((s.image_transforms[0, 0, :, 0, 1] != 0).any() for s in samples)
    assert render_sampling(config, recipe).image.scales == pytest.approx((0.82 / 0.88, 0.99 / 0.88))


def test_published_schedule():
    """V18: the rate of steps 0, 100 and 199 of a run at 1e-4; constant from there on."""
    entry = model_entry("renderocc")
    settings = entry.train_settings(model="renderocc", preset="renderocc_7frame", max_train_steps=1000)
    factor = learning_rate_factor(
        settings.lr_scheduler, settings.lr_warmup_steps, 1000, warmup_start=settings.lr_warmup_start
    )
    rates = [settings.learning_rate * factor(step) for step in (0, 100, 199, 200, 999)]
    assert rates == pytest.approx([1e-7, 5.005e-5, 9.95005e-5, 1e-4, 1e-4])
    assert (settings.global_batch_size, settings.adam_weight_decay, settings.max_grad_norm) == (16, 0.01, 5.0)
    assert settings.use_ema and settings.ema_decay == 0.999 and settings.ema_ramp == 2000


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"labels": "openocc_v2"}, "learns Occ3D's classes"),
        ({"frames_per_sample": 1}, "stereo needs at least 2"),
        ({"lidarseg_version": "v9"}, "v9"),
    ],
)
def test_what_is_wrong_is_named(root, tmp_path, capsys, settings, said):
    assert train.main(train_flags(root, tmp_path, **settings)) == 1
    assert said in capsys.readouterr().err


def test_features_are_not_remembered(root, trained, tmp_path, capsys):
    _, folder = trained
    assert predict.main(flags(dataroot=root, weights=folder, output_dir=tmp_path, device="cpu", online=True)) == 1
    assert "leave --online out" in capsys.readouterr().err
