"""Samples that teach nothing and frames that lack something, through the programs: nothing crashes, losses stay."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_drives import relabel, write_drives

from syntheocc.engine.files import read_json
from syntheocc.engine.trackers import read_log
from syntheocc.occupancy.data.infos_writing import write_infos
from syntheocc.occupancy.data.occ3d import occ3d_path, write_occ3d
from syntheocc.occupancy.grids import OPENOCC_V2, OccupancyGrid
from syntheocc.occupancy.perception import evaluate, train
from syntheocc.occupancy.perception.dataset import SPARSEOCC_CAMERAS
from syntheocc.occupancy.perception.settings import PredictConfig
from syntheocc.occupancy.perception.sources import test_samples as samples_to_predict
from syntheocc.occupancy.perception.sparseocc import SparseOcc, preset
from syntheocc.occupancy.taxonomy import UNKNOWN


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def flags(**settings):
    return [f"--{name}={value}" for name, value in settings.items()]


def trained(root, folder, **settings):
    """Train, and give the log and the model."""
    given = {"dataroot": root, "output_dir": folder, "lr_warmup_steps": 1} | settings
    assert train.main(flags(**given)) == 0
    return read_log(folder / "log.jsonl"), SparseOcc.from_pretrained(folder)


def finite(log, model):
    values = [value for line in log for name, value in line.items() if name not in ("step", "bad_samples")]
    return np.isfinite(values).all() and all(value.isfinite().all() for value in model.state_dict().values())


@pytest.fixture(scope="module")
def hard(tmp_path_factory, camera_at):
    """Frames without objects, all free, all unknown, with unclaimed objects; the first one lacks a camera."""
    root = tmp_path_factory.mktemp("hard")
    frames = write_drives(root, camera_at)
    shape = OPENOCC_V2.spec.shape
    road = torch.full(shape, 17, dtype=torch.uint8)
    road[:, :, 2] = 11
    free, unknown = torch.full_like(road, 17), torch.full_like(road, UNKNOWN)
    unclaimed = road.clone()
    unclaimed[150:155, 100:105, 3:6] = 4  # a car that no box holds
    for frame, labels in zip(frames[1:5], (road, free, unknown, unclaimed), strict=True):
        relabel(root, frame, labels)
    lacking = frames[0].select_cameras([name for name in frames[0].cameras.names if name != "CAM_BACK"])
    listed = [replace(frame, scene="") for frame in (frames[3], lacking, frames[5], frames[4], frames[1], frames[2])]
    write_infos(root / "hard.pkl", listed, data_root=root)
    return root, listed


def test_training_survives_samples_that_teach_nothing(hard, tmp_path):
    root, listed = hard
    infos = root / "hard.pkl"
    settings = {"epochs": 1, "global_batch_size": 1, "learning_rate": 1e-4}
    log, model = trained(root, tmp_path, info_path=infos, preset="tiny_pano", **settings)
    assert len(log) == len(listed) and finite(log, model)
    # Of a grid of which nothing is known, and of an empty one, no mask is asked for; of the first, nothing at all.
    assert 2 <= sum(line["mask_2"] == 0 for line in log) < 6
    assert sum(line["lovasz_1"] == 0 for line in log) == 1
    out = tmp_path / "out"
    arguments = flags(dataroot=root, info_path=infos, weights=tmp_path, output_dir=out, device="cpu", metrics="miou")
    assert evaluate.main(arguments) == 0
    results = read_json(out / "results.json")
    assert results["frames"] == 6 and results["unreadable"] == []


def test_a_frame_that_lacks_a_camera_does_not_take_it_from_the_others(hard):
    root, listed = hard
    config = PredictConfig(dataroot=root, info_path=(str(root / "hard.pkl"),))
    samples = samples_to_predict(config, preset("tiny").model, lambda token, reason: AssertionError(reason))
    back = SPARSEOCC_CAMERAS.index("CAM_BACK")
    assert samples.cameras == SPARSEOCC_CAMERAS
    assert [frame.token for frame in samples.frames[:2]] == ["s0f0", "s0f1"]
    # Two frames a sample; the older one of the second sample is the first frame.
    for index, now, before in ((0, False, False), (1, True, False), (2, True, True)):
        seen = samples[index].ego2img[0].flatten(2).any(-1)
        assert seen[:, :back].all() and seen[:, back + 1 :].all() and seen[:, back].tolist() == [now, before]
        assert samples[index].images[0, :, back].flatten(1).any(1).tolist() == [now, before]


def test_seventeen_classes_train_and_are_scored(tmp_path, camera_at):
    """OpenOcc v2's table, whose free class is 16, on a preset of Occ3D's classes."""
    root = tmp_path / "data"
    frames = write_drives(root, camera_at, scenes=1, key_frames=2)
    labels = torch.full(OPENOCC_V2.spec.shape, 16, dtype=torch.uint8)
    labels[:, 80:120, 2], labels[120:128, 90:94, 3:6] = 10, 0
    for frame in frames:
        write_occ3d(OccupancyGrid(labels, *OPENOCC_V2), occ3d_path(root / "openocc_v2", frame))
    common = {"info_path": root / "named.pkl", "labels": "openocc_v2"}
    log, model = trained(root, tmp_path / "model", preset="tiny", max_train_steps=2, global_batch_size=1, **common)
    assert len(log) == 2 and finite(log, model)
    assert model.config.taxonomy.num_classes == 17 and len(model.config.class_frequencies) == 17
    arguments = flags(dataroot=root, weights=tmp_path / "model", output_dir=tmp_path / "out", device="cpu", **common)
    assert evaluate.main([*arguments, "--metrics=miou"]) == 0
    figures = read_json(tmp_path / "out" / "results.json")["metrics"]["miou"]
    assert len(figures["definition"]["classes"]) == 17 and figures["figures"]["mIoU"] is not None
