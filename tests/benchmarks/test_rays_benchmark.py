"""benchmarks/rays.py runs, and writes what its docstring says."""

import json
from pathlib import Path

import pytest
from warm_start import run_program

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_line_of_it(tmp_path):
    command = ["benchmarks/rays.py", "--smoke", "--threads", "1", "--parts", "speed", "truth"]
    run = run_program(*command, "--output", tmp_path, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:]
    summary = json.loads((tmp_path / "rays-cpu.json").read_text())
    rows = {(row["part"], row["what"]): row for row in summary["rows"]}
    assert summary["command"] == "python benchmarks/rays.py --smoke --threads 1 --parts speed truth"
    assert rows["labels", "default"]["rays"] > 1000 and rows["labels", "default, in plain loops"]["same_rays"]
    assert rows["files", "sweeps and panoptic of 7 frames"]["ms"] > 0
    assert rows["truth", "all scenes, rays from the lidar"]["not_ground_m"] < 0.3
