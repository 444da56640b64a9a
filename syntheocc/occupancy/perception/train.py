"""Train a perception model on labelled frames: ``python -m syntheocc.occupancy.perception.train --preset=small ...``.

Under torchrun the global batch is shared among the processes. `output_dir` gets checkpoints, the curve (log.jsonl),
the list of unreadable samples, and at the end the model, which `from_pretrained` reads.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from syntheocc.engine.batch import sample_generator
from syntheocc.engine.flags import flag, parse_flags
from syntheocc.engine.loop import BadSample, LoopConfig, LoopResult, run_loop
from syntheocc.engine.loop_config import LRScheduler
from syntheocc.engine.samplers import EpochSampler
from syntheocc.occupancy.metrics import panoptic_instances
from syntheocc.occupancy.perception.dataset import collate
from syntheocc.occupancy.perception.sources import SourceConfig, make_dataset, model_config_for
from syntheocc.occupancy.perception.sparseocc import SparseOcc, presets
from syntheocc.occupancy.perception.sparseocc.step import SparseOccStep

__all__ = ["TrainConfig", "train"]

# Different samples of a frame before its draws repeat: more than any recipe has epochs.
_ROUNDS = 100


@dataclass(kw_only=True)
class TrainConfig(SourceConfig, LoopConfig):
    """Settings of a training run.

    Defaults are those of SparseOcc 1.1, but for the schedule: a cosine instead of one drop after 22 of 24 epochs.

    Raises:
        ValueError: a value is out of its range, or a preset that there is not.
    """

    model: Literal["sparseocc"] = flag("sparseocc", "which model")
    preset: str = flag("small", f"which of the model's presets: {', '.join(presets.PRESETS)}")
    frames_per_sample: int | None = flag(None, "frames the model sees, the current one included; empty: the preset's")
    backbone_weights: Path | None = flag(None, "a detector's or classifier's weights for the ResNet; empty: random")
    label_mask: Literal["camera", "lidar", "none"] = flag("camera", "learn from voxels that this sensor observed")
    instances: Literal["file", "boxes"] = flag("boxes", "whence object ids come, for panoptic presets")
    epochs: int | None = flag(None, "train for so many epochs instead of max_train_steps")
    gradient_checkpointing: bool = flag(False, "less memory, more time")

    learning_rate: float = flag(5e-4, "learning rate after warm-up; the backbone's is a tenth of it")
    lr_scheduler: LRScheduler = flag("cosine", "schedule of the learning rate")
    lr_warmup_steps: int = flag(500, "steps over which the learning rate rises from 0")
    max_grad_norm: float = flag(35.0, "gradients are clipped to this norm; 0: not clipped")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_source()
        self.backbone_weights = None if self.backbone_weights is None else Path(self.backbone_weights)
        presets.preset(self.preset)
        for name in ("epochs", "frames_per_sample"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")


def train(config: TrainConfig) -> LoopResult:
    """Train a model as the settings say; run it again with `resume_from_checkpoint="latest"` to go on.

    The model takes grid and class table from the labels, everything else from its preset.

    Returns:
        how the run ended.

    Raises:
        ValueError: infos, labels or backbone weights that are missing or do not fit; see also `run_loop`.
    """
    model_config, recipe = presets.preset(config.preset)
    mask = None if config.label_mask == "none" else config.label_mask
    source = config.instances if model_config.panoptic else None
    rule = panoptic_instances if source == "boxes" else None
    labels = config.reader(mask=mask, instances=source, rule=rule)
    model_config = model_config_for(model_config, labels, config.frames_per_sample)
    dataset = make_dataset(
        config.frames(),
        model_config,
        labels,
        training=True,
        flip_images=recipe.flip_images,
        turn_grid=recipe.flip_and_turn_grid,
        data_root=config.dataroot,
        seed=config.seed,
        rounds=max(_ROUNDS, config.epochs or 0),
        unreadable=BadSample,
    )
    sampler = EpochSampler(len(dataset), config.seed, order=dataset.order)
    if config.epochs is not None:
        config = replace(config, max_train_steps=sampler.steps(config.epochs, config.global_batch_size))

    torch.manual_seed(config.seed)  # every process begins with the same weights
    model = SparseOcc(model_config)
    if config.backbone_weights is not None:
        print(model.load_backbone(config.backbone_weights))
    model.gradient_checkpointing_enable(config.gradient_checkpointing)
    seed = config.seed
    return run_loop(
        config,
        module=SparseOccStep(model, lambda step, position, device: sample_generator(seed, step, position, device)),
        dataset=dataset,
        collate=collate,
        sampler=sampler,
        save_model=model.save_pretrained,
        parameter_groups=model.parameter_groups(replace(recipe, learning_rate=config.learning_rate)),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns the exit status: 0, 1 after an error, 130 when interrupted (a checkpoint was saved)."""
    config = parse_flags(TrainConfig, argv, description="Train an occupancy model on images of several cameras.")
    try:
        result = train(config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
