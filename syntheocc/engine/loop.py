"""The training loop that every trainer of the project shares: accelerate below, one module and one dataset above.

Example, `fit.py`; `python fit.py` and `torchrun --standalone --nproc_per_node 2 fit.py` train the same model:
    >>> class Fit(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.line = nn.Linear(1, 1)
    ...     def forward(self, batch, step, positions):
    ...         return {"loss": (self.line(batch["x"]) - batch["y"]).square().mean()}
    >>> data = [{"x": torch.tensor([float(i)]), "y": torch.tensor([2.0 * i])} for i in range(8)]
    >>> module = Fit()
    >>> run_loop(
    ...     LoopConfig(output_dir=Path("out"), max_train_steps=100, global_batch_size=4, learning_rate=0.05),
    ...     module=module, dataset=data, collate=torch.utils.data.default_collate, sampler=EpochSampler(len(data)),
    ...     save_model=lambda folder: save_file(module.state_dict(), folder / "model.safetensors"),
    ... )
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from syntheocc.engine.batch import derive_batch, mix_seed
from syntheocc.engine.checkpoints import CheckpointFolder
from syntheocc.engine.ema import EMA
from syntheocc.engine.loading import BadSample, RankBatches, batch_tokens, rank_loader, to_device
from syntheocc.engine.loop_config import LoopConfig
from syntheocc.engine.loop_state import LoopState, plain_settings
from syntheocc.engine.optimizers import learning_rate_factor, make_optimizer, trained_parameters
from syntheocc.engine.reporting import Reporter
from syntheocc.engine.samplers import EpochSampler
from syntheocc.engine.scalars import Pending, stack_scalars
from syntheocc.engine.state import random_state, seed_everything, set_random_state
from syntheocc.engine.stopping import StopSignals
from syntheocc.engine.trackers import Trackers, make_trackers, note, tracker_names

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
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        DistributedType,
        GradientAccumulationPlugin,
        InitProcessGroupKwargs,
    )

    cuda = torch.cuda.is_available()
    if config.mixed_precision == "fp16" and not cuda:
        raise ValueError("mixed_precision=fp16 needs a GPU; give bf16 or no")
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    if config.allow_tf32:
        torch.set_float32_matmul_precision("high")
    # accelerate keeps the first precision of the process; a job that trains two models may want two.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=not cuda,  # without it torchrun on a machine without GPUs gives independent processes
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                find_unused_parameters=config.find_unused_parameters, gradient_as_bucket_view=True
            ),
            InitProcessGroupKwargs(timeout=timedelta(hours=1)),  # the main process may validate or save for long
        ],
    )
    world, started = accelerator.num_processes, int(os.environ.get("WORLD_SIZE", "1"))
    if world != started:
        raise ValueError(
            f"{started} processes were started (WORLD_SIZE) but accelerate joined {world}; start them with torchrun "
            "or accelerate launch --multi_gpu"
        )
    plan = derive_batch(config.global_batch_size, world, config.micro_batch_size)
    accelerator.gradient_accumulation_steps = plan.accumulation
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        deepspeed = accelerator.state.deepspeed_plugin.deepspeed_config
        deepspeed["train_micro_batch_size_per_gpu"] = plan.micro
        deepspeed["gradient_accumulation_steps"] = plan.accumulation
    return accelerator


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
    own = accelerator is None
    accelerator = accelerator or make_accelerator(config)
    loop = _Loop(
        config, accelerator, module, dataset, collate, sampler, save_model, validate, device_batch, parameter_groups
    )
    try:
        with StopSignals() as signals:
            return loop.run(signals)
    finally:
        loop.close()
        if own and accelerator.num_processes > 1:
            accelerator.end_training()
            accelerator.state._reset_state(True)


class _Loop:
    """One run: what is built once, and the steps."""

    def __init__(
        self, config, accelerator, module, dataset, collate, sampler, save_model, validate, device_batch, groups
    ):
        self.config, self.accelerator, self.sampler = config, accelerator, sampler
        self.save_model, self.validate, self.device_batch = save_model, validate, device_batch or to_device
        self.plan = derive_batch(config.global_batch_size, accelerator.num_processes, config.micro_batch_size)
        if accelerator.gradient_accumulation_steps != self.plan.accumulation:
            accelerator.gradient_accumulation_steps = self.plan.accumulation
        if len(dataset) != sampler.length:
            raise ValueError(f"the sampler orders {sampler.length} samples, the dataset has {len(dataset)}")
        tracker_names(config.report_to)
        if config.lr_scheduler == "constant" and config.lr_warmup_steps and accelerator.is_main_process:
            note(
                f"lr_warmup_steps={config.lr_warmup_steps} is not used by lr_scheduler=constant; "
                "constant_with_warmup has it"
            )
        self.checkpoints = CheckpointFolder(config.output_dir, config.checkpoints_total_limit)
        if accelerator.is_main_process:
            self.checkpoints.recover()
        accelerator.wait_for_everyone()
        resumed = _checkpoint_to_resume(self.checkpoints, config.resume_from_checkpoint)

        self.state = LoopState(config, accelerator, module, sampler)
        if resumed is not None:
            self.state.load_weights(resumed)
        self.trained = trained_parameters(module)
        if not self.state.sharded:
            module.to(accelerator.device)
        optimizer = make_optimizer(config, self.trained, groups)
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.fused = isinstance(optimizer, torch.optim.AdamW) and not self.state.sharded
        self.ema = EMA(self.trained, config.ema_decay) if config.use_ema else None
        if self.ema is not None and self.state.sharded:
            raise ValueError("use_ema needs whole parameters on every GPU; leave it out with FSDP or DeepSpeed")
        self.model, self.optimizer = accelerator.prepare(module, optimizer)
        self.module = module
        self.state.prepared(self.optimizer, self.ema)
        seed_everything(mix_seed(config.seed, accelerator.process_index))
        self.step = self.state.load(resumed) if resumed is not None else 0
        self.saved_step = self.step if resumed is not None else None

        self.loader = rank_loader(
            dataset,
            collate,
            RankBatches(sampler, self.plan, accelerator.process_index),
            workers=config.dataloader_num_workers,
            pin_memory=accelerator.device.type == "cuda",
            seed=mix_seed(config.seed, accelerator.process_index, self.step),
        )
        self.factor = learning_rate_factor(
            config.lr_scheduler,
            config.lr_warmup_steps,
            config.max_train_steps,
            config.lr_num_cycles,
            config.lr_power,
        )
        self.tracker = (
            make_trackers(
                config.report_to,
                config.output_dir,
                config.output_dir / config.logging_dir,
                config.tracker_project_name,
                plain_settings(config),
                self.step,
            )
            if accelerator.is_main_process
            else Trackers([])
        )

    def run(self, signals: StopSignals) -> LoopResult:
        """All steps that are left, with what is due between them."""
        from tqdm import tqdm

        config, main, batches = self.config, self.accelerator.is_main_process, iter(self.loader)
        self.signals = signals
        with tqdm(total=config.max_train_steps, initial=self.step, desc="train", unit="step", disable=not main) as bar:
            self.report = report = Reporter(self.accelerator, self.tracker, bar, config.output_dir)
            while self.step < config.max_train_steps and not self._stopped():
                report.take(self._train_step(batches))
                if self.validate is not None and _due(self.step, config.validation_steps):
                    report.flush()
                    self._validate()
                if _due(self.step, config.checkpointing_steps):
                    report.flush()
                    self._save_checkpoint()
            report.flush()
        del batches  # ends the reading processes
        finished = self.step >= config.max_train_steps
        if self.step != self.saved_step and (config.checkpointing_steps or not finished):
            if main and not finished:
                note(f"{signals.received or 'a signal to another process'}: saving checkpoint-{self.step}")
            self._save_checkpoint()
        if finished and not self.state.sharded_parameters:
            if main:
                self.checkpoints.publish(self._save_inference_model)
            self.accelerator.wait_for_everyone()
        interrupted = None if finished else signals.received or "a signal to another process"
        return LoopResult(self.step, report.loss, interrupted, report.bad_samples, report.skipped)

    def close(self) -> None:
        """Leave the module as it came: without autocast and DDP around its forward."""
        self.tracker.close()
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def _train_step(self, batches: Iterator[tuple[Any, list[BadSample]]]) -> Pending:
        """One optimizer step over the global batch; returns its scalars without waiting for them."""
        accelerator, outputs, tokens = self.accelerator, [], []
        for micro_step in range(self.plan.accumulation):
            batch, bad = next(batches)
            self.report.list_bad(bad)
            tokens += batch_tokens(batch)
            batch = self.device_batch(batch, accelerator.device)
            positions = list(self.plan.positions(accelerator.process_index, micro_step))
            # Gradients are averaged over the ranks once, in the last micro step; backward divides by their number.
            with accelerator.accumulate(self.model):
                output = self.model(batch, step=self.step, positions=positions)
                accelerator.backward(output["loss"])
            outputs.append({name: value.detach() for name, value in output.items()})
        names, means = stack_scalars(outputs)
        own_loss = means[:1]
        stop = torch.full_like(own_loss, float(self.signals.received is not None))
        agreed = accelerator.reduce(torch.cat([means, stop]), reduction="mean")
        norm = accelerator.clip_grad_norm_(list(self.trained.values()), self.config.max_grad_norm or float("inf"))
        norm = torch.as_tensor(0.0 if norm is None else norm, device=own_loss.device).float().reshape(1)
        finite = agreed[:1].isfinite()
        if accelerator.scaler is None:  # the scaler of fp16 meets infinite gradients as a matter of course
            finite = finite & norm.isfinite()
        learning_rate = self._set_learning_rate()
        self._optimizer_step(finite)
        self.step += 1
        self.sampler.advance(self.plan.global_batch_size)
        names = [*names, "stop", "grad_norm", "finite", "own_loss"]
        return Pending(self.step, names, learning_rate, tokens, torch.cat([agreed, norm, finite.float(), own_loss]))

    def _set_learning_rate(self) -> float:
        factor = self.factor(self.step)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor
        return self.base_lrs[0] * factor

    def _optimizer_step(self, finite: Tensor) -> None:
        """Step, unless loss or gradient are not finite: then parameters and moments stay as they are.

        The fused AdamW reads that from the device (`found_inf`, as torch's own gradient scaler tells it), so the CPU
        need not wait for the gradient.
        """
        optimizer = self.optimizer.optimizer
        if self.accelerator.scaler is not None or self.state.engine_steps:
            self.optimizer.step()
        elif self.fused:
            optimizer.found_inf = 1.0 - finite.float().reshape(())
            try:
                self.optimizer.step()
            finally:
                del optimizer.found_inf
        elif bool(finite):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()

    def _stopped(self) -> bool:
        """Whether to stop now: alone at once, with others when all know of it."""
        if self.accelerator.num_processes == 1:
            return self.signals.received is not None
        return self.report.stop_agreed

    @contextmanager
    def _as_inference(self) -> Iterator[None]:
        """Eval mode, averaged weights, no gradients; modes, weights and random states come back."""
        modes = {part: part.training for part in self.module.modules()}
        states = random_state()
        self.module.eval()
        try:
            with torch.no_grad():
                if self.ema is None:
                    yield
                else:
                    with self.ema.applied():
                        yield
        finally:
            for part, mode in modes.items():
                part.training = mode
            set_random_state(states)

    def _validate(self) -> None:
        with self._as_inference():
            self.report.validation(self.step, dict(self.validate(self.step) or {}))
        self.accelerator.wait_for_everyone()

    def _save_inference_model(self, folder: Path) -> None:
        with self._as_inference():
            self.save_model(folder)

    def _save_checkpoint(self) -> None:
        self.state.save(self.checkpoints, self.step, self._save_inference_model)
        self.saved_step = self.step


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _checkpoint_to_resume(checkpoints: CheckpointFolder, which: str | None) -> Path | None:
    """The checkpoint to resume; refuses to mix a run with another one's later checkpoints."""
    resumed = checkpoints.resolve(which)
    step = int(resumed.name.rpartition("-")[2]) if resumed is not None else -1
    later = [other for other in checkpoints.steps() if other > step]
    if resumed is None and later:
        raise ValueError(
            f"{checkpoints.root} has checkpoints of an earlier run (checkpoint-{later[-1]}); give "
            "resume_from_checkpoint=latest, or another output_dir"
        )
    if later:
        raise ValueError(
            f"{checkpoints.root} has checkpoints after {resumed.name} (checkpoint-{later[-1]}); move them away, or "
            "give another output_dir and the checkpoint's path"
        )
    return resumed
