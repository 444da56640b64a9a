"""Scores at the arrows of ``syntheocc loop``: prediction against label, what is read again against what was asked.

An arrow compares two grids of one geometry: voxel mIoU over what the cameras see of the second, IoU of occupied
against free there, and RayIoU. The 2D arrow compares classes in the views with those of the condition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.accumulation.visibility import camera_mask
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.grids import OccupancyGrid, Preset
from syntheocc.occupancy.metrics import OccupancyIoU, RayIoU
from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["ARROWS", "LoopScores", "observed_by"]

# name -> what is compared with what
ARROWS = {
    "prediction / label": "occupancy read from the images, against the label",
    "asked for / label": "what the views were generated from, against the label",
    "read again / asked for": "occupancy read from the generated views, against what they were generated from",
    "read again / prediction": "the same, against the occupancy read from the images",
    "read again / label": "the same, against the label",
}
VIEWS = "views / condition"


def observed_by(grid: OccupancyGrid, frame: Frame) -> Tensor:
    """Voxels that the frame's cameras see: bool [X, Y, Z]."""
    return camera_mask(grid.occupied(), grid.spec, frame.cameras, grid.grid2ego)


@dataclass
class LoopScores:
    """Scores frame by frame, and over all frames.

    Args:
        preset: grid and class table that all grids have.
        judge: of views (`evaluation.judge.Judge`), None: no 2D arrow.
    """

    preset: Preset
    judge: Any | None = None
    frames: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """token -> arrow -> figures."""
    _pooled: dict[str, list[Any]] = field(default_factory=dict)
    _pixels: Tensor | None = None

    def compare(
        self, arrow: str, frame: Frame, grid: OccupancyGrid, truth: OccupancyGrid, observed: Tensor, origins: Tensor
    ) -> dict[str, float]:
        """Count one frame.

        Args:
            arrow: of `ARROWS`.
            frame: which.
            grid: what came out.
            truth: what it is held against.
            observed: bool [X, Y, Z], what the cameras see of the truth.
            origins: [O, 3] metres in the grid's frame, where rays start.

        Returns:
            "mIoU", "IoU", "RayIoU".
        """
        taxonomy, spec = self.preset.taxonomy, self.preset.spec
        voxels, rays = OccupancyIoU(taxonomy, "camera"), RayIoU(taxonomy, spec)
        voxels.update(grid.labels, truth.labels, observed, frame.token)
        # Rays stop at what is unknown in neither grid.
        guess, known = (labels.masked_fill(labels == UNKNOWN, taxonomy.free) for labels in (grid.labels, truth.labels))
        rays.update(guess, known, [origins], frame.token)
        for metric, own in zip(self._pool(arrow), (voxels, rays), strict=True):
            metric.load_state_dict(own.state_dict(), add=True)
        figures = _figures(voxels, rays)
        self.frames.setdefault(frame.token, {})[arrow] = figures
        return figures

    def judge_views(self, frame: Frame, images: list[Any], mpi: Any) -> dict[str, float] | None:
        """What the judge of views reads at the condition's cells, against the nearest class there; None without one.

        Args:
            frame: which.
            images: generated views, PIL.
            mpi: the `SemanticMPI` [V, D, h, w].
        """
        if self.judge is None or self.judge.taxonomy != mpi.taxonomy:
            return None
        from syntheocc.evaluation.scores import confusion, mean_iou
        from syntheocc.occupancy.pictures import as_picture

        pixels = torch.stack([torch.from_numpy(as_picture(image).copy()) for image in images]).movedim(-1, 1)
        seen = self.judge.predict(pixels).cpu()
        nearest = mpi.nearest.cpu()
        rows, columns = (
            ((torch.arange(n) + 0.5) * size / n).long()
            for n, size in zip(nearest.shape[-2:], seen.shape[-2:], strict=True)
        )
        seen = seen[:, rows][:, :, columns]
        asked = nearest != mpi.taxonomy.free
        counts = confusion(seen, nearest, mpi.taxonomy.num_classes, asked)
        self._pixels = counts if self._pixels is None else self._pixels + counts
        figures = {"mIoU": float(mean_iou(counts)), "same": _share(counts)}
        self.frames.setdefault(frame.token, {})[VIEWS] = figures
        return figures

    def state(self) -> dict[str, Any]:
        """What was counted, to be sent to another process."""
        pooled = {arrow: [metric.state_dict() for metric in metrics] for arrow, metrics in self._pooled.items()}
        return {"frames": self.frames, "pooled": pooled, "pixels": self._pixels}

    def load(self, states: Sequence[Mapping[str, Any]], tokens: Sequence[str]) -> None:
        """Take what all processes have counted in place of one's own.

        Args:
            states: of each.
            tokens: of all frames, in the order of the report.
        """
        found = {token: figures for state in states for token, figures in state["frames"].items()}
        self.frames = {token: found[token] for token in tokens if token in found}
        self._pooled, self._pixels = {}, None
        for state in states:
            for arrow, counted in state["pooled"].items():
                for metric, own in zip(self._pool(arrow), counted, strict=True):
                    metric.load_state_dict(own, add=True)
            if state["pixels"] is not None:
                self._pixels = state["pixels"] if self._pixels is None else self._pixels + state["pixels"]

    def _pool(self, arrow: str) -> list[Any]:
        """The accumulators of an arrow over all frames."""
        spec, taxonomy = self.preset
        return self._pooled.setdefault(arrow, [OccupancyIoU(taxonomy, "camera"), RayIoU(taxonomy, spec)])

    def summary(self) -> dict[str, dict[str, float]]:
        """Arrow -> figures over all frames counted at once."""
        from syntheocc.evaluation.scores import mean_iou

        found = {arrow: _figures(*pooled) for arrow, pooled in self._pooled.items()}
        if self._pixels is not None:
            found[VIEWS] = {"mIoU": float(mean_iou(self._pixels)), "same": _share(self._pixels)}
        return found

    def classes(self) -> dict[str, Mapping[str, Mapping[str, Any]]]:
        """Arrow -> class -> IoU and RayIoU columns, over all frames."""
        found: dict[str, Mapping[str, Mapping[str, Any]]] = {}
        for arrow, (voxels, rays) in self._pooled.items():
            by_voxel, by_ray = voxels.compute().per_class, rays.compute().per_class
            found[arrow] = {name: {**by_voxel[name], **by_ray.get(name, {})} for name in by_voxel}
        return found


def _figures(voxels: OccupancyIoU, rays: RayIoU) -> dict[str, float]:
    found = voxels.compute()
    return {"mIoU": found["mIoU"], "IoU": found["IoU"], "RayIoU": rays.compute()["RayIoU"]}


def _share(counts: Tensor) -> float:
    return float(counts.diagonal().sum() / counts.sum().clamp_min(1))
