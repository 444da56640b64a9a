"""The loop in processes of its own: several ranks, and kills without warning."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from line_problem import LineConfig, main, train
from warm_start import warm_context

from syntheocc.engine.checkpoints import CheckpointFolder
from syntheocc.engine.state import load_state, load_tensors
from syntheocc.engine.trackers import read_log

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("line_problem.py")
SETTINGS = {"max_train_steps": 10, "global_batch_size": 4, "learning_rate": 0.05, "use_ema": True}
# On the CPU everywhere: a machine may have fewer GPUs than a test has ranks.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}


def flags(folder, **settings):
    return [f"--{name}={value}" for name, value in ({"output_dir": folder} | SETTINGS | settings).items()]


def torchrun(ranks, folder, **settings):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    done = subprocess.run(
        [*launch, str(PROGRAM), *flags(folder, **settings)], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return outcomes(ranks, folder)


def outcomes(ranks, folder):
    records = [json.loads((folder / f"outcome-{rank}.json").read_text()) for rank in range(ranks)]
    assert all(record["world"] == ranks for record in records)
    return records


@pytest.fixture(scope="module")
def start():
    """Starts the program in a process forked from one that has imported everything: 0.1 s instead of six."""

    def process(arguments, **environ):
        job = warm_context().Process(target=main, args=(arguments, {"ACCELERATE_USE_CPU": "true"} | environ))
        job.start()
        return job

    return process


def curve(folder):
    return [line["loss"] for line in read_log(folder / "log.jsonl")]


def start_ranks(start, world, arguments):
    """Exit codes of a job of several ranks, started like torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
    jobs = [start(arguments, **place, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(world)]
    for job in jobs:
        job.join()
    return [job.exitcode for job in jobs]


def test_the_curve_is_the_same_on_one_two_and_four_ranks(tmp_path, start):
    """Two ranks, of which one is told to stop in its fifth step, and four that go on from there."""
    train(LineConfig(output_dir=tmp_path / "one", **SETTINGS))
    stopped = torchrun(2, tmp_path / "many", micro_batch_size=1, signal_at=4, signal_rank=1)
    assert stopped[0]["step"] == stopped[1]["step"] in (5, 6)
    assert stopped[1]["interrupted"] == "SIGTERM" and stopped[0]["interrupted"] == "a signal to another process"
    assert len(curve(tmp_path / "many")) == stopped[0]["step"]
    assert start_ranks(start, 4, flags(tmp_path / "many", resume_from_checkpoint="latest")) == [0] * 4
    assert [record["step"] for record in outcomes(4, tmp_path / "many")] == [10] * 4
    assert len(curve(tmp_path / "many")) == 10
    assert np.abs(np.subtract(curve(tmp_path / "many"), curve(tmp_path / "one"))).max() < 1e-6
    models = [load_tensors(tmp_path / run / "model.safetensors") for run in ("one", "many")]
    assert all((models[0][name] - models[1][name]).abs().max() < 1e-6 for name in models[0])


@pytest.mark.slow
def test_accelerate_launch_makes_two_processes(tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    port = f"--main_process_port={random.randrange(20000, 40000)}"
    done = subprocess.run(
        [*launch, port, str(PROGRAM), *flags(tmp_path)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    worlds = [json.loads((tmp_path / f"outcome-{rank}.json").read_text())["world"] for rank in range(2)]
    assert worlds == [2, 2]


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(tmp_path, start):
    settings = {"max_train_steps": 200, "checkpointing_steps": 1, "checkpoints_total_limit": 2, "dropout": 0.2}
    train(LineConfig(output_dir=tmp_path / "whole", **SETTINGS | settings | {"checkpointing_steps": 0}))
    folder, draw, unfinished = tmp_path / "killed", random.Random(1), 0
    arguments = flags(folder, **settings, resume_from_checkpoint="latest")
    checkpoints = CheckpointFolder(folder)
    for _ in range(12):
        before = checkpoints.steps()[-1] if checkpoints.steps() else 0
        job = start(arguments)
        while (checkpoints.steps() or [0])[-1] < before + 2 and job.is_alive():
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.05))
        job.kill()
        job.join()
        assert job.exitcode == -signal.SIGKILL
        unfinished += any(entry.name.startswith(".checkpoint") for entry in folder.iterdir())
        for step in checkpoints.steps():
            state = load_state(checkpoints.path(step), "training_state")
            assert state["step"] == step and set(state["ema"]["averages"]) == set(state["optimizer"])
            assert load_tensors(checkpoints.path(step) / "trainable.safetensors")
            assert load_tensors(checkpoints.path(step) / "model.safetensors")
    assert unfinished  # some kill came in the middle of a save
    job = start(arguments)
    job.join()
    assert job.exitcode == 0
    assert (folder / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert not any(entry.name.startswith(".") for entry in folder.iterdir())


def test_ranks_that_do_not_see_the_same_checkpoint_say_so(tmp_path, start):
    train(LineConfig(output_dir=tmp_path / "0", **SETTINGS | {"checkpointing_steps": 5}))
    arguments = flags(tmp_path, resume_from_checkpoint="latest", private_folders=True)
    assert start_ranks(start, 2, arguments) == [1, 1]
    # one rank at least: it may be gone before the other one has read its answer
    errors = [path.read_text() for path in tmp_path.glob("*/error.txt")]
    assert any("must be on a file system that all machines share" in error for error in errors)
