"""The volume half of benchmarks/rendering.py, tiny, on a CPU."""

import json
from pathlib import Path

import pytest
from warm_start import run_program

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_benchmark_runs_and_writes_its_figures(tmp_path):
    command = ["benchmarks/rendering.py", "--smoke", "--device", "cpu", "--parts", "volume"]
    result = run_program(*command, "--output", tmp_path, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    summary = json.loads((tmp_path / "rendering-cpu.json").read_text())
    rows = {row["what"]: row for row in summary["rows"]}
    assert {row["part"] for row in summary["rows"]} == {"volume"} and len(rows) >= 18
    for what in ("importance, torch, street, 90 rays", "renderocc, published, new, 90 rays"):
        assert rows[what]["forward_backward_ms"] > 0
    assert summary["targets"]["torch_ms"] == 400
