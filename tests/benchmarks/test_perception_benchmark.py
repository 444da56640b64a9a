"""Batches, scores and schedule of benchmarks/perception.py; the whole program at a tiny size."""

import json
import math
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from warm_start import run_program

from syntheocc.evaluation.bootstrap import Resamples
from syntheocc.occupancy.grids import GridSpec, Preset
from syntheocc.occupancy.metrics import OccupancyIoU, RayIoU, RayPQ
from syntheocc.occupancy.perception.cached import CachedFrames, FrameStore
from syntheocc.occupancy.perception.dataset import Sampling
from syntheocc.occupancy.perception.transforms import (
    GridTransform,
    ImageAugmentation,
    ImageTransform,
    transform_labels,
)
from syntheocc.occupancy.taxonomy import OCC3D_TAXONOMY
from syntheocc.occupancy.transforms import invert_rigid

ROOT = Path(__file__).resolve().parents[2]
SPEC = GridSpec((-8.0, -8.0, -1.0), (0.8, 0.8, 0.8), (20, 20, 4))


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch):
    """A benchmark imports its neighbours as a script does: from its own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).parent == ROOT / "benchmarks":
            del sys.modules[name]


def random(*shape, high=256, seed=0, dtype=torch.uint8):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def store():
    """Two drives of three key frames, two cameras that move along."""
    pose = torch.eye(4, dtype=torch.float64).repeat(6, 2, 1, 1)
    pose[..., 0, 3] = torch.arange(6.0)[:, None]
    pose[:, 1, 1, 3] = 0.7
    ego = torch.eye(4, dtype=torch.float64).repeat(6, 1, 1)
    ego[:, 0, 3] = torch.arange(6.0) + 0.2
    intrinsics = torch.tensor([[20.0, 0, 15.5], [0, 20.0, 11.5], [0, 0, 1]], dtype=torch.float64).repeat(6, 2, 1, 1)
    return FrameStore(
        images=random(6, 2, 24, 32, 3),
        intrinsics=intrinsics,
        cam2global=pose,
        grid2global=ego,
        previous=torch.tensor([0, 0, 1, 3, 3, 4]),
        tokens=[f"f{i}" for i in range(6)],
        semantics=random(6, *SPEC.shape, high=18, seed=1),
        instances=random(6, *SPEC.shape, high=9, seed=2, dtype=torch.int16),
    )


@pytest.fixture
def drives(store):
    from perception_data import EXACT, Drives

    window = ImageAugmentation(height=16, width=32).for_test(24, 32)
    projection = torch.eye(4, dtype=torch.float64).repeat(6, 2, 1, 1)
    projection[..., :3, :3] = store.intrinsics
    return Drives(
        store.images[:, :, window.top : window.top + 16],
        window.matrix() @ projection @ invert_rigid(store.cam2global),
        store.grid2global,
        3,
        {EXACT: (store.semantics, store.instances.to(torch.uint8))},
    )


def test_a_batch_holds_the_samples_of_the_cached_frames(store, drives):
    sampling = Sampling(num_frames=3, image=ImageAugmentation(height=16, width=32))
    reference = CachedFrames(store, sampling, SPEC)
    rows = torch.tensor([4, 0, 2])
    batch = drives.batch(rows, 3, "exact")
    for i, row in enumerate(rows.tolist()):
        sample = reference.sample(row)
        assert torch.equal(batch.images[i], sample.images[0])
        torch.testing.assert_close(batch.ego2img[i], sample.ego2img[0], rtol=1e-6, atol=1e-5)
        assert torch.equal(batch.semantics[i], sample.semantics[0])
        assert torch.equal(batch.instances[i], sample.instances[0])


def test_mirrored_batches_are_what_the_transforms_make(drives):
    rows = torch.tensor([1, 5, 2, 3])
    flips = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.bool)
    plain, mirrored = drives.batch(rows, 2, "exact"), drives.batch(rows, 2, "exact", flips)
    for i, (image, x, y) in enumerate(flips.tolist()):
        turn = GridTransform(flip_x=x, flip_y=y)
        a = ImageTransform(1.0, 0, 0, 16, 32, flip=image).matrix()
        expected = a @ plain.ego2img[i].double() @ torch.linalg.inv(turn.matrix())
        torch.testing.assert_close(mirrored.ego2img[i].double(), expected, rtol=1e-5, atol=1e-4)
        assert torch.equal(mirrored.images[i], plain.images[i].flip(-1) if image else plain.images[i])
        for name in ("semantics", "instances"):
            assert torch.equal(getattr(mirrored, name)[i], transform_labels(getattr(plain, name)[i], SPEC, turn))


def test_figures_of_all_scenes_are_those_of_the_metrics(drives):
    from perception_data import Exam
    from perception_scores import count, figures

    origins = [torch.tensor([[0.0, 0.0, 0.3], [2.0, 1.0, 0.4]], dtype=torch.float64)] * 6
    masks = {"camera": random(6, *SPEC.shape, high=2, seed=3).bool()}
    truth, instances = drives.labels["exact"]
    truth[truth > 9] = 17
    guess = torch.where(random(*truth.shape, high=3, seed=4) > 0, truth, 11)
    found = torch.where(guess == 17, 0, random(*truth.shape, high=3, seed=5)).int()
    exam = Exam(drives, torch.arange(6), 2, masks, origins)
    (counts,) = count(lambda rows: ([guess[rows]], (guess[rows], found[rows])), exam, Preset(SPEC, OCC3D_TAXONOMY))
    values = figures(counts, Resamples(3, 5), OCC3D_TAXONOMY)
    camera, everywhere = OccupancyIoU(OCC3D_TAXONOMY, "camera"), OccupancyIoU(OCC3D_TAXONOMY, None)
    rays, quality = RayIoU(OCC3D_TAXONOMY, SPEC), RayPQ(OCC3D_TAXONOMY, SPEC)
    camera.update(guess, truth, masks["camera"])
    everywhere.update(guess, truth)
    rays.update(guess, truth, origins)
    quality.update(guess, truth, found, instances.int(), origins)
    expected = {
        "mIoU camera": camera.compute()["mIoU"],
        "IoU camera": camera.compute()["IoU"],
        "mIoU all": everywhere.compute()["mIoU"],
        **{name: rays.compute()[name] for name in ("RayIoU", "RayIoU@1", "RayIoU@2", "RayIoU@4")},
        "RayPQ": quality.compute()["RayPQ"],
    }
    assert {name: float(values[name][0]) for name in expected} == pytest.approx(expected, rel=1e-9)
    assert len(values["RayPQ"]) == 6 and "mIoU lidar" not in values


def test_the_commonest_class_of_each_voxel():
    from perception_scores import commonest

    labels = torch.tensor([[17, 4, 2], [17, 4, 1], [11, 2, 1], [11, 4, 17]], dtype=torch.uint8)[:, None, None]
    assert commonest(labels, 18).tolist() == [[[11, 4, 1]]]


def test_every_arm_sees_the_same_samples_and_the_rate_ends_at_zero():
    from perception_models import Schedule, draws

    schedule = Schedule(steps=1000, batch=4, learning_rate=1.0, seed=3)
    first, second = (list(islice(draws(schedule, 10), 5)) for _ in range(2))
    assert all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert sorted(torch.cat([rows for rows, _ in first]).tolist()) == sorted([*range(10)] * 2)
    assert schedule.rate(0) == pytest.approx(1 / 50) and schedule.rate(1000) == 0
    assert schedule.rate(49) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.049)))


@pytest.mark.slow
def test_two_processes_train_examine_and_report(tmp_path):
    arguments = ["--smoke", "--device", "cpu", "--arms", "1f,4f_accumulated", "--output", str(tmp_path)]
    reports = []
    for levels in ("val,new rig", "val"):  # the second finds its arms done
        result = run_program("benchmarks/perception.py", *arguments, "--levels", levels, ranks=2, cwd=ROOT)
        assert result.returncode == 0, result.stderr[-3000:]
        reports.append(json.loads((tmp_path / "report.json").read_text()))
    assert "done before" in result.stdout
    report, again = reports
    assert again["levels"]["val"]["1f"]["figures"] == report["levels"]["val"]["1f"]["figures"]
    assert report["failures"] == [] and report["ranks"] == 2
    assert set(report["levels"]) == {"val", "new rig"}
    for rows in report["levels"].values():
        assert list(rows) == ["all free", "commonest class", "1f", "4f_accumulated"]
        assert rows["commonest class"]["figures"]["mIoU camera"]["value"] > 0
        assert rows["all free"]["figures"]["mIoU camera"]["value"] == 0
        assert {"mIoU lidar", "RayPQ", "RayIoU accumulated"} <= set(rows["1f"]["figures"])
    names = {path.name for path in tmp_path.iterdir()}
    assert {"report.md", "curves.png", "samples", "model", "plan.json"} <= names
    from syntheocc.occupancy.perception.sparseocc import SparseOcc

    model = SparseOcc.from_pretrained(tmp_path / "model")
    assert model.config.panoptic and next(model.parameters()).dtype == torch.float32


def test_an_operator_that_fails_or_differs_on_the_machine_is_done_without(monkeypatch):
    import perception_checks

    from syntheocc.occupancy.ops import distance_attention, msmv_sampling

    def broken(backend):
        if backend is None:
            raise RuntimeError("no such kernel")
        return [torch.ones(1)]

    for module in (distance_attention, msmv_sampling):
        monkeypatch.setattr(module, "choose_backend", lambda *_: "triton")
    monkeypatch.setattr(perception_checks, "_attention", lambda device: broken)
    monkeypatch.setattr(perception_checks, "_sampling", lambda device: lambda backend: [torch.tensor([2.0, 2.01])])
    found = perception_checks.checked_operators(torch.device("cuda"))
    assert found == {"distance_attention": "torch: RuntimeError: no such kernel", "msmv_sampling": "triton"}
    assert distance_attention.choose_backend() == "torch" and msmv_sampling.choose_backend() == "triton"
    assert perception_checks.checked_operators(torch.device("cpu")) == {}
