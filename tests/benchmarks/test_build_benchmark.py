"""The build benchmark on a street of two key frames whose exact labels are what is built: everything must agree."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
for folder in ("benchmarks", "tests/occupancy/accumulation"):
    sys.path.insert(0, str(ROOT / folder))

import build  # noqa: E402
from built_street import write_street  # noqa: E402

from syntheocc.commands import main  # noqa: E402
from syntheocc.occupancy.data.occ3d import Occ3DLabels  # noqa: E402
from syntheocc.occupancy.grids import OCC3D_NUSCENES, GridSpec, OccupancyGrid, Preset  # noqa: E402


def test_figures_of_grids_that_a_person_can_count():
    """Truth: a row of four; built: two of them, one beside it, and one far away. Two voxels were not observed."""
    spec = GridSpec((0.0, 0.0, 0.0), 1.0, (8, 8, 4))
    car, free = OCC3D_NUSCENES.taxonomy.id_of("car"), 17
    truth, made = torch.full((2, 8, 8, 4), free, dtype=torch.uint8)
    truth[0, :4, 0] = made[0, :2, 0] = made[1, 0, 0] = made[7, 7, 3] = car
    seen = torch.ones(8, 8, 4, dtype=torch.bool)
    known = seen.clone()
    known[0, 3, 0] = False
    preset = Preset(spec, OCC3D_NUSCENES.taxonomy)
    scores = build.Scores(spec)
    scores.update(made, known, seen, Occ3DLabels(OccupancyGrid(truth, *preset), seen, seen))
    result = scores.result()
    assert result["all"]["IoU"] == pytest.approx(2 / 6) and result["classes"] == {"car": pytest.approx(2 / 6)}
    assert result["precision_within_one_voxel"] == pytest.approx(3 / 4)
    assert result["recall_within_one_voxel"] == pytest.approx(3 / 4)  # the fourth of the row is two away
    assert result["free_is_free"] == pytest.approx(1 - 1 / 251)  # of 251 voxels called free one is a car's
    assert result["mask_lidar_iou"] == pytest.approx(255 / 256) and result["mask_camera_iou"] == 1.0


@pytest.mark.slow
def test_from_end_to_end(tmp_path, monkeypatch, capsys):
    write_street(tmp_path / "tree", key_frames=2)
    made = ["--dataroot", tmp_path / "tree", "--output-dir", tmp_path / "tree", "--kinds", "occ3d", "syntheocc"]
    assert main(["occupancy", "build", "--workers=1", *map(str, made)]) == 0
    output = tmp_path / "build.json"
    flags = ["--tree", str(tmp_path / "tree"), "--every", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["benchmarks/build.py", *flags])
    build.main()
    report = json.loads(output.read_text())
    exact = report["classes"]["lidarseg"]["ways"]["default"]
    assert exact["all"] == {"IoU": 1.0, "mIoU": 1.0} and exact["mask_camera_iou"] == exact["free_is_free"] == 1.0
    assert report["classes"]["lidarseg"]["0.2 m"]["all"]["IoU"] == 1.0
    alone = report["classes"]["lidarseg"]["ways"]["returns alone"]
    assert alone["all"]["IoU"] < 0.9 and alone["precision_within_one_voxel"] > 0.95
    assert report["classes"]["rules"]["ways"]["one sweep"]["all"]["IoU"] < 1.0
    said = capsys.readouterr().out
    assert "0.4 m, both masks, default" in said and str(tmp_path) not in report["command"]
