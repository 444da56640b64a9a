import json
import math
import sys

import numpy as np
import pytest

from syntheocc.engine.loop_config import LoopConfig
from syntheocc.engine.trackers import JsonLines, make_trackers, read_log, tracker_names


def test_lines_are_written_at_once_and_cut_where_a_run_resumes(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLines(path, 0)
    for step in range(1, 5):
        log.log(step, {"loss": step / 10})
    assert [line["loss"] for line in read_log(path)] == [0.1, 0.2, 0.3, 0.4]  # not closed yet
    with open(path, "ab") as file:
        file.write(b'{"step": 5, "lo')  # killed
    assert len(read_log(path)) == 4
    log = JsonLines(path, 2)
    log.log(3, {"loss": math.nan})
    log.close()
    assert read_log(path) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}, {"step": 3, "loss": None}]
    JsonLines(path, 0)  # a new run in this folder
    assert read_log(path) == []


def test_trackers_by_name(monkeypatch, capsys):
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ValueError, match=f"report_to=.*{name} cannot be imported .*; pip install {name}"):
            tracker_names(name)
    assert tracker_names("none") == tracker_names("") == tracker_names("all") == []
    with pytest.raises(ValueError, match="'mlflow' is no tracker; known are tensorboard, wandb"):
        tracker_names("tensorboard,mlflow")
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert tracker_names("wandb") == []
    assert "WANDB_DISABLED" in capsys.readouterr().err


def test_validation_has_a_file_of_its_own(tmp_path):
    trackers = make_trackers(LoopConfig(output_dir=tmp_path), {}, 0)
    trackers.log(1, {"loss": 1.0})
    trackers.log_validation(1, {"fid": 2.0}, {"views": np.zeros((2, 2, 3), np.uint8)})
    trackers.close()
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1, "loss": 1.0}]
    assert read_log(tmp_path / "validation.jsonl") == [{"step": 1, "fid": 2.0}]


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = make_trackers(LoopConfig(output_dir=tmp_path, report_to="tensorboard"), {}, 0)
    for step in (1, 2, 3):
        trackers.log(step, {"loss": step / 4})
    trackers.log_validation(3, {"fid": 1.5}, {"views": np.zeros((4, 6, 3), np.uint8)})
    trackers.close()
    events = EventAccumulator(str(tmp_path / "logs" / "syntheocc")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert events.Scalars("fid")[0].value == 1.5 and events.Images("views")[0].width == 6


def test_wandb_keeps_its_run_over_a_restart(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    config = LoopConfig(output_dir=tmp_path, report_to="wandb")
    ids = []
    for step in (0, 1):
        trackers = make_trackers(config, {"seed": 0}, step)
        ids.append(trackers.trackers[1]._run.id)
        trackers.log(step + 1, {"loss": 1.0})
        trackers.log_validation(step + 1, {"fid": 1.0}, {"views": np.zeros((4, 6, 3), np.uint8)})
        trackers.close()
    assert ids[0] == ids[1] and json.dumps(ids)
