"""What the 3D judge reads, and the tables of benchmarks/occupancy_judge.py; the whole program at a tiny size."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from warm_start import run_program

from syntheocc.occupancy.cameras import NUSCENES_CAMERAS
from syntheocc.occupancy.perception.dataset import OccupancyFrames, Sampling
from syntheocc.occupancy.perception.sparseocc import SparseOcc
from syntheocc.occupancy.perception.transforms import ImageAugmentation
from syntheocc.occupancy.taxonomy import OCC3D_TAXONOMY, SYNTHEOCC_TAXONOMY

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


def test_the_judge_reads_as_the_data_set_does(tmp_path):
    """The projections of a frame and its history are those that files of the same drive give, in the same order."""
    from occupancy_frames import Reader, asked

    from syntheocc.engine.files import atomic_write_image
    from syntheocc.worlds.scene import make_scene
    from syntheocc.worlds.timeline import key_frame

    model = SparseOcc.from_preset("tiny").eval()
    reader = Reader(model, NUSCENES_CAMERAS)
    scene = make_scene(5, split="val", image_size=(96, 56), key_frames=3)
    (one,) = asked([(4, scene)], reader.preset, reader.frames)
    assert one.index in (1, 2) and one.times == [scene.key_times[one.index], scene.key_times[one.index - 1]]
    assert one.observed.any() and len(one.origins) >= 1

    frames = [key_frame(scene, i, tmp_path) for i in range(3)]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 6, 56, 96, 3), generator=generator, dtype=torch.uint8)
    pixels[:] = pixels[:, :, :1, :1]  # flat pictures, so that two ways of resampling agree
    for t, frame in enumerate(frames):
        for v, path in enumerate(frame.image_paths.values()):
            atomic_write_image(path.with_suffix(".png"), pixels[t, v].numpy())
    frames = [
        type(f)(**{**vars(f), "image_paths": {n: p.with_suffix(".png") for n, p in f.image_paths.items()}})
        for f in frames
    ]
    height, width = model.config.image_size
    sampling = Sampling(num_frames=2, image=ImageAugmentation(height=height, width=width))
    data = OccupancyFrames(frames, sampling, model.config.grid)
    expected = data[one.index]
    rigs, poses = [frames[one.index - i].cameras for i in range(2)], [scene.ego.pose_at(t) for t in one.times]
    moment = SimpleNamespace(asked=one, rigs=rigs, ego2global=poses)
    given = pixels[[one.index, one.index - 1]].permute(0, 1, 4, 2, 3)
    images, ego2img = reader.inputs(given, moment, still=False)
    assert (ego2img - expected.ego2img).abs().max() < 0.02
    assert torch.equal(images, expected.images)
    # the older images are another time's; with `still` they are the current ones
    assert not torch.equal(images[0, 0], images[0, 1])
    images, ego2img = reader.inputs(given, moment, still=True)
    assert torch.equal(images[0, 0], images[0, 1]) and torch.equal(ego2img[0, 0], ego2img[0, 1])


def counts_of(hits, misses, classes=18):
    """One scene's counts of a class that was read in `hits` of `hits + misses` places, on voxels and on rays."""
    voxels = torch.zeros(classes, classes + 1, dtype=torch.int64)
    voxels[4, 4], voxels[4, 17] = hits, misses
    rays = torch.zeros(classes + 1, classes + 1, 4, dtype=torch.int64)
    rays[4, 4, 0], rays[4, 17, 3] = hits, misses
    return {"camera": voxels, "rays": rays}


@pytest.fixture
def found():
    """Three scenes of one rank; in the second only the 2D judge is content, in the third only the 3D judge."""
    from occupancy_judge_run import ROWS, Found

    share = dict(zip(ROWS, (80, 60, 30, 5, 20, 10), strict=True))
    in_3d = {**{row: (share[row],) * 3 for row in ROWS}, "generated": (30, 5, 55)}
    in_2d = {**{row: (share[row],) * 3 for row in ROWS}, "generated": (30, 55, 5)}
    one = Found(scenes=[0, 1, 2], about=[{"caption": "c", "weather": "clear", "light": "day"}] * 3)
    for history in ("drive", "still"):
        one.counts[history] = {row: [counts_of(n, 100 - n) for n in in_3d[row]] for row in ROWS}
    for row in ROWS:
        for n in in_2d[row]:
            pixels = torch.zeros(2, 17, 17, dtype=torch.int64)
            pixels[:, 1, 1], pixels[:, 1, 2] = n, 100 - n
            one.pixels.setdefault(row, []).append(pixels)
    return one


def test_tables_by_hand(found, tmp_path, monkeypatch):
    import reporting
    from occupancy_judge_report import disagreements, summarise

    monkeypatch.setattr(reporting, "provenance", lambda args: {"chip": "hand", "split": "val"})
    args = SimpleNamespace(resamples=100, output=tmp_path)
    chosen = disagreements([found], OCC3D_TAXONOMY, 1)
    assert {n: one["kind"] for n, one in chosen["scenes"].items()} == {
        1: "2D judge content, 3D judge not",
        2: "3D judge content, 2D judge not",
    }
    assert chosen["scenes"][1]["change_3D"] == pytest.approx(-0.55)
    assert list(chosen["scenes"][1]["lost_3D"]) == ["car"]
    assert chosen["rank_correlation"].value == pytest.approx(-1.0)
    facts = {"ranks": 1, "spent": 1.0, "frames_a_sample": 2, "failures": []}
    report = summarise(args, [found], OCC3D_TAXONOMY, SYNTHEOCC_TAXONOMY, chosen, facts)
    table = report["tables"]["mIoU camera (drive)"]
    assert table["rows"]["generated"]["value"] == pytest.approx(0.30) and table["floor"] == "nearest training frame"
    assert table["headline"]["value"] == pytest.approx((0.30 - 0.20) / (0.60 - 0.20))
    assert report["tables"]["RayIoU (drive)"]["of_vae"]["generated"]["value"] == pytest.approx(0.5)
    assert report["tables"]["2D mIoU, covered"]["rows"]["real"]["value"] == pytest.approx(0.8)
    assert report["classes"]["car"]["vae"] == pytest.approx({"IoU": 0.6, "RayIoU": 0.6, "2D": 0.6})
    assert json.loads((tmp_path / "report.json").read_text())["scenes"] == 3
    assert "3D judge content, 2D judge not" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_the_program_at_a_tiny_size(tmp_path):
    done = run_program(ROOT / "benchmarks" / "occupancy_judge.py", "--smoke", "--output", tmp_path, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["scenes"] == 2 and report["failures"] == [] and len(report["disagreement"]["scenes"]) == 2
    assert len(list(tmp_path.glob("apart-*.jpg"))) == 2
