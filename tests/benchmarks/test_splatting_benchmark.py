"""The splatting half of benchmarks/rendering.py and benchmarks/rendering_truth.py, tiny, on a CPU."""

import json
from pathlib import Path

import pytest
from warm_start import run_program

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path, *arguments):
    result = run_program(*arguments, "--smoke", "--output", tmp_path, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
def test_the_splatting_half_runs_and_writes_its_figures(tmp_path):
    run(tmp_path, "benchmarks/rendering.py", "--device", "cpu", "--parts", "splatting")
    summary = json.loads((tmp_path / "rendering-cpu.json").read_text())
    rows = {row["what"]: row for row in summary["rows"]}
    assert summary["targets"]["triton_ms"] == 40
    for what in ("torch_sparse, new, 90 rays", "torch_sparse, street, 90 rays, moving"):
        assert rows[what]["forward_backward_ms"] > 0
    assert rows["torch_sparse, as rasterised, street, 90 pixels of 18 views of 400x225"]["forward_backward_ms"] > 0


@pytest.mark.slow
def test_true_occupancy_is_scored(tmp_path):
    run(tmp_path, "benchmarks/rendering_truth.py")
    rows = {row["what"]: row for row in json.loads((tmp_path / "rendering-truth.json").read_text())["rows"]}
    assert rows["volume, voxel by voxel"]["voxel_distance_solid"] < 0.3
    assert rows["splats of 0.15 m, opacity 1.0"]["voxel_distance_solid"] < 0.3
    assert rows["splats of 0.1 m, opacity 1.0"]["stopped"] < rows["splats of 0.2 m, opacity 1.0"]["stopped"]


@pytest.mark.slow
def test_the_losses_ask_for_the_truth(tmp_path):
    """As the presets have them; wide Gaussians that end at points want the scene one voxel lower."""
    run(tmp_path, "benchmarks/rendering_losses.py")
    rows = json.loads((tmp_path / "rendering-losses.json").read_text())["rows"]
    ratio = {(row["design"], row["surfaces"]): row["ratio"] for row in rows}
    assert rows[1]["truth"] < rows[1]["thin_ground"]
    assert ratio["SplattingOcc, 0.12 m", "voxels"] > 1.2
    assert ratio["SplattingOcc, 0.2 m", "points"] < 1
