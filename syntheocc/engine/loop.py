"""The training loop that every trainer of the project shares: accelerate below, one module and one dataset above."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from syntheocc.engine.loading import BadSample
from syntheocc.engine.loop_config import LoopConfig
from syntheocc.engine.samplers import EpochSampler

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["BadSample", "LoopConfig", "LoopResult", "make_accelerator", "run_loop"]

# What a validation may return: scalars and pictures (uint8 [H, W, 3]) for the trackers.
Validation = Mapping[str, float | np.ndarray]


@dataclass(frozen=True)
class LoopResult:
    """How a run of the loop ended.

    Attributes:
        step: optimizer steps done, resumed ones included.
        loss: the last step's loss; None when no step was made.
        interrupted: "SIGINT" or "SIGTERM" when a signal ended the run before `max_train_steps`, else None.
        bad_samples: token -> reason of the samples that this process could not read.
        skipped_steps: steps whose loss or gradient was not finite, so that nothing was learnt from them.
    """

    step: int
    loss: float | None
    interrupted: str | None
    bad_samples: dict[str, str]
    skipped_steps: list[int]


def make_accelerator(config: LoopConfig) -> "Accelerator":
    """The accelerator of a job, with this process's device and rank; make it before loading what needs a device.

    DDP over NCCL on GPUs and over gloo without; FSDP and DeepSpeed as `accelerate launch` configures them.

    Raises:
        ValueError: the batch cannot be cut for the ranks, fp16 without a GPU, or fewer processes joined than were
            started.
    """
    raise NotImplementedError


def run_loop(
    config: LoopConfig,
    *,
    module: nn.Module,
    dataset: Any,
    collate: Callable[[list[Any]], Any],
    sampler: EpochSampler,
    save_model: Callable[[Path], None],
    validate: Callable[[int], Validation | None] | None = None,
    device_batch: Callable[[Any, Any], Any] | None = None,
    parameter_groups: Sequence[Mapping[str, Any]] | None = None,
    accelerator: "Accelerator | None" = None,
) -> LoopResult:
    """Train `module` to `config.max_train_steps`, saving and resuming whole checkpoints.

    Args:
        config: the settings; a subclass's own fields are recorded with each checkpoint.
        module: one module; its parameters with `requires_grad` are trained and must be float32.
            `module(batch, step=int, positions=list[int])` gives a dict of scalar tensors: "loss", the mean over the
            micro batch's samples, and others to log. `step` is 0 for the first step; the randomness of the sample
            at `positions[i]` comes from `sample_generator(seed, step, positions[i])`.
        dataset: `len(dataset)`, and `dataset[i]` that depends on `i` alone; it returns a :class:`BadSample` for a
            sample that cannot be read.
        collate: list of samples -> batch. When the batch has `tokens` (attribute or key), messages name them.
        sampler: the order; the loop moves it and saves its position.
        save_model: fills a folder with the trained model as inference reads it. Called on the main process with
            the averaged weights in place (`use_ema`): for every checkpoint, and at the end for `output_dir`.
        validate: called with the number of steps done, on every rank, in eval mode, without gradients, averaged
            weights in place; it may return scalars and pictures for the trackers (the main process's are logged).
            The random states are put back after it.
        device_batch: (batch, device) -> batch on the device; by default `batch.to(device)`, or every tensor in a
            dict, list or tuple.
        parameter_groups: AdamW's groups (`params` and their own `lr`, `weight_decay`), together the trained
            parameters; one group by default.
        accelerator: from :func:`make_accelerator`, when the caller needed one before.

    Returns:
        How it ended. SIGINT (Ctrl-C) and SIGTERM let the running step finish, save a checkpoint and return.

    Raises:
        ValueError: settings, batch sizes or checkpoints that do not fit; `output_dir` has checkpoints of another
            run or later than the one to resume; every sample is unreadable; several losses in a row are not finite.

    Files in `output_dir`: `log.jsonl` (one line a step: step, loss, lr and the module's scalars; a resumed run cuts it
    at its step), `bad_samples.jsonl`, `checkpoint-<step>/` with `training_state.safetensors` and `.json`,
    `trainable.safetensors`, `training_config.json` and what `save_model` writes.
    """
    raise NotImplementedError
