"""RayPQ: panoptic quality of what a lidar would see of the prediction (specs/sparseocc.md 3.6).

Legend: B frames, O origins, R rays, C classes, T thresholds, X Y Z voxels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.grids import OCC3D_NUSCENES, GridSpec
from syntheocc.occupancy.metrics.accumulator import MetricResult, about
from syntheocc.occupancy.metrics.inputs import as_batch, as_labels, as_origins, as_tokens
from syntheocc.occupancy.metrics.panoptic import THING_CLASSES
from syntheocc.occupancy.metrics.rayiou import RayMetric
from syntheocc.occupancy.ops.ray_confusion.reference import ray_labels
from syntheocc.occupancy.taxonomy import Taxonomy

__all__ = ["RayPQ"]

# Sums of IoUs are kept as multiples of this, so that they do not depend on the order of the frames: 300,000 matched
# segments stay below 2**63, and the rounding of one is below 1e-12.
_UNIT = 2.0**-40
# Segment numbers are below this; class and segment make one number.
_SEGMENTS = 2**40


class RayPQ(RayMetric):
    """RayPQ over a dataset.

    Per frame, class and threshold: a segment of the prediction and one of the ground truth match when the IoU of their
    rays exceeds 0.5, where only rays whose distances differ by less than the threshold are shared. Unmatched segments
    of at least `min_rays` rays are false positives or negatives. PQ = (mean IoU of the matched) x TP / (TP + FP/2 +
    FN/2), over the dataset; "RayPQ@1" is its mean over the classes but free that have a TP, FP or FN, "RayPQ" that
    over thresholds too.

    Segments of the ground truth: one an instance of the thing classes, one a class of the rest (barriers and cones
    too). Rays on things without instance (0), or on an instance that is hit with several classes, make one segment
    a class. Segments of the prediction: the instances as given, within their class.

    Args:
        taxonomy: class table of both grids.
        spec: where the voxels lie.
        thresholds: metres.
        directions: unit vectors [R, 3]; `lidar_rays` when left out.
        things: names of the thing classes; those of `THING_CLASSES` that the table has when left out.
        min_rays: smallest unmatched segment that counts as an error.
        backend: for tests.

    Example:
        >>> metric = RayPQ(OCC3D_NUSCENES.taxonomy)
        >>> metric.update(pred, gt, pred_instances, gt_instances, origins)
        >>> metric.compute()["RayPQ"]
    """

    def __init__(
        self,
        taxonomy: Taxonomy = OCC3D_NUSCENES.taxonomy,
        spec: GridSpec = OCC3D_NUSCENES.spec,
        thresholds: Sequence[float] = (1.0, 2.0, 4.0),
        directions: Any = None,
        things: Sequence[str] | None = None,
        min_rays: int = 10,
        backend: str | None = None,
    ):
        names = [name for name in THING_CLASSES if name in taxonomy.classes] if things is None else list(things)
        self._is_thing = torch.zeros(256, dtype=torch.bool)
        self._is_thing[[taxonomy.id_of(name) for name in names]] = True
        self.min_rays = min_rays
        shape = (len(thresholds), taxonomy.num_classes)
        state = {name: shape for name in ("tp", "fp", "fn", "iou_units")}
        super().__init__(
            taxonomy, spec, thresholds, directions, state, backend, things=sorted(names), min_rays=min_rays
        )

    def update(
        self,
        pred: Any,
        gt: Any,
        pred_instances: Any,
        gt_instances: Any,
        origins: Any,
        tokens: str | Sequence[str] | None = None,
    ) -> None:
        """Count some frames.

        Args:
            pred: grids, or labels [X, Y, Z] or [B, X, Y, Z], numpy or torch.
            gt: likewise.
            pred_instances: integers of the same shape, 0 none; None: the prediction has no instances.
            gt_instances: likewise, e.g. of `panoptic_instances`.
            origins: a list of [O, 3] metres in the grid's frame, one a frame (see `ray_origins`).
            tokens: the frames' tokens, for messages.

        Raises:
            ValueError: shapes do not match, labels outside the class table, instances that are no integers or are
                negative, origins that are NaN; names the token.
        """
        names = as_tokens(tokens)
        grids = self._grids(pred, gt, names)
        device, frames = grids[0].device, len(grids[0])
        if gt_instances is None:
            raise ValueError(
                f"{about(names, 0) if names else ''}RayPQ needs instances of the ground truth; make them from boxes "
                "with panoptic_instances"
            )
        instances = [
            torch.zeros_like(grids[0], dtype=torch.int64)
            if value is None
            else self._instances(value, grids[0].shape, device, what, names)
            for value, what in ((pred_instances, "the predicted instances"), (gt_instances, "the true instances"))
        ]
        points, owner = as_origins(origins, frames, names)
        points, owner = points.to(device), owner.to(device).long()
        directions = self.directions(device)
        for k in range(frames):
            here = points[owner == k]
            seen = []
            for labels, segments in zip(grids, instances, strict=True):
                label, distance, flat = ray_labels(
                    labels[k].expand(len(here), -1, -1, -1), here, directions, self.rules, self._backend
                )
                seen.append((label.flatten(), segments[k].flatten()[flat.flatten()], distance.flatten()))
            (pred_label, pred_segment, near), (gt_label, gt_segment, far) = seen
            self._count(pred_label, pred_segment, gt_label, gt_segment, (far - near).abs())
        self.frames += frames

    def update_rays(
        self, pred: Any, pred_instances: Any, gt: Any, gt_instances: Any, pred_distance: Any, gt_distance: Any
    ) -> None:
        """Count rays of one frame that were cast elsewhere: labels, instances and distances (metres) [R] of both."""
        labels = [as_labels(value, self.taxonomy, "rays", [], None) for value in (pred, gt)]
        for value in labels:
            self._see(value[None], "a ray", [])
        device = labels[0].device
        segments = [
            self._instances(value, labels[0].shape, device, "the rays' instances", [])
            for value in (pred_instances, gt_instances)
        ]
        near, far = (torch.as_tensor(d, dtype=torch.float32, device=device) for d in (pred_distance, gt_distance))
        if not labels[0].shape == labels[1].shape == near.shape == far.shape:
            raise ValueError(f"labels and distances must be [R], got {[tuple(v.shape) for v in (*labels, near, far)]}")
        self._count(labels[0], segments[0], labels[1], segments[1], (far - near).abs())
        self.frames += 1

    def _instances(self, value: Any, shape: torch.Size, device: torch.device, what: str, names: list[str]) -> Tensor:
        instances = as_batch(value, what, names, None)
        instances = instances[None] if instances.ndim == 3 else instances
        if instances.shape != shape:
            raise ValueError(
                f"{about(names, 0) if names else ''}{what} have shape {tuple(instances.shape)}, the labels "
                f"{tuple(shape)}; they must match"
            )
        if instances.is_floating_point() or instances.is_complex() or instances.dtype == torch.bool:
            raise ValueError(f"{about(names, 0) if names else ''}{what} must be integers, got {instances.dtype}")
        instances = instances.to(device=device, dtype=torch.int64)
        if instances.numel() and not 0 <= int(instances.min()) <= int(instances.max()) < _SEGMENTS:
            raise ValueError(f"{about(names, 0) if names else ''}{what} must lie in 0..2**40, 0 for none")
        return instances

    def _count(
        self, pred_label: Tensor, pred_segment: Tensor, gt_label: Tensor, gt_segment: Tensor, apart: Tensor
    ) -> None:
        """Add one frame's rays: labels uint8 [R], segments int64 [R], difference of the distances float32 [R]."""
        kept = gt_label != self.taxonomy.free
        apart = apart[kept]
        if not len(apart):
            return
        gt_key, gt_class, gt_area = self._segments(gt_label[kept], self._own(gt_label[kept], gt_segment[kept]))
        pred_key, pred_class, pred_area = self._segments(pred_label[kept], pred_segment[kept])
        limits = torch.tensor(self.rules.thresholds, dtype=torch.float32, device=apart.device)
        shape = (len(limits), len(gt_area), len(pred_area))
        missed = (apart[:, None] >= limits).sum(1)
        # Rays by number of thresholds failed and pair of segments; those that fail none count at every threshold.
        code = (missed * shape[1] + gt_key) * shape[2] + pred_key
        shared = torch.bincount(code, minlength=(shape[0] + 1) * shape[1] * shape[2])
        shared = shared.view(-1, *shape[1:]).cumsum(0)[:-1] * (gt_class[:, None] == pred_class)
        iou = shared.double() / (gt_area[:, None] + pred_area - shared)
        match = iou > 0.5
        unit = torch.where(match, (iou / _UNIT).round(), 0.0).long()
        lost = ~match.any(2) & (gt_area >= self.min_rays)
        made_up = ~match.any(1) & (pred_area >= self.min_rays)
        self._add(
            tp=self._by_class(match.sum(2), gt_class),
            iou_units=self._by_class(unit.sum(2), gt_class),
            fn=self._by_class(lost, gt_class),
            fp=self._by_class(made_up, pred_class),
        )

    def _own(self, label: Tensor, segment: Tensor) -> Tensor:
        """The ground truth's segments: instances of things (0 where hit with several classes), 0 for the rest."""
        present, inverse = segment.unique(return_inverse=True)
        low = torch.full_like(present, 256).scatter_reduce(0, inverse, label.long(), "amin")
        high = torch.full_like(present, -1).scatter_reduce(0, inverse, label.long(), "amax")
        single = (low == high)[inverse]
        return torch.where(self._is_thing.to(label.device)[label.long()] & single, segment, 0)

    def _segments(self, label: Tensor, segment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The segment of every ray (numbered from 0), and each segment's class and number of rays."""
        keys, inverse, area = (label.long() * _SEGMENTS + segment).unique(return_inverse=True, return_counts=True)
        return inverse, keys // _SEGMENTS, area

    def _by_class(self, values: Tensor, classes: Tensor) -> Tensor:
        """Sums of values [T, segments] over the segments of each class, int64 [T, C]; what is no class is left out."""
        sums = torch.zeros((values.shape[0], 256), dtype=torch.int64, device=values.device)
        sums.index_add_(1, classes, values.long())
        sums[:, self.taxonomy.free] = 0
        return sums[:, : self.taxonomy.num_classes]

    def _result(self, state: dict[str, Tensor]) -> MetricResult:
        tp, fp, fn = (state[name].double() for name in ("tp", "fp", "fn"))
        quality = state["iou_units"].double() * _UNIT / tp.clamp_min(1e-5)
        recognition = tp / (tp + 0.5 * fp + 0.5 * fn).clamp_min(1e-5)
        pq = torch.where(tp + fp + fn > 0, quality * recognition, torch.nan)
        names = [f"{limit:g}" for limit in self.rules.thresholds]
        figures = {"RayPQ": float(pq.nanmean())} | {
            f"RayPQ@{name}": float(row.nanmean()) for name, row in zip(names, pq, strict=True)
        }
        per_class = {
            name: {f"PQ@{limit}": float(pq[k, c]) for k, limit in enumerate(names)}
            | {
                f"{what}@{limit}": int(state[what][k, c])
                for k, limit in enumerate(names)
                for what in ("tp", "fp", "fn")
            }
            for c, name in enumerate(self.taxonomy.classes)
            if c != self.taxonomy.free
        }
        return MetricResult(figures, per_class, self.definition)
