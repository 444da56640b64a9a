"""Train a perception model on labelled frames: ``syntheocc occupancy train sparseocc --preset=small ...``.

Also ``python -m syntheocc.occupancy.perception.train --model=sparseocc --preset=small ...``. Under torchrun the global
batch is shared among the processes. `output_dir` gets checkpoints, the curve (log.jsonl), the list of unreadable
samples, and at the end the model, which `from_pretrained` reads.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from syntheocc.engine.batch import sample_generator
from syntheocc.engine.flags import parse_flags
from syntheocc.engine.loop import LoopResult, run_loop
from syntheocc.engine.ranks import Ranks
from syntheocc.engine.samplers import EpochSampler
from syntheocc.occupancy.perception.mixture import Mixture, training_mixture, warn_of_twins
from syntheocc.occupancy.perception.registry import model_entry
from syntheocc.occupancy.perception.settings import TrainConfig
from syntheocc.occupancy.perception.validation import Validation

__all__ = ["TrainConfig", "train"]


def train(config: TrainConfig) -> LoopResult:
    """Train a model as the settings say; run it again with `resume_from_checkpoint="latest"` to go on.

    The model takes grid and class table from the labels, everything else from its preset.

    Returns:
        how the run ended.

    Raises:
        ValueError: infos, labels or backbone weights that are missing or do not fit, an extra data root that does not
            go with the first; see also `run_loop`.
    """
    entry = model_entry(config.model)
    model_config, recipe = entry.preset(config.preset)
    model_config = entry.fit(model_config, config)
    if config.extra_dataroot:
        dataset = training_mixture(entry, model_config, recipe, config)
        names, sources = dataset.names, dataset.sources
    else:
        dataset = entry.training_data(model_config, recipe, config)
        names, sources = [frame.token for frame in dataset.frames], {}
    sampler = EpochSampler(len(dataset), config.seed, order=dataset.order, names=names, sources=sources)
    if config.epochs is not None:
        steps = sampler.steps(config.epochs, config.global_batch_size)
        config = replace(config, max_train_steps=steps, epochs=None)
    if config.lr_scheduler == "step" and not config.lr_milestones:
        config = replace(config, lr_milestones=recipe.milestone_steps(config.max_train_steps))

    torch.manual_seed(config.seed)  # every process begins with the same weights
    model = entry.build(model_config, config)
    seed = config.seed
    step = entry.step(model, config, lambda step, position, device: sample_generator(seed, step, position, device))
    validate = Validation(entry, model, config) if config.validation_steps else None
    if validate is not None and isinstance(dataset, Mixture) and Ranks.from_environment().is_main:
        warn_of_twins(dataset, validate.data.frames)
    return run_loop(
        config,
        module=step,
        dataset=dataset,
        collate=entry.collate,
        sampler=sampler,
        save_model=model.save_pretrained,
        validate=validate,
        parameter_groups=entry.parameter_groups(model, recipe, config.learning_rate),
        identity={"model": config.model, **model.config.to_dict()},
    )


def exit_status(result: LoopResult) -> int:
    """130 for a run that a signal ended (a checkpoint was saved), else 0."""
    return 130 if result.interrupted else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns the exit status: 0, 1 after an error, 130 when interrupted (a checkpoint was saved)."""
    which = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    which.add_argument("--model", default="sparseocc")
    try:
        settings = model_entry(which.parse_known_args(argv)[0].model).train_settings
    except (ValueError, argparse.ArgumentError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    config = parse_flags(settings, argv, description="Train an occupancy model on images of several cameras.")
    try:
        result = train(config)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return exit_status(result)


if __name__ == "__main__":
    sys.exit(main())
