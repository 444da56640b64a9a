"""A tiny training job for the loop's tests, and a program: torchrun ... line_problem.py --output_dir=DIR [flags]."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from syntheocc.engine.batch import sample_generator
from syntheocc.engine.flags import flag, parse_flags
from syntheocc.engine.loop import BadSample, LoopConfig, make_accelerator, run_loop
from syntheocc.engine.samplers import EpochSampler
from syntheocc.engine.state import trainable_state


@dataclass(kw_only=True)
class LineConfig(LoopConfig):
    num_points: int = flag(10, "samples in the dataset")
    dropout: float = flag(0.0, "of the hidden layer; draws from torch's global generator")
    signal_at: int = flag(-1, "step (0 is the first) in whose forward this process gets a signal")
    signal_rank: int = flag(0, "rank that gets it")
    signal_name: str = flag("SIGTERM", "the signal")
    private_folders: bool = flag(False, "every rank has an output_dir of its own, like machines that share no disk")


class Points:
    """Points (x0, x1) on a spiral, y = x0 - 2 x1 + 0.5; `bad` ones cannot be read, `spoilt` ones are NaN."""

    def __init__(self, count, bad=(), spoilt=()):
        angle = torch.arange(count) * 0.7
        self.x = torch.stack([angle.cos(), angle.sin()], dim=1) * (torch.arange(count)[:, None] + 1) / count
        self.y = self.x[:, :1] - 2 * self.x[:, 1:] + 0.5
        self.bad = set(bad)
        self.y[list(spoilt)] = float("nan")

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        if index in self.bad:
            return BadSample(f"point-{index}", "torn page")
        return {"x": self.x[index], "y": self.y[index], "tokens": f"point-{index}"}


class Line(nn.Module):
    """Two layers, one of them frozen beside; noise from the sample's own generator; dropout from the global one."""

    def __init__(self, config):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.first, self.second, self.frozen = nn.Linear(2, 8), nn.Linear(8, 1), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.dropout = nn.Dropout(config.dropout)
        self.config = config

    def forward(self, batch, step, positions):
        config = self.config
        if step == config.signal_at and positions[0] == config.signal_rank * len(positions):  # once a step
            # as a scheduler does: from outside, and to the reading processes too
            processes = [*multiprocessing.active_children(), multiprocessing.current_process()]
            number = int(getattr(signal, config.signal_name))
            subprocess.run(["kill", f"-{number}", *(str(process.pid) for process in processes)], check=True)
        noise = [torch.randn(2, generator=sample_generator(config.seed, step, position)) for position in positions]
        x = batch["x"] + 0.01 * torch.stack(noise).to(batch["x"].device) + 0 * self.frozen(batch["x"])
        error = self.second(self.dropout(self.first(x).relu())) - batch["y"]
        return {"loss": error.square().mean(), "error": error.mean()}


def train(config, points=None, module=None, order=None, names=(), **options):
    """(result, module) of one run."""
    points = Points(config.num_points) if points is None else points
    module = Line(config) if module is None else module
    result = run_loop(
        config,
        module=module,
        dataset=points,
        collate=torch.utils.data.default_collate,
        sampler=EpochSampler(len(points), config.seed, order, names),
        save_model=lambda folder: save_file(trainable_state(module), folder / "model.safetensors"),
        **options,
    )
    return result, module.cpu()


def main(argv, environ=None):
    """The program; `environ` is what torchrun would have set."""
    os.environ |= environ or {}
    settings = parse_flags(LineConfig, argv)
    accelerator = make_accelerator(settings)
    if settings.private_folders:
        settings.output_dir = settings.output_dir / str(accelerator.process_index)
    rank = accelerator.process_index
    try:
        outcome, _ = train(settings, accelerator=accelerator)
    except ValueError as error:
        Path(settings.output_dir).mkdir(exist_ok=True)
        Path(settings.output_dir, "error.txt").write_text(str(error))
        raise
    record = {"world": accelerator.num_processes, "step": outcome.step, "interrupted": outcome.interrupted}
    Path(settings.output_dir, f"outcome-{rank}.json").write_text(json.dumps(record))
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1:])
