"""What the loop does only on a GPU: loss scaling, CUDA's random state, and no waiting for the device."""

import numpy as np
import pytest
import torch
from line_problem import LineConfig, Points, train
from torch import nn

from syntheocc.engine.loop import LoopConfig, run_loop
from syntheocc.engine.samplers import EpochSampler
from syntheocc.engine.state import load_state, load_tensors
from syntheocc.engine.trackers import read_log

pytestmark = pytest.mark.gpu


def config(folder, **settings):
    defaults = {"max_train_steps": 12, "global_batch_size": 4, "learning_rate": 0.05, "checkpointing_steps": 0}
    return LineConfig(output_dir=folder, **defaults | settings)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_resumed_runs_are_exact(tmp_path, precision):
    settings = {"mixed_precision": precision, "dropout": 0.3, "use_ema": True, "deterministic": True}
    train(config(tmp_path / "whole", **settings))
    train(config(tmp_path / "parts", **settings, signal_at=5, resume_from_checkpoint="latest"))
    state = load_state(tmp_path / "parts" / "checkpoint-6", "training_state")
    assert state["random"][0]["cuda"] is not None and (state["scaler"] is not None) == (precision == "fp16")
    train(config(tmp_path / "parts", **settings, resume_from_checkpoint="latest"))
    assert (tmp_path / "parts" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()
    models = [load_tensors(tmp_path / run / "model.safetensors") for run in ("whole", "parts")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_step_that_is_not_finite_is_skipped_on_the_device(tmp_path, precision):
    result, module = train(
        config(tmp_path, mixed_precision=precision, global_batch_size=2),
        points=Points(6, spoilt=[3]),
        order=lambda epoch: range(6) if epoch == 0 else [0, 1, 2, 4, 5],
    )
    assert result.skipped_steps == [2] and all(p.isfinite().all() for p in module.parameters())
    losses = [line["loss"] for line in read_log(tmp_path / "log.jsonl")]
    assert losses[1] is None and np.isfinite(losses[-1])


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))

    def forward(self, batch, step, positions):
        return {"loss": self.layers(batch).square().mean()}


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_steps_do_not_wait_for_the_device(tmp_path, precision):
    """torch reports every operation that would make the CPU wait; from the second step on there is none."""

    class Watched(Wide):
        def forward(self, batch, step, positions):
            torch.cuda.set_sync_debug_mode("error" if step >= 1 else "default")
            return super().forward(batch, step, positions)

    try:
        run_loop(
            LoopConfig(
                output_dir=tmp_path,
                max_train_steps=20,
                global_batch_size=4,
                micro_batch_size=2,
                mixed_precision=precision,
                use_ema=True,
                checkpointing_steps=0,
            ),
            module=Watched(),
            dataset=torch.randn(16, 64),
            collate=torch.stack,
            sampler=EpochSampler(16),
            save_model=lambda folder: torch.cuda.set_sync_debug_mode("default"),
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(read_log(tmp_path / "log.jsonl")) == 20
