"""Batches, counts and report of benchmarks/occdepth_models.py, without rendering anything."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.metrics import SSCIoU
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras, project_voxels
from syntheocc.occupancy.perception.occdepth.presets import preset

ROOT = Path(__file__).resolve().parents[2]
CONFIG = preset("tiny").model


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).parent == ROOT / "benchmarks":
            del sys.modules[name]


@pytest.fixture
def pairs():
    """Two scenes of two frames, random pictures and labels before KITTI's nominal rig."""
    from occdepth import sample
    from occdepth_world import StereoOrder, StereoPairs

    height, width = CONFIG.image_size
    one = sample(CONFIG, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    made = [
        {
            "images": torch.randint(0, 256, (2, 2, height, width, 3), generator=generator, dtype=torch.uint8),
            "velo2img": one.velo2img.repeat(2, 1, 1, 1),
            "intrinsics": one.intrinsics.repeat(2, 1, 1, 1),
            "depth": (60 * torch.rand(2, height, width, generator=generator)).half(),
            "labels": torch.stack([one.semantics[0].roll(i, 0) for i in range(2 * k, 2 * k + 2)]),
            "coarse": one.coarse.repeat(2, 1, 1, 1),
        }
        for k in range(2)
    ]
    order = StereoOrder("train", 0, 2, (0, 1), CONFIG.image_size, 4, CONFIG.coarse_factor, "cpu")
    return StereoPairs.of_all(made, order, CONFIG, Ranks(), torch.device("cpu"))


def test_mirrored_samples_show_the_mirrored_voxels(pairs):
    """A voxel of the mirrored grid is seen where its twin was, in a mirrored picture at the mirrored column."""
    rows = torch.tensor([1, 1, 1, 1])
    flips = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.bool)
    batch = pairs.batch(rows, flips=flips)
    width = CONFIG.image_size[1]
    found = project_voxels(StereoCameras.of_batch(batch), CONFIG.grid)
    shape = (4, 2, *CONFIG.grid.shape)
    pixels, depth = found.pixels.view(*shape, 2), found.depth.view(shape)
    ahead = depth[0] > 0.5
    mirrored = pixels[1].clone()
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    torch.testing.assert_close(mirrored[ahead], pixels[0][ahead], atol=1e-6, rtol=0)
    torch.testing.assert_close(pixels[2].flip(2)[ahead], pixels[0][ahead], atol=1e-6, rtol=0)
    assert torch.equal(batch.semantics[2].flip(1), batch.semantics[0])
    assert torch.equal(batch.coarse[3].flip(1), batch.coarse[0]) and torch.equal(
        batch.semantics[1], batch.semantics[0]
    )
    assert torch.equal(batch.images[1], batch.images[0].flip(-1)) and torch.equal(batch.images[2], batch.images[0])
    assert torch.equal(batch.depth[3], batch.depth[0].flip(-1)) and batch.flipped.tolist() == [
        False,
        True,
        False,
        True,
    ]
    tiles = batch.frustums
    assert torch.equal(tiles[2].flip(2), tiles[0])


def test_arms_differ_by_views_and_depth_and_learn(pairs, tmp_path):
    import occdepth_models
    from perception_models import Schedule, Training

    args = occdepth_models.parser().parse_args(["--output", str(tmp_path), "--preset", "tiny"])
    model = occdepth_models.contender(args)
    arms = {name: occdepth_models.config_of("tiny", name) for name in occdepth_models.ARMS}
    found = {name: (config.num_views, config.lift) for name, config in arms.items()}
    assert found["stereo_depth"] == (2, "flosp_depth") and found["stereo"] == (2, "flosp")
    assert found["mono_depth"] == (1, "flosp_depth") and found["mono"] == (1, "flosp")
    training = Training(model, occdepth_models.arm_of("mono_depth"), pairs, Schedule(2, 1, 1e-3), half=False)
    losses = training.one()
    assert {"depth", "frustum", "relation"} < set(losses)
    assert bool(torch.isfinite(losses["loss"])) and not training.skipped
    assert occdepth_models.config_of("tiny", "stereo_depth_published").depth_spacing == "mismatched"


def test_counts_are_the_metrics_and_the_report_says_who_is_better(pairs, tmp_path, capsys):
    import occdepth_models
    import occdepth_report

    from syntheocc.engine.files import atomic_write_json

    right = [0]

    def truth(batch):
        right[0] += 1
        return torch.where(batch.semantics == 255, 0, batch.semantics)

    exact = occdepth_models.count(truth, pairs, CONFIG)
    rough = occdepth_models.count(lambda batch: truth(batch).roll(1, 1), pairs, CONFIG)
    metric = SSCIoU(CONFIG.taxonomy)
    for row in range(4):
        batch = pairs.batch(torch.tensor([row]))
        metric.update(truth(batch).roll(1, 1), batch.semantics)
    figures = occdepth_report.figures_of(rough, CONFIG.taxonomy)
    assert float(figures["IoU"]) == pytest.approx(metric.compute()["iou"], abs=1e-6)
    assert float(figures["mIoU"]) == pytest.approx(metric.compute()["miou"], abs=1e-5)
    assert float(occdepth_report.figures_of(exact, CONFIG.taxonomy)["mIoU seen"]) == 1
    assert (exact["seen"].sum() < exact["all"].sum()) and (exact["all@12.8"].sum() < exact["all@25.6"].sum())
    for name, counts in (("stereo_depth", exact), ("mono", rough)):
        for level in ("new scenes", "new assets"):
            occdepth_models.keep_counts(tmp_path / name, level, counts)
        facts = {"steps": 1, "rounds": 1.0, "seconds_training": 1.0, "last_loss": 1.0, "skipped_steps": 0}
        atomic_write_json(tmp_path / name / "result.json", {**facts, "parameters": 1})
        (tmp_path / name / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    args = Namespace(output=tmp_path, resamples=20, preset="tiny", scored=(0, 1), commit="x", split="test")
    facts = {
        "schedule": {"steps": 1, "batch": 1},
        "learning_from": 4,
        "training_scenes": 2,
        "ranks": 1,
        "seconds": 1.0,
    }
    levels = {"new scenes": 2, "new assets": 2}
    report = occdepth_report.summarise(args, ["stereo_depth", "mono"], CONFIG, levels, {**facts, "failures": []})
    found = [one for one in report["differences"] if one["level"] == "new scenes"]
    assert [one["question"] for one in found] == ["both"] and found[0]["claimed"]["mIoU"]
    assert "stereo_depth - mono" in (tmp_path / "report.md").read_text() and (tmp_path / "curves.png").is_file()


def test_the_speed_benchmark_runs_every_line(tmp_path):
    import occdepth

    output = tmp_path / "occdepth.json"
    rows = occdepth.main(["--smoke", "--device", "cpu", "--output", str(output), "--parts", "losses", "lifting"])
    assert len(rows) == 6 and output.is_file() and all("FAILED" not in row["what"] for row in rows)
