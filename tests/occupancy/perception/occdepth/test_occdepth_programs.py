"""OccDepth trained, resumed, divided, predicted with, scored, drawn and submitted by the programs, on a KITTI tree."""

import json
import shutil

import numpy as np
import pytest
import torch
from kitti_scene import write_planes
from PIL import Image
from warm_start import run_program, start_ranks

from syntheocc.commands import main
from syntheocc.engine.trackers import read_log
from syntheocc.occupancy.data import tartanair
from syntheocc.occupancy.data.completion_files import read_completion_file
from syntheocc.occupancy.data.kitti_submission import read_prediction, submission_frames
from syntheocc.occupancy.data.nyuv2 import FILE_SHAPE, NyuVoxels, write_nyuv2
from syntheocc.occupancy.data.nyuv2 import write_depth as write_kinect
from syntheocc.occupancy.data.semantic_kitti_frames import completion_frames
from syntheocc.occupancy.grids import SEMANTIC_KITTI, TARTANAIR, GridSpec
from syntheocc.occupancy.perception import OccDepth, evaluate, predict, train
from syntheocc.occupancy.perception.occdepth.augmentation import StereoAugmentation
from syntheocc.occupancy.perception.occdepth.batch import collate
from syntheocc.occupancy.perception.occdepth.dataset import StereoFrames
from syntheocc.occupancy.perception.occdepth.entry import ENTRY
from syntheocc.occupancy.perception.occdepth.indoor_sources import stereo_source
from syntheocc.occupancy.perception.occdepth.presets import PRESETS, OccDepthPreset, preset
from syntheocc.occupancy.perception.occdepth.step import OccDepthStep
from syntheocc.occupancy.perception.settings import EvaluateConfig, PredictConfig
from syntheocc.occupancy.perception.shared_norms import share_batch_norms
from syntheocc.occupancy.perception.view_transform import DepthBins

STEPS = 3


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two labelled frames of 00 with a teacher's depth, one of 08, one of the test sequence 11."""
    root = tmp_path_factory.mktemp("kitti")
    write_planes(root, "00", depth=True)
    write_planes(root, "08", ("000000",))
    write_planes(root, "11", ("000000",), labels=False)
    bits = np.zeros(262144, np.uint8)
    (root / "sequences/11/voxels").mkdir(exist_ok=True)
    bits.tofile(root / "sequences/11/voxels/000000.bin")
    return root


def flags(**settings):
    return [f"--{name}={value}" for name, value in settings.items()]


def train_flags(root, folder, **settings):
    fixed = {"model": "occdepth", "preset": "tiny", "max_train_steps": STEPS, "lr_warmup_steps": 0}
    return flags(**(fixed | {"dataroot": root, "output_dir": folder} | settings))


@pytest.fixture(scope="module")
def trained(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        assert train.main(train_flags(tree, folder, validation_steps=STEPS)) == 0
    return folder


def test_a_curve_and_a_model_come_of_it(trained):
    curve = read_log(trained / "log.jsonl")
    terms = {"ssc", "occupancy", "sem_scal", "geo_scal", "frustum", "relation", "depth"}
    assert len(curve) == STEPS and all(terms <= set(line) for line in curve)
    for line in curve:
        assert line["loss"] == pytest.approx(sum(line[name] for name in terms), rel=1e-5)
    assert curve[-1]["loss"] < curve[0]["loss"]
    model = OccDepth.from_pretrained(trained)
    assert model.config == preset("tiny").model and not model.training
    validation = json.loads((trained / "validation.jsonl").read_text().splitlines()[-1])
    assert validation["validation/unscored"] == 0 and 0 <= validation["validation/iou"] <= 1


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tree, trained, tmp_path):
    assert train.main(train_flags(tree, tmp_path, max_train_steps=1)) == 0
    assert train.main(train_flags(tree, tmp_path, resume_from_checkpoint="latest", validation_steps=STEPS)) == 0
    assert [a["loss"] for a in read_log(tmp_path / "log.jsonl")] == [
        a["loss"] for a in read_log(trained / "log.jsonl")
    ]
    weights, whole = (OccDepth.from_pretrained(folder).state_dict() for folder in (tmp_path, trained))
    assert all(torch.equal(value, whole[name]) for name, value in weights.items())


@pytest.mark.slow
def test_two_processes_make_the_same_curve(tree, trained, tmp_path):
    """Each sees one of the two samples; norms and losses are those of both."""
    arguments = train_flags(tree, tmp_path, max_train_steps=2)
    done = run_program("-m", "syntheocc.occupancy.perception.train", *arguments, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    alone, divided = read_log(trained / "log.jsonl")[:2], read_log(tmp_path / "log.jsonl")
    for a, b in zip(alone, divided, strict=True):
        for name in ("loss", "ssc", "relation", "depth", "frustum"):
            # Rounding decides the sign of many a feature of voxels that no picture shows, which all have the same; the
            # gradients then differ by a few per cent. In float64 they are the same: `test_division_in_float64`.
            assert a[name] == pytest.approx(b[name], rel=1e-5 if a["step"] == 1 else 2e-2), name


def divided(rank, folder, tree):
    """A step's gradients on one of two samples, in float64, as one of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(gradients(tree, [rank], shared=True), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def gradients(tree, indices, shared=False):
    config = preset("tiny").model
    source = stereo_source(config, completion_frames(tree, ["00"]), depth="stereo")
    data = StereoFrames(source, StereoAugmentation(), seed=0)
    batch = collate([data[index] for index in indices])
    batch.images = batch.images.double()
    torch.manual_seed(0)
    model = OccDepth(config).double().train()
    if shared:
        share_batch_norms(model, cpu=True)
    OccDepthStep(model)(batch, 0, indices)["loss"].backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.slow
def test_division_in_float64(tree, tmp_path):
    start_ranks(divided, (str(tmp_path), str(tree)), 2)
    whole, parts = gradients(tree, [0, 1]), [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, wanted in whole.items():
        # Sums of a hundred thousand voxels in another order: rounding goes by the largest gradient of a tensor.
        rounding = max(1e-9, 1e-8 * float(wanted.abs().max()))
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, wanted, rtol=1e-6, atol=rounding, msg=name)


@pytest.fixture(scope="module")
def scored(tree, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    assert evaluate.main(flags(dataroot=tree, weights=trained, output_dir=folder, device="cpu", pictures=True)) == 0
    return folder


def test_scores_are_those_of_the_split_val(tree, trained, scored, tmp_path):
    results = json.loads((scored / "results.json").read_text())
    assert results["frames"] == 1 and list(results["metrics"]) == ["ssc"]
    assert results["metrics"]["ssc"]["definition"]["eps"] == 1e-15
    with np.load(scored / "08_000000.npz") as arrays:
        pred = arrays["pred"]
    assert pred.shape == (64, 64, 8) and pred.dtype == np.uint8
    settings = EvaluateConfig(dataroot=tree, weights=trained, output_dir=tmp_path, device="cpu")
    settings.use(OccDepth.from_pretrained(trained).config)
    truth = settings.reader()(settings.frames()[0]).semantics.numpy()
    known = truth != 255
    both, either = ((pred > 0) & (truth > 0) & known).sum(), (((pred > 0) | (truth > 0)) & known).sum()
    assert results["metrics"]["ssc"]["figures"]["iou"] == pytest.approx(both / either)
    # Predictions that are the truth have a perfect score, and the classes that are there count a nineteenth each.
    shutil.copy(scored / "settings.json", tmp_path)
    np.savez(tmp_path / "08_000000.npz", pred=np.where(known, truth, 0).astype(np.uint8))
    perfect = evaluate.evaluate(settings)["ssc"]
    assert perfect["iou"] == 1.0 and perfect["miou"] == pytest.approx(3 / 19)


def test_pictures_and_surfaces(tree, trained, scored):
    found = {path.name for path in (scored / "pictures").iterdir()}
    assert {f"08_000000_{kind}.png" for kind in ("3d", "bev", "cameras", "comparison", "completion")} <= found
    with Image.open(scored / "pictures" / "08_000000_completion.png") as picture:
        assert picture.size[0] == 1440
    arguments = flags(dataroot=tree, weights=trained, output_dir=scored, device="cpu", meshes=True)
    assert predict.main(arguments) == 0
    with np.load(scored / "08_000000.npz") as arrays:
        there = bool((arrays["pred"] > 0).any())
    assert (scored / "meshes" / "08_000000.ply").is_file() == there


def test_a_submission_is_packed_from_predictions_of_the_test_split(tree, trained, tmp_path, monkeypatch, capsys):
    """With a model of the full grid; what it weighs does not matter here."""
    small = preset("tiny", grid=SEMANTIC_KITTI.spec, project_scale=2, relation_prior=False, channels=4)
    model = OccDepth(small.model)
    model.save_pretrained(tmp_path / "model")
    arguments = flags(
        dataroot=tree, weights=tmp_path / "model", output_dir=tmp_path / "pred", device="cpu", split="test"
    )
    assert predict.main(arguments) == 0
    job = ["--predictions", str(tmp_path / "pred"), "--dataroot", str(tree), "--sequences", "11"]
    assert main(["occupancy", "submit", *job, "--output", str(tmp_path / "out.zip")]) == 0
    assert main(["occupancy", "submit", *job, "--output", str(tmp_path / "out")]) == 0
    with np.load(tmp_path / "pred" / "11_000000.npz") as arrays:
        file = tmp_path / "out" / "sequences" / "11" / "predictions" / "000000.label"
        assert np.array_equal(read_prediction(file).numpy(), arrays["pred"])
    check = ["--submission", str(tmp_path / "out.zip"), "--dataroot", str(tree)]
    assert main(["occupancy", "check-submission", *check, "--sequences", "11"]) == 0
    assert main(["occupancy", "check-submission", *check]) == 2  # the benchmark has eleven sequences
    assert "12/voxels: no NNNNNN.bin" in capsys.readouterr().err
    assert submission_frames(tree, ("11",)) == {"11": ["000000"]}
    (tmp_path / "pred" / "11_000000.npz").unlink()
    assert main(["occupancy", "submit", *job, "--output", str(tmp_path / "again.zip")]) == 2
    assert "1 of 1 predictions are missing, the first is 11_000000.npz" in capsys.readouterr().err
    assert not (tmp_path / "again.zip").exists()


def test_published_files_are_written_where_labels_can_be_read(tree, tmp_path, capsys):
    """As generate_output.py names them: with truth, without it, and none where the labels are damaged."""
    root = shutil.copytree(tree, tmp_path / "kitti")
    (root / "sequences/00/voxels/000005.label").write_bytes(b"cut")
    settings = PredictConfig(weights=tmp_path, dataroot=root, output_dir=tmp_path / "pred", published_files=True)
    config = preset("kitti_mono", num_views=2).model
    settings.use(config)
    frames = completion_frames(root, ("00", "11"))
    pred = np.random.default_rng(0).integers(0, 20, config.grid.shape, np.uint8)
    settings.output_dir.mkdir()
    for frame in frames:
        np.savez(settings.output_dir / f"{frame.token}.npz", pred=pred)
    ENTRY.after_prediction(config, settings, frames)
    said = capsys.readouterr().err
    assert said.count("no published file") == 1 and "voxels/000005.label: 3 bytes" in said
    folder = tmp_path / "pred/output/kitti"
    assert sorted(path.parent.name + path.name for path in folder.rglob("*.npz")) == ["00000000.npz", "11000000.npz"]
    with_truth, without = (read_completion_file(folder / name / "000000.npz") for name in ("00", "11"))
    assert np.array_equal(with_truth.prediction.labels.numpy(), pred)
    assert with_truth.truth is not None and without.truth is None and len(without.cameras) == 2


def test_the_affinity_loss_may_count_less_with_every_step(tree):
    config = preset("tiny").model
    source = stereo_source(config, completion_frames(tree, ["00"]), depth="stereo")
    batch = StereoFrames(source)[0]
    torch.manual_seed(0)
    model = OccDepth(config).eval()
    with torch.no_grad():
        plain, later, last = (
            OccDepthStep(model, total)(batch, step, [0]) for total, step in ((None, 0), (10, 4), (10, 9))
        )
    assert float(later["sem_scal"]) == pytest.approx(0.6 * float(plain["sem_scal"]))
    assert float(last["sem_scal"]) == pytest.approx(0.1 * float(plain["sem_scal"]))
    assert float(later["loss"]) == pytest.approx(float(plain["loss"]) - 0.4 * float(plain["sem_scal"]))


def test_a_frame_that_cannot_be_read_is_named_and_costs_no_other(tree, trained, tmp_path, capsys):
    root = shutil.copytree(tree, tmp_path / "kitti")
    (root / "sequences/00/image_3/000005.png").unlink()
    arguments = flags(dataroot=root, weights=trained, output_dir=tmp_path / "pred", device="cpu", sequences="00")
    assert predict.main(arguments) == 0
    bad = json.loads((tmp_path / "pred" / "bad_samples.json").read_text())
    assert list(bad) == ["00_000005"] and "image_3/000005.png" in bad["00_000005"]
    assert (tmp_path / "pred" / "00_000000.npz").is_file()
    assert evaluate.main(arguments) == 1 and "allow_unreadable" in capsys.readouterr().err


def test_depth_that_nobody_made_is_an_error_before_training(tree, tmp_path, capsys):
    root = shutil.copytree(tree, tmp_path / "kitti")
    shutil.rmtree(root / "sequences/00/depth")
    assert train.main(train_flags(root, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert "none of 2 frames that were tried" in said and "utils/gen_depth.py" in said
    assert not (tmp_path / "out").exists()


def test_what_does_not_go_together_is_refused(tree, trained, tmp_path, capsys):
    assert train.main(train_flags(tree, tmp_path, labels="occ3d")) == 1
    assert "preset tiny is made for semantic_kitti" in capsys.readouterr().err
    assert train.main(train_flags(tree, tmp_path, frames_per_sample=2)) == 1
    assert "OccDepth sees one instant" in capsys.readouterr().err
    assert train.main(train_flags(tree, tmp_path, split="test", sequences="12")) == 1
    assert "'12'" in capsys.readouterr().err
    arguments = flags(dataroot=tree, weights=trained, output_dir=tmp_path / "pred", device="cpu")
    for more, message in (
        (["--online"], "leave --online out"),
        (["--threshold=0.5"], "leave --threshold out"),
        (["--published_files"], "are of semantic_kitti's own voxels"),
    ):
        assert predict.main([*arguments, *more]) == 1
        assert message in capsys.readouterr().err
    assert evaluate.main([*arguments, "--metrics=miou"]) == 1
    assert "ssc is the metric of KITTI" in capsys.readouterr().err
    assert not (tmp_path / "pred").exists()


def test_rooms_go_through_the_programs(tmp_path, monkeypatch):
    """NYUv2 with its virtual second view, at a width that takes seconds."""
    made = preset("nyu_b4", backbone="tiny", channels=4, decoder_channels=32, image_size=(96, 128))
    monkeypatch.setitem(PRESETS, "tiny_room", lambda: OccDepthPreset(made.model, made.recipe))
    generator = np.random.default_rng(0)
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    for split in ("train", "test"):
        ids = np.full(FILE_SHAPE, 255, np.uint8)
        ids[:, :100], ids[:, :4] = 0, 2
        folder = tmp_path / "nyu" / f"NYU{split}"
        name = "NYU0001_0000" if split == "train" else "NYU0002_0000"
        write_nyuv2(NyuVoxels(ids, torch.tensor([-2.4, 0.2, -1.2]), pose), folder / f"{name}.bin")
        write_kinect(np.full((480, 640), 2.0), folder / f"{name}.png")
        pixels = generator.integers(0, 256, (480, 640, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}_color.jpg")
    settings = {"preset": "tiny_room", "max_train_steps": 1, "global_batch_size": 1}
    assert train.main(train_flags(tmp_path / "nyu", tmp_path / "model", **settings)) == 0
    arguments = flags(
        dataroot=tmp_path / "nyu", weights=tmp_path / "model", output_dir=tmp_path / "pred", device="cpu"
    )
    assert evaluate.main([*arguments, "--pictures"]) == 0
    results = json.loads((tmp_path / "pred" / "results.json").read_text())
    assert results["frames"] == 1 and results["metrics"]["ssc"]["definition"]["eps"] == 1e-5
    assert (tmp_path / "pred" / "pictures" / "NYU0002_0000_completion.png").is_file()


@pytest.mark.slow
def test_offices_go_through_the_programs(tmp_path, monkeypatch):
    """SemanticTartanAir: a wall 4.04 m ahead of a level stereo pair, voxels voted from its depth."""
    coarse = GridSpec(TARTANAIR.spec.lower, (0.3, 0.3, 0.3), (40, 16, 40), "camera")
    changes = {"grid": coarse, "depth": DepthBins(0.1, 12.1, 1.0), "depth_channels": 8, "relation_prior": False}
    made = preset("tartanair", backbone="tiny", channels=4, decoder_channels=32, image_size=(96, 128), **changes)
    monkeypatch.setitem(PRESETS, "tiny_office", lambda: OccDepthPreset(made.model, made.recipe))
    generator = np.random.default_rng(0)
    for name in ("P000", "P005"):
        folder = tmp_path / "office" / "Easy" / name
        for kind in ("image_left", "image_right", "depth_left", "seg_left"):
            (folder / kind).mkdir(parents=True)
        poses = torch.eye(4, dtype=torch.float64).repeat(6, 1, 1)
        tartanair.write_poses(poses, folder / "pose_left.txt")
        poses[:, 1, 3] = 0.25
        tartanair.write_poses(poses, folder / "pose_right.txt")
        for side in ("left", "right"):
            pixels = generator.integers(0, 256, (480, 640, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"image_{side}" / f"000000_{side}.png")
        np.save(folder / "depth_left" / "000000_left_depth.npy", np.full((480, 640), 4.04, np.float32))
        np.save(folder / "seg_left" / "000000_left_seg.npy", np.full((480, 640), 90, np.uint8))
    settings = {"preset": "tiny_office", "max_train_steps": 1, "global_batch_size": 1}
    assert train.main(train_flags(tmp_path, tmp_path / "model", **settings)) == 0
    paths = {"dataroot": tmp_path, "weights": tmp_path / "model", "output_dir": tmp_path / "pred"}
    assert evaluate.main([*flags(device="cpu", **paths), "--pictures", "--meshes"]) == 0
    results = json.loads((tmp_path / "pred" / "results.json").read_text())
    assert results["frames"] == 1 and results["metrics"]["ssc"]["per_class"]["wall"]["tp"] >= 0
    assert (tmp_path / "pred" / "pictures" / "Easy_P005_000000_completion.png").is_file()
