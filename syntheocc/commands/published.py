"""Flags that the published scripts pass to inference too, but that only training uses.

`infer.py` accepts them, so that a command line written for the original keeps working, and says which it ignores.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from syntheocc.engine.flags import flag

_IGNORED = "only training uses it; accepted and ignored"


@dataclass(kw_only=True)
class TrainingOnlyFlags:
    """The training flags of the published scripts; None: not given."""

    output_dir: str | None = flag(None, _IGNORED)
    logging_dir: str | None = flag(None, _IGNORED)
    report_to: str | None = flag(None, _IGNORED)
    tracker_project_name: str | None = flag(None, _IGNORED)
    controlnet_model_name_or_path: str | None = flag(None, _IGNORED)
    tokenizer_name: str | None = flag(None, _IGNORED)
    resume_from_checkpoint: str | None = flag(None, _IGNORED)
    checkpointing_steps: int | None = flag(None, _IGNORED)
    checkpoints_total_limit: int | None = flag(None, _IGNORED)
    learning_rate: float | None = flag(None, _IGNORED)
    lr_scheduler: str | None = flag(None, _IGNORED)
    lr_warmup_steps: int | None = flag(None, _IGNORED)
    num_train_epochs: int | None = flag(None, _IGNORED)
    max_train_steps: int | None = flag(None, _IGNORED)
    train_batch_size: int | None = flag(None, _IGNORED)
    gradient_accumulation_steps: int | None = flag(None, _IGNORED)
    gradient_checkpointing: bool | None = flag(None, _IGNORED)
    max_grad_norm: float | None = flag(None, _IGNORED)
    use_8bit_adam: bool | None = flag(None, _IGNORED)
    adam_beta1: float | None = flag(None, _IGNORED)
    adam_beta2: float | None = flag(None, _IGNORED)
    adam_weight_decay: float | None = flag(None, _IGNORED)
    adam_epsilon: float | None = flag(None, _IGNORED)
    dataloader_num_workers: int | None = flag(None, _IGNORED)
    use_cbgs: bool | None = flag(None, _IGNORED)
    proportion_empty_prompts: float | None = flag(None, _IGNORED)
    num_validation_images: int | None = flag(None, _IGNORED)
    validation_steps: int | None = flag(None, _IGNORED)
    push_to_hub: bool | None = flag(None, _IGNORED)
    hub_model_id: str | None = flag(None, _IGNORED)


def ignored_flags(config: Any) -> list[str]:
    """The training flags that were given, as ``--name``; empty for a config without them."""
    if not isinstance(config, TrainingOnlyFlags):
        return []
    names = [field.name for field in dataclasses.fields(TrainingOnlyFlags)]
    return [f"--{name}" for name in names if getattr(config, name) is not None]
