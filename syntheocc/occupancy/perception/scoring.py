"""Predictions in a folder against the labels: one rank's share of the frames, counted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from syntheocc.engine.files import read_npz
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.prediction_files import with_free
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.metrics import (
    Accumulator,
    MetricResult,
    OccupancyIoU,
    RayIoU,
    RayPQ,
    panoptic_instances,
    scene_origins,
)
from syntheocc.occupancy.perception.settings import EvaluateConfig
from syntheocc.occupancy.perception.trees import completion_metric
from syntheocc.occupancy.taxonomy import UNKNOWN
from syntheocc.occupancy.transforms import invert_rigid, transform_points

__all__ = ["Scoring"]


class Scoring:
    """Counts frames, and makes figures of the counts of all ranks.

    Args:
        settings: labels, metrics and mask.
        model: the config of the model that predicted: `grid`, `taxonomy`, `panoptic`.
        device: where rays are cast.

    Raises:
        ValueError: labels of another grid or other classes than the model's, without the mask asked for, or RayPQ of a
            model that tells no objects apart.
    """

    def __init__(self, settings: EvaluateConfig, model: Any, device: torch.device | str = "cpu"):
        self.settings, self.grid, self.taxonomy, self.device = settings, model.grid, model.taxonomy, device
        mask = None if settings.mask == "none" else settings.mask
        self.labels = settings.reader()
        # The mask makes voxels unknown, which rays would stop at: mIoU alone reads it.
        self.observed = settings.reader(mask=mask) if mask and "miou" in settings.metrics else None
        if self.labels.preset != (model.grid, model.taxonomy):
            raise ValueError(
                f"{settings.weights} predicts another grid or other classes than {settings.labels} labels have; give "
                "the --labels that it was trained on"
            )
        if "raypq" in settings.metrics and not model.panoptic:
            raise ValueError(f"{settings.weights} tells no objects apart, so it has no RayPQ; leave raypq out")
        makers: dict[str, Callable[[], Accumulator]] = {
            "miou": lambda: OccupancyIoU(model.taxonomy, mask),
            "rayiou": lambda: RayIoU(model.taxonomy, model.grid),
            "raypq": lambda: RayPQ(model.taxonomy, model.grid),
            "ssc": lambda: completion_metric(settings.labels, model.grid),
        }
        self.metrics: dict[str, Any] = {name: makers[name]() for name in settings.metrics}
        # Which threshold would have been best on what is evaluated is told apart from the score.
        self.sweep = settings.threshold if len(settings.threshold) > 1 and "miou" in self.metrics else ()
        self.metrics |= {f"miou@{threshold:g}": makers["miou"]() for threshold in self.sweep}

    def origins(self, frames: Sequence[Frame]) -> dict[str, Tensor]:
        """Where rays start, token -> [O, 3] in the grid's frame: where the scene's lidar stood in any of its frames.

        Args:
            frames: all of them, scored or not. Scenes without a name are told by their token or by the label files.

        Raises:
            ValueError: poses are missing, or no origin lies within reach.
        """
        if not set(self.settings.metrics) & {"rayiou", "raypq"}:
            return {}
        named = [replace(frame, scene=self.labels.scene(frame)) for frame in frames]
        origins = scene_origins(named)
        if self.grid.frame == "ego":
            return origins
        # Frames without lidar2ego have no origins either: that was an error above.
        poses = {frame.token: frame.lidar2ego for frame in named if frame.lidar2ego is not None}
        return {token: transform_points(invert_rigid(poses[token]), points) for token, points in origins.items()}

    def count(self, frame: Frame, origins: Tensor | None, arrays: Mapping[str, Any] | None = None) -> None:
        """Count a frame.

        Args:
            frame: which one.
            origins: its rays', see `origins`.
            arrays: the prediction as its file would hold it; None: it is in the folder.

        Raises:
            ValueError: the prediction or the labels cannot be read or do not fit; nothing of the frame is counted.
        """
        token = frame.token
        path = self.settings.output_dir / f"{token}.npz"
        if arrays is None:
            arrays = read_npz(path, ["pred", "occupancy", "free_space"] if self.sweep else ["pred"])
        pred = torch.from_numpy(arrays["pred"])
        if tuple(pred.shape) != self.grid.shape:
            raise ValueError(f"{path}: holds {tuple(pred.shape)} voxels, the grid has {self.grid.shape}")
        highest = int(pred.masked_fill(pred == UNKNOWN, 0).max())
        if highest >= self.taxonomy.num_classes:
            raise ValueError(f"{path}: holds class {highest}; the classes end at {self.taxonomy.num_classes - 1}")
        found = self.labels(frame)
        assert found is not None  # the reader is not an optional one
        truth = found.semantics
        given: dict[str, tuple] = {}
        if "miou" in self.metrics:
            seen = None if self.observed is None else self.observed(frame)
            kept = None if seen is None else seen.semantics != UNKNOWN
            given["miou"] = (pred, truth, kept, token)
            for index, threshold in enumerate(self.sweep):
                free, occupancy = torch.from_numpy(arrays["free_space"][index]), torch.from_numpy(arrays["occupancy"])
                at = with_free(occupancy, free, self.taxonomy.free)
                given[f"miou@{threshold:g}"] = (at, truth, kept, token)
        if "ssc" in self.metrics:
            given["ssc"] = (pred, truth, None, None, token)
        on_device = (pred.to(self.device), truth.to(self.device))
        if "rayiou" in self.metrics:
            given["rayiou"] = (*on_device, [origins], token)
        if "raypq" in self.metrics:
            given["raypq"] = (*on_device, arrays.get("instances"), self._objects(frame, truth), [origins], token)
        for name, values in given.items():
            self.metrics[name].update(*values)

    def _objects(self, frame: Frame, truth: Tensor) -> Tensor:
        """Object ids of the ground truth, from the frame's boxes: integer [X, Y, Z], 0 none."""
        if frame.boxes is None:
            raise ValueError(f"sample {frame.token}: has no boxes to tell its objects apart")
        grid2ego = frame.lidar2ego if self.grid.frame == "lidar" else None
        return panoptic_instances(OccupancyGrid(truth, self.grid, self.taxonomy, grid2ego), frame.boxes)

    def state(self) -> dict[str, dict[str, Any]]:
        """What was counted, to be sent to another rank."""
        return {name: metric.state_dict() for name, metric in self.metrics.items()}

    def results(self, states: Sequence[dict[str, dict[str, Any]]]) -> dict[str, MetricResult]:
        """The figures of what all ranks have counted."""
        for name, metric in self.metrics.items():
            metric.reset()
            for state in states:
                metric.load_state_dict(state[name], add=True)
        return {name: metric.compute() for name, metric in self.metrics.items()}
