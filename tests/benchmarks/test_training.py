"""The training benchmark runs from start to end, at the size of a toy."""

import json
import math
from pathlib import Path

from warm_start import run_program

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"


def test_smoke(tmp_path):
    run = run_program(SCRIPT, "--smoke", "--variants", "plain", "fast", "--output", tmp_path)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "training-cpu.json").read_text())
    assert report["failures"] == {}
    plain, fast = report["rows"]
    assert (plain["variant"], fast["variant"]) == ("plain", "fast")
    assert set(fast["phases_ms"]) == {"render", "condition", "encode", "forward", "backward", "optimizer"}
    assert math.isfinite(plain["loss"]) and fast["loss_difference"] < 0.01
    # Rounded to bfloat16 by two ways; a wrong gradient would differ by its own size.
    assert max(fast["gradient_differences"].values()) < 0.2
    assert "wrote" in run.stdout
