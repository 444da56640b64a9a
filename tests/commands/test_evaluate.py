"""`syntheocc evaluate`: figures as by hand, resumed, in processes and ranks; errors that name the sample."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from syntheocc.commands import evaluate
from syntheocc.commands.evaluate import EvaluateConfig, run
from syntheocc.engine.flags import parse_flags
from syntheocc.occupancy import OCC3D_NUSCENES, OPENOCC_V2, OccupancyGrid
from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.data.infos_writing import write_infos
from syntheocc.occupancy.data.occ3d import Occ3DLabels, occ3d_path, write_occ3d
from syntheocc.occupancy.metrics import OccupancyIoU, RayIoU, RayPQ, panoptic_instances, scene_origins

ROOT = Path(__file__).resolve().parents[2]
SHAPE = OCC3D_NUSCENES.spec.shape
COUNT = 5


class Folders:
    """A data root with five labelled frames of two scenes, and a folder of predictions."""

    def __init__(self, root, frames, grids, masks, preds):
        self.root, self.frames, self.grids, self.masks, self.preds = root, frames, grids, masks, preds
        self.gt, self.pred, self.out = root / "nuscenes", root / "pred", root / "pred_evaluation"

    def config(self, **options):
        return EvaluateConfig(**({"pred": self.pred, "gt": self.gt, "workers": 1} | options))

    def results(self):
        return json.loads((self.out / "results.json").read_text())

    def write(self, i, **arrays):
        np.savez_compressed(self.pred / f"{self.frames[i].token}.npz", **arrays)


@pytest.fixture
def folders(tmp_path, tiny_dataset):
    g = torch.Generator().manual_seed(0)
    frames, grids, masks, preds = [], [], [], []
    gt = tmp_path / "nuscenes"
    for i in range(COUNT):
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = 4.0 * i
        box = torch.eye(4, dtype=torch.float64)
        box[:3, 3] = torch.tensor([10.0, 2.0, 0.8])
        frame = replace(
            tiny_dataset.frames[i % 3],
            token=f"t{i}",
            scene=f"scene-{i // 3}",
            timestamp_us=10**15 + 500_000 * i,
            ego2global=pose,
            boxes=Boxes(box[None], torch.tensor([[4.4, 2.0, 1.6]]), ("car",)),
        )
        labels = torch.full(SHAPE, 17, dtype=torch.uint8)
        labels[:, :, 1] = 11
        labels[120:131, 103:108, 3:7] = 4
        labels[160 + i, 40:160, 2:12] = 15
        mask = torch.zeros(SHAPE, dtype=torch.bool)
        mask[100:] = True
        grid = OccupancyGrid(labels, *OCC3D_NUSCENES)
        write_occ3d(Occ3DLabels(grid, mask, mask), occ3d_path(gt / "gts", frame))
        pred = torch.where(torch.rand(SHAPE, generator=g) < 0.1, 17, labels.roll(1, 0)).to(torch.uint8)
        frames.append(frame)
        grids.append(grid)
        masks.append(mask)
        preds.append(pred)
    # mmdetection3d's infos hold no scene names: those of the label folders count.
    write_infos(gt / "nuscenes_infos_val.pkl", frames, style="mmdet3d_v1.0", data_root=gt)
    made = Folders(tmp_path, frames, grids, masks, preds)
    made.pred.mkdir()
    for i, pred in enumerate(preds):
        made.write(i, pred=pred.numpy(), instances=(pred == 4).numpy().astype(np.uint8))
    return made


def test_figures_are_those_of_the_metrics(folders, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "PART", 2)
    assert run(folders.config(metrics="miou,rayiou,raypq")) == 0
    origins = scene_origins(folders.frames)
    assert [len(origins[f"t{i}"]) for i in range(COUNT)] == [3, 3, 3, 2, 2]
    miou, rayiou, raypq = OccupancyIoU(), RayIoU(), RayPQ()
    for frame, grid, mask, pred in zip(folders.frames, folders.grids, folders.masks, folders.preds, strict=True):
        miou.update(pred, grid, mask)
        rayiou.update(pred, grid, [origins[frame.token]])
        true_instances = panoptic_instances(grid, frame.boxes)
        raypq.update(pred, grid, (pred == 4).int(), true_instances, [origins[frame.token]])
    found = folders.results()
    assert found["frames"] == COUNT and found["missing"] == []
    for name, metric in (("miou", miou), ("rayiou", rayiou), ("raypq", raypq)):
        assert found["metrics"][name] == json.loads(json.dumps(metric.compute().to_json()))
    assert 0.3 < found["metrics"]["rayiou"]["figures"]["RayIoU"] < 1
    printed = capsys.readouterr().out
    assert "RayIoU@1" in printed and "mask: camera" in printed and "5 frames" in printed
    assert printed.startswith((folders.out / "results.txt").read_text())


def test_it_goes_on_where_it_stopped(folders, monkeypatch):
    monkeypatch.setattr(evaluate, "PART", 2)
    counted = []
    real = evaluate.count_part
    monkeypatch.setattr(evaluate, "count_part", lambda job, rank: counted.append(len(job[1])) or real(job, rank))
    config = folders.config(metrics="miou")
    run(config)
    first = folders.results()
    assert counted == [2, 2, 1]
    (folders.out / "parts" / "part-00001.json").unlink()
    (folders.out / "parts" / "part-00002.json").write_text("{half")
    run(config)
    assert counted[3:] == [2, 1] and folders.results() == first
    # Other predictions count anew, even of the same size and time (unpacked from an archive).
    copied = folders.root / "copied"
    shutil.copytree(folders.pred, copied)
    run(replace(config, pred=copied, out=folders.out))
    assert counted[5:] == [2, 2, 1] and folders.results()["metrics"] == first["metrics"]
    run(config)
    del counted[5:]
    # A prediction that was made anew is counted anew, and so is everything under another mask.
    folders.write(0, semantics=folders.grids[0].labels.numpy())
    run(config)
    assert counted[5:] == [2] and folders.results() != first
    run(folders.config(metrics="miou", mask="lidar"))
    assert counted[6:] == [2, 2, 1]
    assert folders.results()["metrics"]["miou"]["definition"]["mask"] == "lidar"


def test_ranks_give_the_same(folders, launch, monkeypatch):
    monkeypatch.setattr(evaluate, "PART", 2)
    run(folders.config(out=folders.root / "alone"))
    alone = json.loads((folders.root / "alone" / "results.json").read_text())
    flags = [f"--pred={folders.pred}", f"--gt={folders.gt}", "--workers=1"]
    done = launch("tests/commands/small_parts.py", *flags, ranks=2)
    assert done.returncode == 0, done.stderr
    assert folders.results() == alone
    assert len(list((folders.out / "parts").iterdir())) == 3


def test_more_ranks_than_parts(folders, launch):
    run(folders.config(out=folders.root / "alone", metrics="miou"))
    flags = [f"--pred={folders.pred}", f"--gt={folders.gt}", "--workers=1", "--metrics=miou", "--max_samples=2"]
    done = launch("tests/commands/small_parts.py", *flags, ranks=2)
    assert done.returncode == 0, done.stderr
    assert folders.results()["frames"] == 2 and len(list((folders.out / "parts").iterdir())) == 1


def test_a_worker_that_is_killed_ends_the_job(folders, launch):
    flags = [f"--pred={folders.pred}", f"--gt={folders.gt}", "--workers=2", "--metrics=miou"]
    done = launch("tests/commands/small_parts.py", *flags, WORKER_DIES="1")
    assert done.returncode == 2 and "a worker process was killed" in done.stderr


def test_workers_end_with_a_job_that_is_killed(folders):
    flags = [f"--pred={folders.pred}", f"--gt={folders.gt}", "--workers=2", "--metrics=miou"]
    with subprocess.Popen(
        [sys.executable, "tests/commands/small_parts.py", *flags],
        cwd=ROOT, env=os.environ | {"WORKER_SLEEPS": "1"}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as job:  # fmt: skip
        assert job.stdout.readline().strip() == "asleep"
        job.kill()
        # The pipe is closed once the workers, which hold it too, are gone.
        _, written = job.communicate(timeout=60)
    run(folders.config(metrics="miou"))
    assert folders.results()["frames"] == COUNT, written


def test_processes_from_the_command_line_give_the_same(folders, capsys, monkeypatch):
    from syntheocc.commands import main

    monkeypatch.setattr(evaluate, "PART", 2)
    run(folders.config(out=folders.root / "alone", metrics="miou", mask="none", max_samples=3))
    alone = json.loads((folders.root / "alone" / "results.json").read_text())
    flags = ["--pred", str(folders.pred), "--gt", str(folders.gt), "--metrics", "miou", "--workers", "2"]
    assert main(["evaluate", *flags, "--mask", "none", "--max-samples", "3"]) == 0
    assert folders.results() == alone and alone["frames"] == 3
    config = parse_flags(EvaluateConfig, [f"--pred={folders.pred}", "--metrics=miou,raypq", "--allow_missing"])
    assert config.names == ["miou", "raypq"] and config.allow_missing
    assert main(["evaluate", "--pred", str(folders.pred / "nowhere")]) == 2
    assert "nowhere are not a folder" in capsys.readouterr().err


def test_other_layouts_and_no_poses_for_miou(folders):
    (folders.gt / "nuscenes_infos_val.pkl").unlink()
    for i, frame in enumerate(folders.frames[:2]):
        target = folders.root / "flashocc" / frame.scene / frame.token / "pred.npz"
        target.parent.mkdir(parents=True)
        np.savez_compressed(target, pred=folders.preds[i].numpy())
    config = folders.config(pred=folders.root / "flashocc", metrics="miou", out=folders.out)
    run(config)
    # Nothing says which were due, so the labelled frames without a prediction are no error, but they are told.
    assert folders.results()["frames"] == 2 and folders.results()["missing"] == ["t2", "t3", "t4"]
    assert "3 frames without prediction were left out, the first is t2" in (folders.out / "results.txt").read_text()
    with pytest.raises(ValueError, match="rayiou needs the poses of the drive: none of .*nuscenes_infos_val.pkl"):
        run(folders.config(metrics="rayiou"))


def test_what_has_neither_label_nor_prediction_can_be_left_out(folders):
    for k in (1, 3):
        occ3d_path(folders.gt / "gts", folders.frames[k]).unlink()
    (folders.pred / "t1.npz").unlink()
    with pytest.raises(ValueError, match="2 of 5 frames have no labels.npz, the first is sample t1"):
        run(folders.config(metrics="miou"))
    with pytest.raises(ValueError, match="1 of 4 frames have no labels.npz, the first is sample t3"):
        run(folders.config(metrics="miou", allow_missing=True))
    (folders.pred / "t3.npz").unlink()
    run(folders.config(metrics="rayiou", allow_missing=True))
    assert folders.results()["missing"] == ["t1", "t3"] and folders.results()["frames"] == 3
    for path in folders.pred.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="none of the 3 frames has a prediction"):
        run(folders.config(metrics="miou", allow_missing=True))


def test_missing_predictions_are_refused_or_left_out(folders):
    (folders.pred / "t3.npz").unlink()
    with pytest.raises(ValueError, match="1 of 5 frames have no prediction, the first is sample t3"):
        run(folders.config(metrics="miou"))
    assert not folders.out.exists(), "refused before any work"
    run(folders.config(metrics="miou", allow_missing=True))
    assert folders.results()["missing"] == ["t3"] and folders.results()["frames"] == 4
    for path in folders.pred.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="none of the 5 frames has a prediction"):
        run(folders.config(metrics="miou", allow_missing=True))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pred": np.zeros((200, 200, 15), np.uint8)}, r"sample t1: .*t1.npz: .*shape \(200, 200, 15\)"),
        ({"pred": np.full(SHAPE, 18, np.uint8)}, "sample t1: .*t1.npz: .*class id 18"),
        ({"pred": np.zeros(SHAPE, np.float32)}, "sample t1: .*t1.npz: .*integers"),
        ({"pred": np.full(SHAPE, 17).astype(object)}, "sample t1: .*t1.npz: cannot be read .*pickled"),
        ({"logits": np.zeros(3)}, "sample t1: .*t1.npz: lacks an array pred or semantics, has"),
        (
            {"pred": np.zeros(SHAPE, np.uint8), "instances": np.zeros(3, np.uint8)},
            "sample t1: the predicted instances",
        ),
    ],
)
def test_bad_predictions_are_named(folders, arrays, message):
    folders.write(1, **arrays)
    with pytest.raises(ValueError, match=message):
        run(folders.config(metrics="miou,raypq"))


def test_bad_files_and_labels_are_named(folders, warm_workers):
    (folders.pred / "t1.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="sample t1: .*t1.npz: cannot be read"):
        run(folders.config(metrics="miou", workers=2))
    occ3d_path(folders.gt / "gts", folders.frames[4]).unlink()
    with pytest.raises(ValueError, match="1 of 5 frames have no labels.npz, the first is sample t4"):
        run(folders.config(metrics="miou"))
    with pytest.raises(ValueError, match="no occ3d labels: looked for"):
        run(folders.config(gt=folders.pred))
    with pytest.raises(ValueError, match="nowhere.pkl"):
        run(folders.config(info_path=(str(folders.root / "nowhere.pkl"),)))
    write_infos(folders.root / "empty.pkl", [])
    with pytest.raises(ValueError, match="empty.pkl: no samples in it"):
        run(folders.config(info_path=(str(folders.root / "empty.pkl"),)))


def test_flow_of_openocc(folders):
    with pytest.raises(ValueError, match="give --labels=openocc_v2"):
        folders.config(metrics="flow")
    flow = np.zeros((*SHAPE, 2), np.float16)
    for i, frame in enumerate(folders.frames):
        labels = folders.grids[i].labels
        labels = torch.where(labels == 17, 16, torch.where(labels == 4, 0, torch.where(labels == 11, 10, 14)))
        path = occ3d_path(folders.gt / "openocc_v2", frame)
        write_occ3d(OccupancyGrid(labels.byte(), *OPENOCC_V2), path)
        with np.load(path) as there:
            np.savez_compressed(path, **there, flow=flow)
        folders.write(i, semantics=labels.byte().numpy(), flow=flow + (0.5 if i == 0 else 0))
    run(folders.config(metrics="flow", labels="openocc_v2"))
    figures = folders.results()["metrics"]["flow"]["figures"]
    assert figures["RayIoU"] == 1.0 and 0 < figures["mAVE"] < np.sqrt(0.5)
    assert figures["OccScore"] == pytest.approx(0.9 + 0.1 * (1 - figures["mAVE"]))
    folders.write(2, semantics=np.full(SHAPE, 16, np.uint8))
    with pytest.raises(ValueError, match="sample t2: .*t2.npz: lacks array.*flow"):
        run(folders.config(metrics="flow", labels="openocc_v2"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": "miou,map"}, "--metrics are some of miou, rayiou"),
        ({"metrics": ""}, "--metrics are some of"),
        ({"device": "gpu"}, "--device must be cpu or cuda"),
        ({"workers": 0}, "--workers must be at least 1"),
        ({"max_samples": 0}, "--max_samples must be at least 1"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(pred=".", **options)


def test_flags_in_the_docs_are_flags():
    page = (ROOT / "docs" / "metrics.md").read_text()
    flags = set(re.findall(r"--(\w+)", page[: page.index("## In Python")]))
    assert len(flags) > 7 and flags <= set(EvaluateConfig.__dataclass_fields__), flags
