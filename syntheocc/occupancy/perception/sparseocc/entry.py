"""SparseOcc as the programs see it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.perception.batch import OccupancyBatch
from syntheocc.occupancy.perception.dataset import KeyImages, OccupancyFrames
from syntheocc.occupancy.perception.prediction import OccupancyPrediction
from syntheocc.occupancy.perception.registry import GeneratorOf, ModelEntry
from syntheocc.occupancy.perception.settings import PredictConfig, TrainConfig
from syntheocc.occupancy.perception.sparseocc.acceleration import prepare_for_inference
from syntheocc.occupancy.perception.sparseocc.config import SparseOccConfig
from syntheocc.occupancy.perception.sparseocc.model import SparseOcc
from syntheocc.occupancy.perception.sparseocc.presets import PRESETS, class_frequencies, thing_classes
from syntheocc.occupancy.perception.sparseocc.step import SparseOccStep
from syntheocc.occupancy.perception.sparseocc.temporal import OnlinePredictor

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class SparseOccEntry(ModelEntry):
    """Learns from labelled grids; the grid and the classes are those of the labels."""

    name = "sparseocc"
    model_class = SparseOcc
    presets = PRESETS
    # The published files also name the data set that the backbone was trained on.
    published = {name.replace("r50_", "r50_nuimg_"): name for name in PRESETS if name.startswith("r50_")}

    def fit(self, config: SparseOccConfig, settings: TrainConfig) -> SparseOccConfig:
        """The preset on the labels' grid and classes; panoptic ones keep telling the same objects apart."""
        grid, taxonomy = settings.reader().preset
        changes: dict[str, Any] = {"grid": grid}
        if taxonomy != config.taxonomy:
            changes["taxonomy"] = taxonomy
            if config.class_frequencies is not None:
                changes["class_frequencies"] = class_frequencies(taxonomy)
            if config.panoptic:
                changes["instance_classes"] = thing_classes(taxonomy)
        if settings.frames_per_sample is not None:
            changes["num_frames"] = settings.frames_per_sample
        return replace(config, **changes)

    def step(self, model: SparseOcc, settings: TrainConfig, generator_of: GeneratorOf) -> SparseOccStep:
        """Losses on the labels."""
        return SparseOccStep(model, generator_of)

    def parameter_groups(self, model: SparseOcc, recipe: Any, learning_rate: float) -> list[dict[str, Any]]:
        """Backbone and sampling offsets learn slower."""
        return model.parameter_groups(replace(recipe, learning_rate=learning_rate))

    def predictor(
        self, model: SparseOcc, settings: PredictConfig, data: OccupancyFrames
    ) -> Callable[[OccupancyBatch], OccupancyPrediction]:
        """From all images at once, or from those of the current frame and remembered features."""
        if settings.threshold:
            raise ValueError("SparseOcc predicts no density that a threshold could cut; leave --threshold out")
        device = next(model.parameters()).device
        if settings.half != "no":
            model = prepare_for_inference(model, _DTYPES[settings.half])
        if not settings.online:
            return lambda batch: model.predict(batch.images, batch.ego2img)
        # A batch may hold frames of as many drives as it has samples.
        online = OnlinePredictor(model, 4 * model.config.num_frames * settings.batch_size)
        others = KeyImages(data, device)
        return lambda batch: online(batch.shots, _Given(batch, others), batch.ego2img)


class _Given(Mapping[str, Tensor]):
    """A batch's own images by token, and behind them those of any key frame."""

    def __init__(self, batch: OccupancyBatch, others: Mapping[str, Tensor]):
        self.own = {shots[0]: images[0] for shots, images in zip(batch.shots, batch.images, strict=True)}
        self.others = others

    def __getitem__(self, token: str) -> Tensor:
        return self.own[token] if token in self.own else self.others[token]

    def __contains__(self, token: object) -> bool:
        return token in self.own or token in self.others

    def __iter__(self):
        return iter({**self.own, **dict.fromkeys(self.others)})

    def __len__(self) -> int:
        return len(set(self.own) | set(self.others))


ENTRY = SparseOccEntry()
