"""The scripts of examples/nano: from the first frame to a pipeline folder that loads, and on from there."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from warm_start import run_program

from syntheocc.pipelines import SyntheOccPipeline
from syntheocc.worlds.street import example_street

NANO = Path(__file__).resolve().parents[2] / "examples" / "nano"


def run(script: str, *flags: str, ranks: int = 0) -> str:
    done = run_program(NANO / script, *flags, ranks=ranks)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nano")
    said = run("train.py", "--smoke", "--device=cpu", "--keep_data", f"--output={folder}")
    return folder, said


def test_a_whole_training_leaves_a_pipeline_and_sheets(trained, tmp_path):
    folder, said = trained
    for name in ("reconstructions.png", "generated.png", "captions.png", "settings.png"):
        assert (folder / name).stat().st_size > 1000, name
    assert "diffusion: 3 steps" in said
    for archive in folder.glob("syntheocc-nano-*.tar"):
        with tarfile.open(archive) as packed:
            packed.extractall(tmp_path, filter="data")
    pipe = SyntheOccPipeline.from_pretrained(tmp_path / "syntheocc-nano", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae.config.scaling_factor == 1.0 and pipe.scheduler.config.prediction_type == "v_prediction"
    assert len(pipe.tokenizer) <= 1000
    grid, rig, _ = example_street()
    images = pipe("a rainy night street", occupancy=grid, cameras=rig, num_inference_steps=2).images[0]
    assert [image.size for image in images] == [(80, 48)] * 6, "the size of the training pictures"


def test_a_second_job_goes_on_from_the_first_ones_checkpoint(trained):
    folder, _ = trained
    (checkpoint,) = (folder / "work" / "checkpoints").iterdir()
    assert json.loads((checkpoint / "state.json").read_text()) == {"step": 3, "updates": 3}
    said = run("train.py", "--smoke", "--device=cpu", "--resume", f"--output={folder}")
    assert "diffusion step 3 " in said and "training frames" not in said
    (checkpoint,) = (folder / "work" / "checkpoints").iterdir()
    assert json.loads((checkpoint / "state.json").read_text()) == {"step": 6, "updates": 6}
    run("export.py", f"--parts={folder / 'work'}", f"--output={folder / 'again'}", "--size=tiny")
    assert (folder / "again" / "model_index.json").is_file()


@pytest.mark.slow
def test_two_processes_train_together(tmp_path):
    said = run("train.py", "--smoke", "--device=cpu", f"--output={tmp_path}", ranks=2)
    assert "4 training frames of 2 scenes" in said and "3 steps of 4 samples" in said
    assert list(tmp_path.glob("syntheocc-nano-*.tar"))
