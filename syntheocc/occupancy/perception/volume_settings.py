"""Flags of training with 2D labels, beside those that every model has."""

from dataclasses import dataclass
from typing import Literal

from syntheocc.engine.flags import flag
from syntheocc.occupancy.perception.settings import TrainConfig

__all__ = ["RenderTrainConfig"]


@dataclass(kw_only=True)
class RenderTrainConfig(TrainConfig):
    """Settings of a training run of OccFlowNet, SplattingOcc or RenderOcc.

    The weights that are saved are averages over the last steps, as published.
    """

    lidar_labels: Literal["lidarseg", "panoptic"] = flag("lidarseg", "whose files give the classes of lidar points")
    lidarseg_version: str | None = flag(None, "folder below lidarseg/, e.g. v1.0-mini; empty: where a file is found")
    personal_mobility: Literal["others", "pedestrian"] = flag("others", "class of scooters and the like")
    allow_missing_lidar: bool = flag(False, "a sweep or its labels that do not exist are a frame without lidar")
    use_ema: bool = flag(True, "keep an average of the weights; validation and saved models use it")
    ema_decay: float = flag(0.999, "decay of the average")
    ema_ramp: float | None = flag(2000.0, "steps over which the decay rises by 1 - e^(-step / ramp)")
    ema_first: int = flag(0, "with ema_ramp, the step that it begins at; published runs count from 10560")
