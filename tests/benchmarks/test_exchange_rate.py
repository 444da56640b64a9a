"""Which frames an arm learns from, the exchange rate by hand, and benchmarks/exchange_rate.py at a tiny size."""

import json
import math
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from warm_start import run_program

from syntheocc.engine.ranks import Ranks
from syntheocc.evaluation.bootstrap import Resamples
from syntheocc.occupancy.grids import OCC3D_NUSCENES, SYNTHEOCC, OccupancyGrid

ROOT = Path(__file__).resolve().parents[2]


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


def test_the_first_tenths_lie_within_each_other_and_on_all_ranks():
    from exchange_data import share

    numbers = {tenths: [n for n in range(200) if share(n, tenths)] for tenths in (1, 3, 10)}
    assert [len(numbers[t]) for t in (1, 3, 10)] == [20, 60, 200]
    assert set(numbers[1]) < set(numbers[3]) < set(numbers[10])
    assert {n % 4 for n in numbers[1]} == {0, 1, 2, 3}


def scene(number, fill, labels=True):
    made = {
        "number": number,
        "images": torch.full((2, 1, 2, 3, 3), fill, dtype=torch.uint8),
        "global2img": torch.eye(4, dtype=torch.float64).repeat(2, 1, 1, 1),
        "grid2global": torch.eye(4, dtype=torch.float64).repeat(2, 1, 1),
    }
    if labels:
        frames = torch.tensor([fill, fill + 1], dtype=torch.uint8)[:, None, None, None]
        made |= {name: frames.expand(2, 2, 2, 1).clone() for name in ("semantics", "instances")}
    return made


def test_a_pool_gives_every_picture_its_own_label():
    """Drawings share the label of their photograph; edited and new occupancy has labels of its own."""
    from exchange_data import NEW, pool_of_all
    from exchange_run import ARMS, rows_of
    from perception_data import EXACT

    parts = {
        "real": [scene(0, 10), scene(1, 20), scene(2, 30)],
        "drawn 1": [scene(2, 130, False), scene(0, 110, False)],
        "edited": [scene(0, 40)],
        "new": [scene(NEW, 50)],
    }
    pool = pool_of_all(parts, Ranks(), torch.device("cpu"))
    assert {name: len(rows) for name, rows in pool.blocks.items()} == {"real": 6, "drawn 1": 4, "edited": 2, "new": 2}
    flips = torch.zeros(14, 3, dtype=torch.bool)
    batch = pool.drives.batch(torch.arange(14), 1, EXACT, flips)
    assert batch.images.shape == (14, 1, 1, 3, 2, 3)
    assert batch.images[:, 0, 0, 0, 0, 0].tolist() == [10, 10, 20, 20, 30, 30, 130, 130, 110, 110, 40, 40, 50, 50]
    assert batch.semantics[:, 0, 0, 0].tolist() == [10, 11, 20, 21, 30, 31, 30, 31, 10, 11, 40, 41, 50, 51]
    # scene 0 is in the first tenth, 1 in the first three, 2 too
    assert rows_of(pool, ARMS["10"]).tolist() == [0, 1]
    assert rows_of(pool, ARMS["10+1x"]).tolist() == [0, 1, 8, 9]
    assert rows_of(pool, ARMS["10+1x edited"]).tolist() == [0, 1, 10, 11]
    assert rows_of(pool, ARMS["10+1x new"]).tolist() == [0, 1, 12, 13]
    assert rows_of(pool, ARMS["30+1x"]).tolist() == [*range(6), 6, 7, 8, 9]


def test_training_draws_from_its_rows_only(monkeypatch):
    import exchange_run
    from exchange_data import pool_of_all
    from perception_models import Schedule, Training

    monkeypatch.setattr(Training, "__init__", lambda self, *_: None)  # no network: only what is drawn
    pool = pool_of_all({"real": [scene(0, 10), scene(1, 20)]}, Ranks(), torch.device("cpu"))
    rows = torch.tensor([0, 2, 3])
    training = exchange_run.MixedTraining(None, pool, rows, Schedule(4, 3, 1e-3))
    assert all(sorted(chosen.tolist()) == [0, 2, 3] for chosen, _ in islice(training.draws, 4))


def test_the_exchange_rate_by_hand():
    """m = 0.1 + 0.05 ln n: with 100 real and 100 generated frames, 0.05 ln 2 more than with 100 real ones, one
    generated frame is worth one real frame; with nothing gained none, with a loss less than none."""
    from exchange_report import exchange_of, gains, over_seeds, slope_of

    frames = (100, 300, 1000)
    curve = [torch.full((3,), 0.1 + 0.05 * math.log(n), dtype=torch.float64) for n in frames]
    slope = slope_of(frames, curve)
    assert slope.tolist() == pytest.approx([0.05] * 3)
    gain = torch.tensor([0.05 * math.log(2), 0.0, 0.05 * math.log(0.5)], dtype=torch.float64)
    assert exchange_of(gain, slope, 100, 100).tolist() == pytest.approx([1.0, 0.0, -0.5])
    assert exchange_of(gain, slope, 100, 200).tolist() == pytest.approx([0.5, 0.0, -0.25])
    assert exchange_of(gain, -slope, 100, 100).isnan().all()

    draws = Resamples(3, 2, seed=0)
    arms = {name: {"RayIoU": value} for name, value in zip(("10", "30", "100"), curve, strict=True)}
    arms["10+1x"] = {"RayIoU": curve[0] + gain[0]}
    for own in arms.values():
        own |= dict.fromkeys(("mIoU camera", "mIoU camera, rare", "RayIoU, rare"), own["RayIoU"])
    number = {"10": 100, "30": 300, "100": 1000, "10+1x": 200}
    found = gains(arms, number, draws)
    assert list(found) == ["10+1x"] and found["10+1x"]["generated"] == 100
    assert found["10+1x"]["RayIoU"]["exchange"].value == pytest.approx(1.0)
    # three seeds: their mean on the sample, means of seeds drawn anew in the resamples
    seeds = [torch.full((50,), float(value)) for value in (1, 2, 6)]
    mean = over_seeds(seeds)
    assert mean[0] == 3 and set(mean[1:].tolist()) > {3.0} and mean.min() >= 1 and mean.max() <= 6


def test_rare_objects_stand_in_both_grids_and_are_told_apart():
    from exchange_data import RARE, with_rare

    lidar2ego = torch.eye(4, dtype=torch.float64)
    lidar2ego[2, 3] = 1.84
    fine = torch.zeros(SYNTHEOCC.spec.shape, dtype=torch.uint8)
    fine[:, :, 15] = SYNTHEOCC.taxonomy.id_of("driveable_surface")  # z -2.0 .. -1.8: ego's -0.16 .. 0.04
    coarse = torch.full(OCC3D_NUSCENES.spec.shape, 17, dtype=torch.uint8)
    coarse[:, :, 2] = OCC3D_NUSCENES.taxonomy.id_of("driveable_surface")
    before = OccupancyGrid(fine, *SYNTHEOCC, grid2ego=lidar2ego), OccupancyGrid(coarse, *OCC3D_NUSCENES)
    grids = with_rare(*before, None, seed=3)
    assert grids[3] >= 3
    for grid, old in zip(grids[:2], before, strict=True):
        added = grid.labels[grid.labels != old.labels].unique()
        names = {grid.taxonomy.classes[i] for i in added.tolist()}
        assert names and names <= {*RARE}
    things = grids[2] > 0
    assert things.any() and bool(((grids[1].labels != coarse) | ~things).all())
    again = with_rare(*before, None, seed=3)
    assert torch.equal(again[0].labels, grids[0].labels) and torch.equal(again[2], grids[2])


@pytest.mark.slow
def test_the_program_at_a_tiny_size(tmp_path):
    done = run_program(ROOT / "benchmarks" / "exchange_rate.py", "--smoke", "--output", tmp_path, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failures"] == [] and len(report["runs"]) == 6 and report["inserted_objects"] > 0
    assert set(report["levels"]) == {"val", "new scenes", "new assets"}
