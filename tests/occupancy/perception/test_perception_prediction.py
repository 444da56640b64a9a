"""Prediction and evaluation as programs: remembered features, half precision, objects, what is missing or damaged."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_drives import write_drives
from warm_start import run_program

from syntheocc.engine.files import read_json
from syntheocc.engine.trackers import read_log
from syntheocc.engine.unpickling import safe_load
from syntheocc.occupancy.data.infos import read_infos
from syntheocc.occupancy.data.infos_writing import write_infos
from syntheocc.occupancy.grids import OCC3D_NUSCENES, OccupancyGrid
from syntheocc.occupancy.metrics import panoptic_instances
from syntheocc.occupancy.perception import evaluate, predict, train
from syntheocc.occupancy.perception.registry import model_entry
from syntheocc.occupancy.perception.settings import EvaluateConfig, PredictConfig
from syntheocc.occupancy.perception.sparseocc import SparseOcc, preset


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def drives(tmp_path_factory, camera_at):
    """Two scenes of three key frames: their folder, and the frames in order."""
    root = tmp_path_factory.mktemp("drives")
    return root, write_drives(root, camera_at)


@pytest.fixture(scope="module")
def world(drives):
    return drives[0]


def unsorted(world):
    """Infos that name no scene and list the later frames before the first ones."""
    return str(world / "later.pkl"), str(world / "first.pkl")


def copied(world, to, infos="named"):
    """A copy of the drives to damage, and its frames in order; they are read from one of its infos."""
    shutil.copytree(world, to)
    return to, read_infos(to / f"{infos}.pkl", to)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A model that tells objects apart, with random weights that see something everywhere."""
    torch.manual_seed(0)
    changes = {"grid": OCC3D_NUSCENES.spec, "overlap_threshold": 0.0}
    model = SparseOcc.from_preset("tiny_pano", **changes)
    torch.nn.init.zeros_(model.head.mask_decoder.class_head.bias)
    folder = tmp_path_factory.mktemp("weights")
    model.save_pretrained(folder)
    return folder


def flags(**settings):
    if "dataroot" in settings:
        settings = {"info_path": settings["dataroot"] / "named.pkl"} | settings
    return [f"--{name}={value}" for name, value in settings.items()]


def predicted(folder):
    out = {}
    for path in folder.glob("*.npz"):
        with np.load(path) as arrays:
            out[path.stem] = {name: arrays[name] for name in arrays}
    return out


@pytest.fixture(scope="module")
def offline(world, weights, tmp_path_factory):
    """The predictions of all frames, from all images at once."""
    folder = tmp_path_factory.mktemp("offline")
    config = PredictConfig(dataroot=world, info_path=unsorted(world), weights=weights)
    assert predict.predict(replace(config, output_dir=folder, device="cpu")) == {}
    return predicted(folder)


def test_remembered_features_predict_the_same_in_any_order(world, weights, offline, tmp_path, monkeypatch):
    """Online, in batches, from infos in any order: every image goes through the network once, the grids are equal."""
    encoded, encode = [], SparseOcc.encode
    monkeypatch.setattr(SparseOcc, "encode", lambda self, images: encoded.append(1) or encode(self, images))
    arguments = flags(dataroot=world, info_path=",".join(unsorted(world)), weights=weights, device="cpu", batch_size=2)
    assert predict.main([*arguments, f"--output_dir={tmp_path}", "--online"]) == 0
    got = predicted(tmp_path)
    assert len(encoded) == 6 and set(got) == set(offline) and len(got) == 6
    for token, arrays in offline.items():
        assert np.array_equal(got[token]["pred"], arrays["pred"]), token
        assert np.array_equal(got[token]["instances"], arrays["instances"]), token
        assert len(np.unique(arrays["pred"])) > 1 and arrays["instances"].max() > 1


def test_neither_labels_nor_other_frames_are_needed(world, weights, offline, tmp_path):
    """A drive without ground truth, and a single frame of it, whose own images stand for older ones."""
    root, frames = copied(world, tmp_path / "data")
    shutil.rmtree(root / "gts")
    out = tmp_path / "all"
    assert predict.main(flags(dataroot=root, weights=weights, output_dir=out, device="cpu")) == 0
    assert all(np.array_equal(predicted(out)[token]["pred"], offline[token]["pred"]) for token in offline)
    for frame in (frames[0], frames[-1]):
        infos, out = root / f"{frame.token}.pkl", tmp_path / frame.token
        write_infos(infos, [replace(frame, prev=None)], data_root=root)
        assert predict.main(flags(dataroot=root, info_path=infos, weights=weights, output_dir=out, device="cpu")) == 0
        assert set(predicted(out)) == {frame.token}
        # A scene's first frame has no older one anyway.
        same = np.array_equal(predicted(out)[frame.token]["pred"], offline[frame.token]["pred"])
        assert same is (frame is frames[0])


def test_half_precision_is_another_prediction(world, weights, offline, tmp_path, capsys):
    arguments = flags(dataroot=world, weights=weights, output_dir=tmp_path, device="cpu", max_samples=1)
    assert predict.main([*arguments, "--half=bf16", "--online"]) == 0
    ((token, arrays),) = predicted(tmp_path).items()
    # Voxels that score alike fall to the one side or the other by their last bits.
    assert np.mean(arrays["pred"] == offline[token]["pred"]) > 0.9 and arrays["pred"].dtype == np.uint8
    assert predict.main(arguments) == 1
    assert "of another model" in capsys.readouterr().err


@pytest.mark.parametrize("online", [False, True])
def test_a_damaged_picture_costs_the_frames_that_need_it_and_no_other(world, weights, offline, tmp_path, online):
    root, frames = copied(world, tmp_path / "data")
    frames[1].image_paths["CAM_BACK"].write_bytes(b"\x89PNG, but not really")
    arguments = flags(dataroot=root, weights=weights, output_dir=tmp_path / "out", device="cpu", batch_size=3)
    assert predict.main([*arguments, f"--online={online}"]) == 0
    bad = read_json(tmp_path / "out" / "bad_samples.json")
    # Two frames a sample: the damaged one, and the one that follows it.
    assert set(bad) == {frames[1].token, frames[2].token} and "CAM_BACK" in bad[frames[2].token]
    got = predicted(tmp_path / "out")
    assert set(got) == set(offline) - set(bad)
    assert all(np.array_equal(got[token]["pred"], offline[token]["pred"]) for token in got)


def evaluation(world, weights, out, **settings):
    return flags(**({"dataroot": world, "weights": weights, "output_dir": out, "device": "cpu"} | settings))


def test_a_damaged_label_is_named_and_can_be_left_out(world, weights, tmp_path, capsys):
    root, frames = copied(world, tmp_path / "data")
    frame = frames[2]
    (label,) = (root / "gts").glob(f"*/{frame.token}/labels.npz")
    label.write_bytes(b"no labels")
    arguments = evaluation(root, weights, tmp_path / "out", metrics="miou", max_samples=4)
    assert evaluate.main(arguments) == 1
    assert frame.token in capsys.readouterr().err
    assert evaluate.main([*arguments, "--allow_unreadable"]) == 0
    results = read_json(tmp_path / "out" / "results.json")
    assert results["frames"] == 3 and results["unreadable"] == [frame.token]
    assert "1 unreadable ones were left out" in capsys.readouterr().out


def test_a_prediction_of_another_shape_or_class_is_refused(world, weights, tmp_path, capsys):
    arguments = evaluation(world, weights, tmp_path, metrics="miou", max_samples=2)
    assert evaluate.main(arguments) == 0
    path = sorted(tmp_path.glob("*.npz"))[0]
    for pred, said in ((np.zeros((4, 4, 4), np.uint8), "(4, 4, 4)"), (np.full((200, 200, 16), 18, np.uint8), "18")):
        np.savez(path, pred=pred)
        assert evaluate.main(arguments) == 1
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_and_infos_without_scenes_score_the_same(world, weights, tmp_path):
    """RayIoU asks which frames belong together: the label folders say so where the infos do not."""
    assert not any(frame.scene for path in unsorted(world) for frame in read_infos(path, world))
    settings = {"metrics": "miou,rayiou", "info_path": ",".join(unsorted(world))}
    arguments = evaluation(world, weights, tmp_path / "two", **settings)
    done = run_program("-m", "syntheocc.occupancy.perception.evaluate", *arguments, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    settings.pop("info_path")
    assert evaluate.main(evaluation(world, weights, tmp_path / "one", **settings)) == 0
    one, two = (read_json(tmp_path / name / "results.json") for name in ("one", "two"))
    assert one["frames"] == 6 and one == two
    assert done.stdout.count("RayIoU;") == 1, "the main process prints"


def test_objects_from_training_to_their_score(world, tmp_path, capsys):
    """Instances from boxes, panoptic training, RayPQ; two evaluations agree to the last digit."""
    model = tmp_path / "model"
    settings = {"preset": "tiny_pano", "max_train_steps": 2, "micro_batch_size": 1, "output_dir": model}
    settings |= {"validation_steps": 2, "validation_info_path": world / "named.pkl", "validation_samples": 2}
    assert train.main(flags(dataroot=world, max_samples=2, **settings)) == 0
    log = read_log(model / "log.jsonl")
    assert len(log) == 2 and all(np.isfinite(line["loss"]) and line["mask_0"] > 0 for line in log)
    assert SparseOcc.from_pretrained(model).config.panoptic
    # The two held-out frames are the scenes' first ones.
    (validated,) = read_log(model / "validation.jsonl")
    config = EvaluateConfig(dataroot=world, info_path=(str(world / "first.pkl"),), weights=model, metrics=("miou",))
    score = evaluate.evaluate(replace(config, output_dir=tmp_path / "first", device="cpu"))["miou"]["mIoU"]
    assert validated["step"] == 2 and validated["validation/mIoU"] == pytest.approx(score)
    assert 0 <= validated["validation/RayIoU"] <= 1 and validated["validation/unscored"] == 0
    results = []
    for name in ("one", "two"):
        arguments = evaluation(world, model, tmp_path / name, metrics="miou,rayiou,raypq", max_samples=2)
        assert evaluate.main(arguments) == 0
        results.append((tmp_path / name / "results.json").read_bytes())
    assert results[0] == results[1] and "RayPQ" in capsys.readouterr().out
    assert set(json.loads(results[0])["metrics"]) == {"miou", "rayiou", "raypq"}
    # Predictions that are the truth have a perfect score.
    config = EvaluateConfig(
        dataroot=world,
        info_path=(str(world / "named.pkl"),),
        weights=model,
        output_dir=tmp_path / "one",
        max_samples=2,
        metrics=("raypq",),
        device="cpu",
    )
    reader = config.reader()
    for frame in config.frames():
        labels = reader(frame).semantics
        objects = panoptic_instances(OccupancyGrid(labels, *OCC3D_NUSCENES), frame.boxes)
        np.savez(tmp_path / "one" / f"{frame.token}.npz", pred=labels.numpy(), instances=objects.numpy())
    assert evaluate.evaluate(config)["raypq"]["RayPQ"] == 1.0


def test_pictures_are_drawn_beside_the_predictions(world, weights, tmp_path):
    arguments = flags(dataroot=world, weights=weights, output_dir=tmp_path, device="cpu", max_samples=1)
    assert predict.main([*arguments, "--pictures"]) == 0
    token = next(iter(predicted(tmp_path)))
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {f"{token}_{kind}.png" for kind in ("bev", "3d", "cameras", "panoptic", "comparison")} <= names


def test_a_picture_that_is_not_there_is_an_unreadable_sample_or_a_missing_camera(world, weights, offline, tmp_path):
    root, frames = copied(world, tmp_path / "data")
    frames[3].image_paths["CAM_BACK"].unlink()
    out = tmp_path / "out"
    arguments = flags(dataroot=root, weights=weights, output_dir=out, device="cpu")
    assert predict.main(arguments) == 0
    assert set(read_json(out / "bad_samples.json")) == {frames[3].token, frames[4].token}
    assert predict.main([*arguments, "--allow_missing_files"]) == 0
    assert read_json(out / "bad_samples.json") == {} and set(predicted(out)) == set(offline)


def test_the_flags_say_how_pictures_are_read(world):
    config = PredictConfig(
        dataroot=world, info_path=unsorted(world), allow_missing_files=True, decoder="turbojpeg", draft=False
    )
    sampling = model_entry("sparseocc").test_data(preset("tiny").model, config).sampling
    assert (sampling.allow_missing_files, sampling.decoder, sampling.draft) == (True, "turbojpeg", False)


def test_an_entry_of_the_infos_that_is_no_frame_is_listed(world, weights, tmp_path):
    root, frames = copied(world, tmp_path / "data")
    document = safe_load(root / "named.pkl")
    del document["infos"][1]["cams"]["CAM_FRONT"]["cam_intrinsic"]
    (root / "damaged.pkl").write_bytes(pickle.dumps(document))
    out, infos = tmp_path / "out", root / "damaged.pkl"
    assert predict.main(flags(dataroot=root, info_path=infos, weights=weights, output_dir=out, device="cpu")) == 0
    bad = read_json(out / "bad_samples.json")
    assert set(bad) == {frames[1].token} and "cam_intrinsic" in bad[frames[1].token]
    assert len(predicted(out)) == 5
