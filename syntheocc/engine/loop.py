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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from syntheocc.engine.accelerating import make_accelerator
from syntheocc.engine.batch import derive_batch, mix_seed
from syntheocc.engine.checkpoints import CheckpointFolder
from syntheocc.engine.claim import claimed
from syntheocc.engine.ema import EMA
from syntheocc.engine.loading import BadSample, RankBatches, batch_tokens, rank_loader, reading, to_device
from syntheocc.engine.loop_config import LoopConfig
from syntheocc.engine.loop_state import LoopState, check_agreement, checkpoint_to_resume, plain_settings
from syntheocc.engine.optimizers import learning_rate_factor, make_optimizer, trained_parameters
from syntheocc.engine.reporting import Reporter
from syntheocc.engine.samplers import EpochSampler
from syntheocc.engine.scalars import Pending, check_output, stack_scalars
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
    identity: Mapping[str, Any] | None = None,
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
        identity: what makes the model what it is, as JSON holds it (a config); a checkpoint of another one is refused,
            also where its tensors would fit.

    Returns:
        How it ended. SIGINT (Ctrl-C) and SIGTERM let the running step finish, save a checkpoint and return.

    Raises:
        ValueError: settings, batch sizes or checkpoints that do not fit; `output_dir` has checkpoints of another
            run or later than the one to resume, or another job writes there; every sample is unreadable; several
            losses in a row are not finite.

    Files in `output_dir`: `log.jsonl` (one line a step: step, loss, lr and the module's scalars; a resumed run cuts it
    at its step), `bad_samples.jsonl`, `checkpoint-<step>/` with `training_state.safetensors` and `.json`,
    `trainable.safetensors`, `training_config.json` and what `save_model` writes.
    """
    own = accelerator is None
    accelerator = accelerator or make_accelerator(config)
    loop = _Loop(
        config, accelerator, module, dataset, collate, sampler, save_model, validate, device_batch or to_device
    )
    loop.check()
    with claimed(config.output_dir) if accelerator.is_main_process else nullcontext():
        try:
            loop.prepare(parameter_groups, identity)
            with StopSignals() as signals:
                result = loop.run(signals)
        finally:
            loop.close()
    if own and accelerator.num_processes > 1:
        accelerator.end_training()
        accelerator.state._reset_state(True)
    return result


@dataclass
class _Loop:
    """One run: what it was given, what :meth:`prepare` makes of it, and the steps."""

    config: LoopConfig
    accelerator: "Accelerator"
    module: nn.Module
    dataset: Any
    collate: Callable[[list[Any]], Any]
    sampler: EpochSampler
    save_model: Callable[[Path], None]
    validate: Callable[[int], Validation | None] | None
    device_batch: Callable[[Any, Any], Any]

    def prepare(
        self, parameter_groups: Sequence[Mapping[str, Any]] | None, identity: Mapping[str, Any] | None = None
    ) -> None:
        """Build and resume."""
        config, accelerator, module = self.config, self.accelerator, self.module
        self.trackers = Trackers([])
        self.model: Any = module
        checkpoints = CheckpointFolder(config.output_dir, config.checkpoints_total_limit)
        if self.main:
            checkpoints.recover()
        accelerator.wait_for_everyone()
        resumed = checkpoint_to_resume(checkpoints, config.resume_from_checkpoint)
        check_agreement(accelerator, checkpoint=resumed and resumed.name, samples=len(self.dataset))

        self.state = LoopState(config, accelerator, module, self.sampler, checkpoints, identity)
        if resumed is not None:
            self.state.check_identity(resumed)
            self.state.load_weights(resumed)
        trained = trained_parameters(module)
        if config.use_ema and self.state.sharded:
            raise ValueError("use_ema needs whole parameters on every GPU; leave it out with FSDP or DeepSpeed")
        if not self.state.sharded:
            module.to(accelerator.device)
        optimizer = make_optimizer(config, trained, parameter_groups)
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.ema = EMA(trained, config.ema_decay, config.ema_ramp, config.ema_first) if config.use_ema else None
        self.model, self.optimizer = accelerator.prepare(module, optimizer)
        self.clipped = list(self.model.parameters() if self.state.sharded else trained.values())
        self.fused = isinstance(optimizer, torch.optim.AdamW) and not self.state.sharded
        self.state.prepared(self.optimizer, self.ema)
        seed_everything(mix_seed(config.seed, accelerator.process_index))
        self.step = self.state.load(resumed) if resumed is not None else 0
        self.saved_step = self.step if resumed is not None else -1

        self.loader = rank_loader(
            self.dataset,
            self.collate,
            RankBatches(self.sampler, self.plan, accelerator.process_index),
            workers=config.dataloader_num_workers,
            pin_memory=accelerator.device.type == "cuda",
            seed=mix_seed(config.seed, accelerator.process_index, self.step),
        )
        if self.main:
            own = resumed is not None and resumed.parent.resolve() == config.output_dir.resolve()
            self.trackers = make_trackers(config, plain_settings(config), self.step if own else 0)

    def check(self) -> None:
        """What can be wrong before anything is loaded or written."""
        config, accelerator = self.config, self.accelerator
        self.main = accelerator.is_main_process
        self.plan = derive_batch(config.global_batch_size, accelerator.num_processes, config.micro_batch_size)
        accelerator.gradient_accumulation_steps = self.plan.accumulation
        if len(self.dataset) != self.sampler.length:
            raise ValueError(
                f"the sampler orders {self.sampler.length} samples, the dataset has {len(self.dataset)}; make the "
                "sampler with len(dataset)"
            )
        tracker_names(config.report_to)
        self.factor = learning_rate_factor(
            config.lr_scheduler,
            config.lr_warmup_steps,
            config.max_train_steps,
            config.lr_num_cycles,
            config.lr_power,
            warmup_start=config.lr_warmup_start,
            end=config.lr_end,
            milestones=config.lr_milestones,
            decay=config.lr_decay,
        )
        if config.lr_scheduler == "constant" and config.lr_warmup_steps and self.main:
            note(
                f"lr_warmup_steps={config.lr_warmup_steps} is not used by lr_scheduler=constant; "
                "constant_with_warmup uses it"
            )

    def run(self, signals: StopSignals) -> LoopResult:
        """All steps that are left, with what is due between them."""
        from tqdm import tqdm

        config, main = self.config, self.main
        self.signals = signals
        with (
            reading(self.loader) as batches,
            tqdm(total=config.max_train_steps, initial=self.step, desc="train", unit="step", disable=not main) as bar,
        ):
            self.report = report = Reporter(self.accelerator, self.trackers, bar, config.output_dir)
            while self.step < config.max_train_steps and not self._stopped():
                report.take(self._train_step(batches))
                if _due(self.step, config.validation_steps):
                    report.flush()
                    self._validate()
                if _due(self.step, config.checkpointing_steps):
                    report.flush()
                    self._save_checkpoint()
            report.flush()
        finished = self.step >= config.max_train_steps
        if self.step != self.saved_step and (config.checkpointing_steps or not finished):
            if main and not finished:
                note(f"{signals.received or 'a signal to another process'}: saving checkpoint-{self.step}")
            self._save_checkpoint()
        if finished and not self.state.sharded_parameters:
            if main:
                self.state.checkpoints.publish(self._save_inference_model)
            self.accelerator.wait_for_everyone()
        interrupted = None if finished else signals.received or "a signal to another process"
        return LoopResult(self.step, report.loss, interrupted, report.bad_samples, report.skipped)

    def close(self) -> None:
        """Leave the module as it came: without autocast and DDP around its forward."""
        self.trackers.close()
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def _train_step(self, batches: Iterator[tuple[Any, list[BadSample]]]) -> Pending:
        """One optimizer step over the global batch; returns its scalars without waiting for them."""
        accelerator, outputs, tokens = self.accelerator, [], []
        learning_rate = self._set_learning_rate()
        for micro_step in range(self.plan.accumulation):
            batch, bad = next(batches)
            self.report.list_bad(bad)
            tokens += batch_tokens(batch)
            batch = self.device_batch(batch, accelerator.device)
            positions = list(self.plan.positions(accelerator.process_index, micro_step))
            # Gradients are averaged over the ranks once, in the last micro step; backward divides by their number.
            with accelerator.accumulate(self.model):
                output = self.model(batch, step=self.step, positions=positions)
                check_output(output)
                accelerator.backward(output["loss"])
            outputs.append({name: value.detach() for name, value in output.items()})
        names, means = stack_scalars(outputs)
        own_loss = means[:1]
        stop = torch.full_like(own_loss, float(self.signals.received is not None))
        agreed = accelerator.reduce(torch.cat([means, stop]), reduction="mean")
        norm = accelerator.clip_grad_norm_(self.clipped, self.config.max_grad_norm or float("inf"))
        norm = torch.as_tensor(0.0 if norm is None else norm, device=own_loss.device).float().reshape(1)
        finite = agreed[:1].isfinite()
        if accelerator.scaler is None:  # the scaler of fp16 meets infinite gradients as a matter of course
            finite = finite & norm.isfinite()
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
        if self.validate is not None:
            with self._as_inference():
                self.report.validation(self.step, dict(self.validate(self.step) or {}))
        self.accelerator.wait_for_everyone()

    def _save_inference_model(self, folder: Path) -> None:
        with self._as_inference():
            self.save_model(folder)

    def _save_checkpoint(self) -> None:
        self.state.save(self.step, self._save_inference_model)
        self.saved_step = self.step


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
