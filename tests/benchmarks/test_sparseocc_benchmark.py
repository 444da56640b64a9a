"""Every part of benchmarks/sparseocc.py that runs on a CPU, tiny."""

import json
from pathlib import Path

import pytest
from warm_start import run_program

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_benchmark_runs_and_writes_its_figures(tmp_path):
    command = ["benchmarks/sparseocc.py", "--smoke", "--device", "cpu", "--workers", "0"]
    result = run_program(*command, "--output", tmp_path, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    summary = json.loads((tmp_path / "sparseocc-cpu.json").read_text())
    rows = {(row["part"], row["what"]): row for row in summary["rows"]}
    assert {part for part, _ in rows} == {"sampling", "model", "training", "loader"}
    online = rows["model", "online, bfloat16"]
    assert abs(online["frames_per_second"] * online["ms"] - 1000) < 1
    assert rows["sampling", "torch, float32, projected voxels"]["forward_ms"] > 0
    parts = [row["ms"] for (_, what), row in rows.items() if what.startswith("part: ")]
    assert len(parts) > 20 and summary["targets"]["frames_per_second"] == 60
    assert rows["loader", "0 workers, online, bfloat16, to the host"]["frames_per_second"] > 0
