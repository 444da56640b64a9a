"""benchmarks/infos.py: invented tables that the command takes for real ones."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from syntheocc.commands.infos import InfosConfig, run
from syntheocc.occupancy.data.infos import read_infos

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("infos")
    finally:
        sys.path.remove(str(BENCHMARKS))
        sys.modules.pop("infos", None)


def test_the_tables_are_of_nuscenes_shape_and_number(benchmark, tmp_path):
    rows = benchmark.write_tables(tmp_path / "v1.0-trainval", 1)
    assert rows["sample"] == 41 and rows["sample_annotation"] == 41 * benchmark.OBJECTS
    # A scene of the full size has as many readings as a scene of nuScenes, 2.6 million in 850.
    assert 2_400_000 < rows["sample_data"] * benchmark.FULL_SAMPLES / 41 < 2_800_000
    assert run(InfosConfig(dataroot_path=tmp_path, styles=("mmdet3d_v1.0",))) == 0
    frames = read_infos(tmp_path / "nuscenes_infos_train.pkl")
    assert len(frames) == 41 and len(frames[0].boxes) == benchmark.OBJECTS
    assert len(frames[5].extras["sweeps"]) == 10 and not frames[5].boxes.velocities.isnan().any()
    (scene,) = json.loads((tmp_path / "v1.0-trainval" / "scene.json").read_text())
    assert scene["name"] == "scene-0001"


def test_runs_are_what_is_asked_for(benchmark):
    assert list(benchmark.chosen_styles("bevdet,sweep+mmdet3d_v1.0")) == [["bevdet"], ["sweep", "mmdet3d_v1.0"]]
    assert len(next(benchmark.chosen_styles("all"))) == 5
