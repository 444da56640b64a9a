"""Samples as training and prediction want them, from settings and a model's config."""

from collections.abc import Callable
from typing import Any

from syntheocc.engine.loading import BadSample
from syntheocc.occupancy.metrics import panoptic_instances
from syntheocc.occupancy.perception.dataset import OccupancyFrames, Sampling
from syntheocc.occupancy.perception.labels import LabelReader
from syntheocc.occupancy.perception.recipes import TrainingRecipe
from syntheocc.occupancy.perception.settings import SourceConfig, TrainConfig
from syntheocc.occupancy.perception.transforms import ImageAugmentation

__all__ = ["ROUNDS", "check_readable", "evenly_spread", "test_samples", "training_labels", "training_samples"]

# Different samples of a frame before its draws repeat: more than any recipe has epochs.
ROUNDS = 100
# Frames that are tried before a training begins.
_PROBED = 8


def training_labels(settings: TrainConfig, model: Any) -> LabelReader:
    """The labels that a model learns from: of the voxels that the mask leaves, with objects for a panoptic one."""
    source = settings.instances if model.panoptic else None
    mask = None if settings.label_mask == "none" else settings.label_mask
    rule = panoptic_instances if source == "boxes" else None
    reader = settings.reader(mask=mask, instances=source, rule=rule)
    if not isinstance(reader, LabelReader):
        raise ValueError(f"{settings.labels} labels teach scene completion; {settings.model} does not learn from them")
    return reader


def training_samples(
    settings: TrainConfig,
    model: Any,
    recipe: TrainingRecipe,
    labels: LabelReader,
    unreadable: Callable[[str, str], Any],
) -> OccupancyFrames:
    """Augmented samples, every frame in more rounds than there are epochs.

    Args:
        settings: frames and seed.
        model: a config: number of frames, size of the images, grid.
        recipe: which augmentations.
        labels: the ground truth.
        unreadable: see `OccupancyFrames`.
    """
    return OccupancyFrames(
        settings.frames(),
        _sampling(model, settings, flip=recipe.flip_images, training=True, grid_turns=recipe.flip_and_turn_grid),
        model.grid,
        labels,
        data_root=settings.dataroot,
        seed=settings.seed,
        rounds=max(ROUNDS, settings.epochs or 0),
        unreadable=unreadable,
    )


def test_samples(
    settings: SourceConfig, model: Any, unreadable: Callable[[str, str], Any], **sampling: Any
) -> OccupancyFrames:
    """Samples of all frames, also those beyond `max_samples`: older images come from them. No ground truth.

    Args:
        settings: the frames.
        model: a config: number of frames, size of the images, grid.
        unreadable: see `OccupancyFrames`.
        sampling: more fields of `Sampling`.
    """
    return OccupancyFrames(
        settings.frames(everything=True, unreadable={}),  # whoever calls says which are left out
        _sampling(model, settings, **sampling),
        model.grid,
        data_root=settings.dataroot,
        unreadable=unreadable,
    )


def evenly_spread(number: int, wanted: int) -> list[int]:
    """Up to `wanted` of the indices below `number`, evenly spread, from the first."""
    wanted = min(number, wanted)
    return [number * i // wanted for i in range(wanted)]


def check_readable(data: Any) -> Any:
    """The first sample of a few that can be read.

    Args:
        data: a training dataset with `frames`, which gives `BadSample` for what cannot be read.

    Raises:
        ValueError: none of them can: depth that was never made, labels not unpacked.
    """
    tried = evenly_spread(len(data.frames), _PROBED)
    for index in tried:
        sample = data[index]
        if not isinstance(sample, BadSample):
            return sample
    raise ValueError(
        f"none of {len(tried)} frames that were tried can be read; the last one, {sample.token}: {sample.reason}"
    )


def _sampling(model: Any, settings: SourceConfig, flip: bool = False, **more: Any) -> Sampling:
    height, width = model.image_size
    image = ImageAugmentation(height=height, width=width, flip=flip)
    return Sampling(num_frames=model.num_frames, image=image, **settings.picture_settings(), **more)
