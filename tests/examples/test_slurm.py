"""The Slurm examples: what they would start is what the programs understand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from syntheocc.commands import occupancy
from syntheocc.occupancy.perception.settings import EvaluateConfig, TrainConfig

SLURM = Path(__file__).resolve().parents[2] / "examples" / "slurm"
# Slurm's commands, as far as the scripts use them: one node, one task.
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] && shift
export SLURM_PROCID=1 SLURM_LOCALID=1 SLURM_NTASKS=16
exec "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then printf 'node7\\nnode8\\n'; else echo "$@" >> "$RECORD.scontrol"; fi
"""
PYTHON = """#!{python}
import json, os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
json.dump([sys.argv[1:], {{name: os.environ.get(name) for name in names}}], open(os.environ["RECORD"], "w"))
sys.exit(int(os.environ.get("STATUS", "0")))
"""


@pytest.fixture
def submit(tmp_path):
    """Run a script as Slurm would; gives (exit status, arguments of the program, its ranks, calls of scontrol)."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON.format(python=sys.executable))):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(script, *flags, **variables):
        record = tmp_path / "record"
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "RECORD": str(record),
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_JOB_ID": "12345",
            "PYTHON": "python",  # the stand-in, whatever Python runs the tests
        }
        done = subprocess.run(
            ["bash", SLURM / script, *flags], env=environment | variables, capture_output=True, text=True
        )
        assert record.is_file(), done.stderr
        arguments, ranks = json.loads(record.read_text())
        calls = Path(f"{record}.scontrol")
        return done.returncode, arguments, ranks, calls.read_text() if calls.is_file() else ""

    return run


def config_of(arguments):
    assert arguments[:3] == ["-m", "syntheocc.commands", "occupancy"]
    return occupancy.parse(arguments[3:])[1]


@pytest.mark.parametrize("script", sorted(SLURM.glob("*.sbatch")), ids=lambda path: path.name)
def test_bash_reads_them(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")


def test_training_is_what_the_script_says(submit):
    status, arguments, ranks, calls = submit(
        "train_occupancy.sbatch", "--mixed_precision=bf16", DATA="/data", OUTPUT="o"
    )
    config = config_of(arguments)
    assert isinstance(config, TrainConfig) and status == 0 and not calls
    assert (config.model, config.preset, str(config.dataroot)) == ("sparseocc", "r50_704x256_8f", "/data")
    assert config.info_path == ("/data/nuscenes_infos_train.pkl",)
    assert (str(config.output_dir), config.mixed_precision, config.micro_batch_size) == ("o", "bf16", 1)
    assert config.resume_from_checkpoint == "latest" and config.epochs == 24
    assert ranks == {
        "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": "node7", "MASTER_PORT": "32345",
    }  # fmt: skip


def test_a_run_that_was_cut_off_queues_again_and_a_failed_one_does_not(submit):
    status, _, _, calls = submit("train_occupancy.sbatch", STATUS="130")
    assert status == 0 and calls == "requeue 12345\n"
    status, _, _, calls = submit("train_occupancy.sbatch", STATUS="2")
    assert status == 2 and calls == "requeue 12345\n"


def test_evaluation_is_what_the_script_says(submit):
    flags = ("--half=bf16", "--online")
    status, arguments, ranks, _ = submit("evaluate_occupancy.sbatch", *flags, WEIGHTS="w", DATA="d")
    config = config_of(arguments)
    assert isinstance(config, EvaluateConfig) and status == 0 and ranks["RANK"] == "1"
    assert (str(config.weights), config.info_path) == ("w", ("d/nuscenes_infos_val.pkl",))
    assert (config.half, config.online, config.metrics) == ("bf16", True, ("miou", "rayiou"))
    assert str(config.output_dir) == "w/predictions" and config.allow_unreadable
