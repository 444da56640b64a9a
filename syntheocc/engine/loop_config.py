"""The settings of a training loop, as a dataclass that trainers extend with their own flags."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from syntheocc.engine.flags import flag

LRScheduler = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "step"
]


@dataclass(kw_only=True)
class LoopConfig:
    """What :func:`syntheocc.engine.loop.run_loop` needs to know; a trainer's own dataclass inherits from it.

    Defaults are those of the published command lines where these have one.

    Raises:
        ValueError: a value is out of its range; the message names it.
    """

    output_dir: Path = flag(Path("outputs"), "folder of checkpoints, logs and the trained model")
    max_train_steps: int = flag(1000, "optimizer steps to train")
    seed: int = flag(0, "seed of the order of the samples, of noise and of dropout")
    global_batch_size: int = flag(8, "samples of one optimizer step, over all GPUs")
    micro_batch_size: int | None = flag(None, "samples a GPU holds at a time; empty: its share of the global batch")

    learning_rate: float = flag(2e-5, "learning rate after warm-up")
    lr_scheduler: LRScheduler = flag("constant", "schedule of the learning rate")
    lr_warmup_steps: int = flag(0, "steps over which the learning rate rises; 'constant' has none")
    lr_warmup_start: float = flag(0.0, "share of the learning rate at which it begins to rise")
    lr_num_cycles: int = flag(1, "restarts of cosine_with_restarts")
    lr_power: float = flag(1.0, "power of polynomial")
    lr_milestones: tuple[int, ...] = flag((), "steps after each of which 'step' multiplies the rate by lr_decay")
    lr_decay: float = flag(0.1, "factor of 'step'")
    lr_end: float = flag(0.0, "share of the learning rate at which linear, cosine and polynomial end")
    use_8bit_adam: bool = flag(False, "AdamW with 8-bit states (needs bitsandbytes)")
    adam_beta1: float = flag(0.9, "decay of AdamW's first moment")
    adam_beta2: float = flag(0.999, "decay of AdamW's second moment")
    adam_weight_decay: float = flag(1e-2, "weight decay of AdamW")
    adam_epsilon: float = flag(1e-8, "epsilon of AdamW")
    max_grad_norm: float = flag(1.0, "gradients are clipped to this norm over all trained parameters; 0: not clipped")

    mixed_precision: Literal["no", "fp16", "bf16"] | None = flag(
        None, "autocast of the forward pass; empty: as accelerate is configured"
    )
    allow_tf32: bool = flag(False, "TF32 matrix products on Ampere and later GPUs")
    deterministic: bool = flag(
        False, "only deterministic kernels (slower): resumed runs equal bit for bit on GPUs too"
    )

    use_ema: bool = flag(False, "keep an average of the weights; validation and saved models use it")
    ema_decay: float = flag(0.9999, "decay of the average")
    ema_ramp: float | None = flag(
        None, "steps over which the decay rises by 1 - e^(-step / ramp); empty: (1+n)/(10+n)"
    )
    ema_first: int = flag(0, "with ema_ramp, the step that it begins at")

    checkpointing_steps: int = flag(500, "save a checkpoint every so many steps; 0: only when interrupted")
    checkpoints_total_limit: int | None = flag(None, "how many checkpoints to keep; empty: all")
    resume_from_checkpoint: str | None = flag(None, "'latest', a checkpoint's name or path")
    validation_steps: int = flag(0, "validate every so many steps; 0: never")
    report_to: str = flag("none", "trackers besides the JSON lines: tensorboard, wandb, both with a comma, all, none")
    logging_dir: str = flag("logs", "folder of the trackers' files, within output_dir")
    tracker_project_name: str = flag("syntheocc", "project of the run in the trackers")
    dataloader_num_workers: int = flag(0, "processes that read samples, per GPU; 0: in the training process")
    find_unused_parameters: bool = flag(False, "for modules in which some trained parameters may get no gradient")

    def __post_init__(self) -> None:
        self.output_dir = Path(self.output_dir)
        _at_least(self, 1, "max_train_steps", "global_batch_size", "lr_num_cycles")
        _at_least(self, 1, "micro_batch_size", "checkpoints_total_limit")
        _at_least(self, 0, "ema_first", "seed", "lr_warmup_steps", "checkpointing_steps", "validation_steps")
        _at_least(self, 0, "dataloader_num_workers", "learning_rate", "adam_weight_decay", "max_grad_norm")
        if self.seed >= 2**63:
            raise ValueError(f"seed is {self.seed}; it must be below 2^63")
        for name in ("adam_beta1", "adam_beta2", "ema_decay"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is in [0, 1), got {getattr(self, name)}")
        for name in ("lr_warmup_start", "lr_decay", "lr_end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is in [0, 1], got {getattr(self, name)}")
        if any(not low < high for low, high in pairwise((0, *self.lr_milestones))):
            raise ValueError(f"lr_milestones are steps in ascending order, got {self.lr_milestones}")
        if self.ema_ramp is not None and not self.ema_ramp > 0.0:
            raise ValueError(f"ema_ramp is above 0, got {self.ema_ramp}")
        if not self.adam_epsilon > 0.0:
            raise ValueError(f"adam_epsilon is above 0, got {self.adam_epsilon}")


def _at_least(config: LoopConfig, low: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not low <= value < float("inf"):
            raise ValueError(f"{name} is {value}; it must be {low} or more")
