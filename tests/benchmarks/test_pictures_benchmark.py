"""benchmarks/pictures.py runs, and the painting is what the rays see on a street too."""

import json
from pathlib import Path

import pytest
from warm_start import run_program

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_line_of_it(tmp_path):
    output = tmp_path / "pictures.json"
    command = ["benchmarks/pictures.py", "--smoke", "--check", "--threads", "1"]
    run = run_program(*command, f"--output={output}", cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:]
    report = json.loads(output.read_text())
    assert report["command"] == "python benchmarks/pictures.py --smoke --check --threads 1"
    assert list(report["checks"].values()) == ["3110400 of 3110400 pixels alike"]
    rows = {row["what"]: row["ms"] for row in report["rows"]}
    assert rows["oblique_picture, 200x200x16, 0.4 m"] > 0 and rows["a ray a pixel, 200x200x16, 0.4 m"] > 0
    assert report["target_ms"] == 500.0 and len(rows) == 11
