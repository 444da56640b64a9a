"""RayIoU: what a lidar would see of the prediction, class by class, to a tolerance in depth (specs/sparseocc.md 3.5).

Rays are cast from where the scene's lidar stood into ground truth and prediction. A ray is a true positive of a class
when both meet that class and their distances differ by less than a threshold. Legend: B frames, O origins, R rays, C
classes, T thresholds, X Y Z voxels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.grids import OCC3D_NUSCENES, GridSpec, OccupancyGrid
from syntheocc.occupancy.metrics.accumulator import Accumulator, MetricResult, about
from syntheocc.occupancy.metrics.inputs import as_labels, as_origins, as_tokens
from syntheocc.occupancy.metrics.rays import LIDAR_RAYS, lidar_rays
from syntheocc.occupancy.ops.ray_confusion import RayRules, ray_confusion
from syntheocc.occupancy.ops.ray_confusion.reference import count_rays
from syntheocc.occupancy.taxonomy import Taxonomy

__all__ = ["RayIoU", "RayMetric", "ray_iou"]


class RayMetric(Accumulator):
    """What the metrics on rays share: the rays, the grid, thresholds, inputs.

    Args:
        taxonomy: class table of both grids.
        spec: where the voxels lie; they must be cubes.
        thresholds: metres.
        directions: unit vectors [R, 3] in the grid's frame; `lidar_rays` when left out.
        state: name -> shape of the counts, given the number of classes and thresholds.
        backend: for tests, see `ray_confusion`.
    """

    def __init__(
        self,
        taxonomy: Taxonomy,
        spec: GridSpec,
        thresholds: Sequence[float],
        directions: Any,
        state: Mapping[str, tuple[int, ...]],
        backend: str | None,
        **definition: Any,
    ):
        if len(set(spec.voxel_size)) > 1:
            raise ValueError(f"ray metrics are defined on cubic voxels, got {spec.voxel_size}")
        limits = tuple(sorted(float(threshold) for threshold in thresholds))
        if not limits or not all(0 < limit < float("inf") for limit in limits) or len(set(limits)) < len(limits):
            raise ValueError(f"thresholds must be different positive metres, got {tuple(thresholds)}")
        self.spec = spec
        self.rules = RayRules(spec.lower, spec.voxel_size[0], taxonomy.free, taxonomy.num_classes, limits)
        published = lidar_rays().double()
        self._directions = published if directions is None else torch.as_tensor(directions).cpu().float().double()
        if self._directions.ndim != 2 or self._directions.shape[1] != 3 or not len(self._directions):
            raise ValueError(f"directions must be [R, 3], got {tuple(self._directions.shape)}")
        if not bool(torch.isfinite(self._directions).all()) or bool((self._directions == 0).all(1).any()):
            raise ValueError("directions must be finite and not zero")
        self._backend = backend
        grid = {"lower": list(spec.lower), "voxel_size": spec.voxel_size[0], "shape": list(spec.shape)}
        rays = f"{len(self._directions)} own rays, sum {self._directions.sum(0).tolist()}"
        if torch.equal(self._directions, published):
            rays = LIDAR_RAYS
        super().__init__(taxonomy, {"thresholds_m": list(limits), "rays": rays, "grid": grid, **definition}, state)

    def _grids(self, pred: Any, gt: Any, tokens: list[str]) -> tuple[Tensor, Tensor]:
        """Both grids uint8 [B, X, Y, Z] on the device of the prediction; checked."""
        labels = []
        for value, what in ((pred, "the prediction"), (gt, "the ground truth")):
            for given in value if isinstance(value, list | tuple) else [value]:
                if isinstance(given, OccupancyGrid) and given.spec != self.spec:
                    raise ValueError(
                        f"{about(tokens, 0) if tokens else ''}{what} is a grid of {given.spec}, the metric's is "
                        f"{self.spec}; make the metric with spec=grid.spec"
                    )
            grid = as_labels(value, self.taxonomy, what, tokens)
            if tuple(grid.shape[1:]) != self.spec.shape:
                raise ValueError(
                    f"{about(tokens, 0) if tokens else ''}{what} has shape {tuple(grid.shape[1:])}, the metric's grid "
                    f"is {self.spec.shape} (X, Y, Z)"
                )
            labels.append(grid)
        if len(labels[0]) != len(labels[1]):
            raise ValueError(f"got {len(labels[0])} predictions for {len(labels[1])} frames of ground truth")
        if tokens and len(tokens) != len(labels[0]):
            raise ValueError(f"got {len(tokens)} tokens for {len(labels[0])} frames")
        device = labels[0].device
        if labels[1].device != device:
            labels[1] = labels[1].to(device, non_blocking=True)
        for grid, what in zip(labels, ("the prediction", "the ground truth"), strict=True):
            self._see(grid, what, tokens)
        return labels[0], labels[1]

    def directions(self, device: torch.device) -> Tensor:
        """The rays' directions on a device, float64 [R, 3]; kept where they were used last."""
        if self._directions.device != device:
            self._directions = self._directions.to(device)
        return self._directions


class RayIoU(RayMetric):
    """RayIoU over a dataset.

    IoU of a class at a threshold is TP / (rays of it in the ground truth + in the prediction - TP), over rays whose
    ground truth is not free. "RayIoU@1" is its mean over the classes but free ("others" included), "RayIoU" the mean
    over thresholds too. A class that neither grid ever shows on a counted ray has no IoU and is left out; one that is
    only predicted has 0 (unlike voxel mIoU). Unknown voxels (255) stop rays and are of no class.

    Args:
        taxonomy: class table of both grids.
        spec: where the voxels lie.
        thresholds: metres.
        directions: unit vectors [R, 3]; `lidar_rays` when left out.
        backend: for tests.

    Example:
        >>> metric = RayIoU(OCC3D_NUSCENES.taxonomy)
        >>> metric.update(pred, gt, origins)  # uint8 [B, 200, 200, 16] twice, a list of [O, 3] metres in ego
        >>> metric.compute()["RayIoU"]
    """

    def __init__(
        self,
        taxonomy: Taxonomy = OCC3D_NUSCENES.taxonomy,
        spec: GridSpec = OCC3D_NUSCENES.spec,
        thresholds: Sequence[float] = (1.0, 2.0, 4.0),
        directions: Any = None,
        backend: str | None = None,
    ):
        classes = taxonomy.num_classes + 1
        shape = (classes, classes, len(thresholds) + 1)
        super().__init__(taxonomy, spec, thresholds, directions, {"rays": shape}, backend)

    def update(self, pred: Any, gt: Any, origins: Any, tokens: str | Sequence[str] | None = None) -> None:
        """Count some frames.

        Args:
            pred: grids, or labels [X, Y, Z] or [B, X, Y, Z], numpy or torch, on any device.
            gt: likewise; moved to the prediction's device.
            origins: a list of [O, 3] metres in the grid's frame, one a frame (see `ray_origins`); on the CPU, since
                checking them on a GPU makes the host wait.
            tokens: the frames' tokens, for messages.

        Raises:
            ValueError: shapes do not match, labels outside the class table, origins that are NaN; names the token.
        """
        names = as_tokens(tokens)
        pred, gt = self._grids(pred, gt, names)
        points, frames = as_origins(origins, len(pred), names)
        device = pred.device
        counts = ray_confusion(
            pred,
            gt,
            points.to(device, non_blocking=True),
            frames.to(device, non_blocking=True),
            self.directions(device),
            self.rules,
            self._backend,
        )
        self._add(rays=counts)
        self.frames += len(pred)

    def update_rays(self, pred: Any, gt: Any, pred_distance: Any, gt_distance: Any) -> None:
        """Count rays of one frame that were cast elsewhere.

        Args:
            pred: labels met in the prediction [R].
            gt: labels met in the ground truth [R].
            pred_distance: metres [R].
            gt_distance: metres [R].
        """
        met = [as_labels(labels, self.taxonomy, "rays", [], None) for labels in (pred, gt)]
        away = [torch.as_tensor(d, dtype=torch.float32, device=met[0].device) for d in (pred_distance, gt_distance)]
        if not met[0].shape == met[1].shape == away[0].shape == away[1].shape:
            raise ValueError(f"labels and distances must be [R], got {[tuple(v.shape) for v in (*met, *away)]}")
        for labels in met:
            self._see(labels[None], "a ray", [])
        self._add(rays=count_rays(met[0], met[1], away[0], away[1], self.rules))
        self.frames += 1

    def _result(self, state: dict[str, Tensor]) -> MetricResult:
        rays = state["rays"]
        classes = self.taxonomy.num_classes
        truth, guess = rays.sum((1, 2))[:classes], rays.sum((0, 2))[:classes]
        iou = ray_iou(rays, self.taxonomy)
        names = [f"{limit:g}" for limit in self.rules.thresholds]
        figures = {"RayIoU": float(iou.nanmean())} | {
            f"RayIoU@{name}": float(row.nanmean()) for name, row in zip(names, iou, strict=True)
        }
        per_class = {
            name: {f"IoU@{limit}": float(iou[k, c]) for k, limit in enumerate(names)}
            | {"gt rays": int(truth[c]), "pred rays": int(guess[c])}
            for c, name in enumerate(self.taxonomy.classes)
            if c != self.taxonomy.free
        }
        return MetricResult(figures, per_class, self.definition)


def ray_iou(rays: Tensor, taxonomy: Taxonomy) -> Tensor:
    """IoU by threshold and class, float64 [T, C], of `ray_confusion`'s counts; NaN where undefined and for free."""
    classes = taxonomy.num_classes
    truth, guess = rays.sum((1, 2))[:classes], rays.sum((0, 2))[:classes]
    hits = rays.diagonal()[:, :classes].cumsum(0)[:-1]  # below each threshold
    iou = hits.double() / (truth + guess - hits)
    iou[:, taxonomy.free] = torch.nan
    return iou
