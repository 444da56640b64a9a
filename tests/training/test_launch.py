"""`train.py` on a small procedural world, under the launchers that people use, stopped and resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from warm_start import run_program

from syntheocc import SyntheOccPipeline
from syntheocc.engine.trackers import read_log
from syntheocc.training.config import TrainConfig
from syntheocc.training.train import run

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8


@pytest.fixture
def flags(street_root, sd_folder) -> dict:
    return {
        "pretrained_model_name_or_path": str(sd_folder),
        "dataroot_path": street_root,
        "width": 48,
        "height": 32,
        "max_train_steps": STEPS,
        "global_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 4,
        "checkpointing_steps": 50,
        "validation_steps": 0,
        "dataloader_num_workers": 1,
        "use_captions": True,
        "use_cbgs": True,
    }


def arguments(flags: dict, **changes) -> list[str]:
    return [f"--{name}={value}" for name, value in {**flags, **changes}.items()]


def start(launcher: list[str], flags: dict, **changes) -> subprocess.Popen:
    """`train.py` in two processes without GPUs."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", *launcher, str(ROOT / "train.py"), *arguments(flags, **changes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ)


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_log(folder / "log.jsonl")}


@pytest.mark.slow
def test_two_processes_stop_resume_and_keep_the_curve(flags, tmp_path):
    """accelerate launch, ended by SIGTERM in the middle; torchrun goes on; the curve is that of one process."""
    out = tmp_path / "two"
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    job = start(launcher, flags, output_dir=out)
    try:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and job.poll() is None:
            if (out / "log.jsonl").is_file() and len(losses(out)) >= 2:
                job.send_signal(signal.SIGTERM)
                break
            time.sleep(0.05)
        first, _ = job.communicate(timeout=100)
    finally:
        job.kill()
    assert "(1 x 1 on 2 processes)" in first, first
    done = len(losses(out))
    assert 2 <= done < STEPS, first
    assert [path.name for path in out.glob("checkpoint-*")] == [f"checkpoint-{done}"], first
    assert not (out / "model_index.json").exists()

    again = run_program(ROOT / "train.py", *arguments(flags, output_dir=out, resume_from_checkpoint="latest"), ranks=2)
    assert again.returncode == 0, again.stderr
    assert f"trained {STEPS} steps" in again.stdout + again.stderr

    alone = tmp_path / "one"
    assert run(TrainConfig(**flags, output_dir=alone)) == 0
    wanted, found = losses(alone), losses(out)
    assert list(found) == list(wanted) == list(range(1, STEPS + 1))
    for step in wanted:
        assert found[step] == pytest.approx(wanted[step], rel=1e-4), step
    assert len(set(wanted.values())) == STEPS
    weights = [SyntheOccPipeline.from_pretrained(folder).controlnet.conv_in.weight for folder in (out, alone)]
    assert (weights[0] - weights[1]).abs().max() < 1e-4


def test_without_a_launcher_bad_settings_are_one_line(flags, tmp_path):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(ROOT / "train.py"), "--dataroot_path=no/such/place"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: data root no/such/place is not a folder") and done.stderr.count("\n") == 1


def test_train_sh_hands_flags_and_environment_to_train_py():
    environ = {**os.environ, "VIRTUAL_ENV": str(Path(sys.executable).parents[1]), "NGPU": "1", "DATA_USED": "mine"}
    for flag, message in (("--dataroot_path=no/such/place", "no/such/place"), ("--no_such_flag", "unrecognized")):
        command = ["bash", str(ROOT / "train.sh"), flag]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120)
        assert done.returncode == 2 and message in done.stderr
