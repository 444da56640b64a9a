"""Flags that the published scripts pass to inference too, but that only training uses.

`infer.py` accepts them, so that a command line written for the original keeps working, and says which it ignores.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from syntheocc.engine.flags import flag


def _ignored() -> Any:
    return flag(None, "only training uses it", ignored=True)


@dataclass(kw_only=True)
class TrainingOnlyFlags:
    """The training flags of the published scripts; None: not given."""

    output_dir: str | None = _ignored()
    logging_dir: str | None = _ignored()
    report_to: str | None = _ignored()
    tracker_project_name: str | None = _ignored()
    controlnet_model_name_or_path: str | None = _ignored()
    tokenizer_name: str | None = _ignored()
    resume_from_checkpoint: str | None = _ignored()
    checkpointing_steps: int | None = _ignored()
    checkpoints_total_limit: int | None = _ignored()
    learning_rate: float | None = _ignored()
    lr_scheduler: str | None = _ignored()
    lr_warmup_steps: int | None = _ignored()
    num_train_epochs: int | None = _ignored()
    max_train_steps: int | None = _ignored()
    train_batch_size: int | None = _ignored()
    gradient_accumulation_steps: int | None = _ignored()
    gradient_checkpointing: bool | None = _ignored()
    max_grad_norm: float | None = _ignored()
    use_8bit_adam: bool | None = _ignored()
    adam_beta1: float | None = _ignored()
    adam_beta2: float | None = _ignored()
    adam_weight_decay: float | None = _ignored()
    adam_epsilon: float | None = _ignored()
    dataloader_num_workers: int | None = _ignored()
    use_cbgs: bool | None = _ignored()
    proportion_empty_prompts: float | None = _ignored()
    num_validation_images: int | None = _ignored()
    validation_steps: int | None = _ignored()
    push_to_hub: bool | None = _ignored()
    hub_model_id: str | None = _ignored()


def ignored_flags(config: Any) -> list[str]:
    """The training flags that were given, as ``--name``; empty for a config without them."""
    ignored = [field.name for field in dataclasses.fields(config) if field.metadata.get("ignored")]
    return [f"--{name}" for name in ignored if getattr(config, name) is not None]
