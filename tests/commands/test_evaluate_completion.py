"""`syntheocc evaluate` on SemanticKITTI's and NYUv2's files: official figures, official voxels, official layouts."""

import json

import numpy as np
import pytest
import torch

from syntheocc.commands.evaluate import EvaluateConfig, run
from syntheocc.occupancy.data.kitti_submission import prediction_path, write_prediction
from syntheocc.occupancy.data.nyuv2 import CLASS_OF_ID, FILE_SHAPE, NyuVoxels, read_nyuv2, write_nyuv2
from syntheocc.occupancy.data.semantic_kitti import write_semantic_kitti
from syntheocc.occupancy.grids import SEMANTIC_KITTI, OccupancyGrid

SHAPE = SEMANTIC_KITTI.spec.shape
# The worked example of specs/occdepth.md 3.2, with classes 1 car, 2 bicycle, 3 motorcycle; 255 is invalid.
TRUTH = {"A": [0, 0, 1, 1, 2, 2, 255, 255, 0, 1, 2, 0], "B": [0, 0, 0, 0, 1, 1, 1, 255, 255, 2, 0, 0]}
GUESS = {"A": [0, 1, 1, 2, 2, 0, 1, 0, 0, 1, 1, 2], "B": [0, 0, 0, 1, 1, 1, 0, 2, 3, 2, 2, 0]}


def column(values):
    grid = torch.full(SHAPE, 255, dtype=torch.uint8)
    grid.view(-1)[: len(values)] = torch.tensor(values, dtype=torch.uint8)
    return grid


@pytest.fixture
def kitti(tmp_path):
    """Two labelled frames of sequence 08 below dataset/, and predictions as a submission has them."""
    for name, frame in (("A", "000000"), ("B", "000005")):
        truth = OccupancyGrid(column(TRUTH[name]), *SEMANTIC_KITTI, torch.eye(4))
        write_semantic_kitti(truth, tmp_path / "kitti/dataset/sequences/08/voxels" / f"{frame}.label")
        guess = column(GUESS[name])
        write_prediction(guess.where(guess != 255, 0), prediction_path(tmp_path / "pred", "08", frame))
    return tmp_path


def config(root, **options):
    return EvaluateConfig(
        **({"pred": root / "pred", "gt": root / "kitti", "labels": "semantic_kitti", "workers": 1} | options)
    )


def results(root):
    return json.loads((root / "pred_evaluation" / "results.json").read_text())


def test_the_official_figures(kitti, capsys):
    assert run(config(kitti)) == 0
    figures = results(kitti)["metrics"]["ssc"]["figures"]
    assert figures["iou"] == pytest.approx(0.571429, abs=1e-6)
    assert figures["precision"] == pytest.approx(8 / 12) and figures["recall"] == pytest.approx(0.8)
    # Three classes in the example, nineteen here: those that occur nowhere count as 0.
    assert figures["miou"] == pytest.approx((4 / 9 + 2 / 7) / 19)
    rows = results(kitti)["metrics"]["ssc"]["per_class"]
    assert [rows["car"][key] for key in ("tp", "fp", "fn")] == [4, 3, 2]
    assert "2 frames" in capsys.readouterr().out


def test_predictions_as_our_programs_leave_them_score_the_same(kitti):
    run(config(kitti))
    wanted = results(kitti)["metrics"]
    for name, frame in (("A", "000000"), ("B", "000005")):
        guess = column(GUESS[name])
        (kitti / "own").mkdir(exist_ok=True)
        np.savez_compressed(kitti / "own" / f"08_{frame}.npz", pred=guess.where(guess != 255, 0).numpy())
    run(config(kitti, pred=kitti / "own", out=kitti / "pred_evaluation", sequences=("08",), split="test"))
    assert results(kitti)["metrics"] == wanted


def test_what_is_missing_is_named(kitti):
    with pytest.raises(ValueError, match="test split has no public labels"):
        run(config(kitti, split="test"))
    with pytest.raises(ValueError, match=r"00/voxels: no NNNNNN.label"):
        run(config(kitti, split="train"))
    prediction_path(kitti / "pred", "08", "000005").unlink()
    with pytest.raises(ValueError, match="1 of 2 frames have no prediction, the first is 08_000005"):
        run(config(kitti))
    run(config(kitti, allow_missing=True))
    assert results(kitti)["missing"] == ["08_000005"]
    assert results(kitti)["metrics"]["ssc"]["figures"]["iou"] == pytest.approx(0.625)
    prediction_path(kitti / "pred", "08", "000000").write_bytes(b"\0")
    with pytest.raises(ValueError, match="08_000000.*000000.label: 1 bytes"):
        run(config(kitti, allow_missing=True))


@pytest.mark.parametrize("options", [{"metrics": "miou"}, {"labels": "occ3d", "metrics": "ssc"}])
def test_metrics_go_with_their_labels(options):
    with pytest.raises(ValueError, match="scored by ssc"):
        EvaluateConfig(**({"pred": ".", "labels": "semantic_kitti"} | options))


def test_rooms(tmp_path):
    assert CLASS_OF_ID[21] == 11
    ids = np.full(FILE_SHAPE, 255, np.uint8)
    ids[:120], ids[:40] = 0, 21
    write_nyuv2(NyuVoxels(ids, torch.zeros(3), torch.eye(4)), tmp_path / "depthbin" / "NYUtest" / "NYU0001_0000.bin")
    truth = read_nyuv2(tmp_path / "depthbin" / "NYUtest" / "NYU0001_0000.bin").labels
    guess = truth.clone()
    guess[:5], guess[30:] = 0, 3  # half of what is there is missed; behind what is known nothing counts
    (tmp_path / "pred").mkdir()
    np.savez_compressed(tmp_path / "pred" / "NYU0001_0000.npz", pred=guess.numpy())
    run(EvaluateConfig(pred=tmp_path / "pred", gt=tmp_path, labels="nyuv2", workers=1))
    figures = results(tmp_path)["metrics"]["ssc"]["figures"]
    assert figures["recall"] == figures["iou"] == 0.5 and figures["miou"] == pytest.approx(0.5 / 11, rel=1e-6)
