"""The score of the occupancy-and-flow challenge on OpenOcc v2: RayIoU, and velocity errors on what the rays hit.

Legend: B frames, O origins, R rays, C classes, X Y Z voxels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.grids import OPENOCC_V2, GridSpec
from syntheocc.occupancy.metrics.accumulator import MetricResult, about
from syntheocc.occupancy.metrics.inputs import as_batch, as_origins, as_tokens
from syntheocc.occupancy.metrics.panoptic import THING_CLASSES
from syntheocc.occupancy.metrics.rayiou import RayMetric, ray_iou
from syntheocc.occupancy.ops.ray_confusion.reference import count_rays, ray_labels
from syntheocc.occupancy.taxonomy import Taxonomy

__all__ = ["OccupancyFlow"]

# Sums of errors are kept as multiples of this many m/s, so that they do not depend on the order of the frames; all
# rays of 6,019 frames at 100 m/s stay below 2**63.
_UNIT = 2.0**-24


class OccupancyFlow(RayMetric):
    """RayIoU, mAVE and the occupancy score of the challenge of 2024.

    A ray is a true positive as in `RayIoU` at `match_threshold` (2 m). The velocity error of a moving class is the
    mean over its true positives of the length of the difference of the two flows (m/s, along ego x and y) at the
    voxels that the ray meets; "mAVE" is the mean over the eight moving classes. A class without a true positive has no
    error and is left out; rays whose true flow is not finite have none either.
    "OccScore" is 0.9 RayIoU + 0.1 max(1 - mAVE, 0), its second term 0 where there is no mAVE.

    Args:
        taxonomy: class table of both grids.
        spec: where the voxels lie.
        thresholds: of RayIoU, metres; `match_threshold` is one of them.
        directions: unit vectors [R, 3]; `lidar_rays` when left out.
        moving: names of the classes that have a velocity.
        match_threshold: metres.
        backend: for tests.

    Example:
        >>> metric = OccupancyFlow()
        >>> metric.update(pred, gt, pred_flow, gt_flow, origins)  # flows [B, 200, 200, 16, 2] m/s
        >>> metric.compute()["OccScore"]
    """

    def __init__(
        self,
        taxonomy: Taxonomy = OPENOCC_V2.taxonomy,
        spec: GridSpec = OPENOCC_V2.spec,
        thresholds: Sequence[float] = (1.0, 2.0, 4.0),
        directions: Any = None,
        moving: Sequence[str] = THING_CLASSES,
        match_threshold: float = 2.0,
        backend: str | None = None,
    ):
        if match_threshold not in thresholds:
            raise ValueError(f"match_threshold {match_threshold} must be one of the thresholds {tuple(thresholds)}")
        self._moving = torch.zeros(256, dtype=torch.bool)
        self._moving[[taxonomy.id_of(name) for name in moving]] = True
        self.match_threshold = float(match_threshold)
        classes = taxonomy.num_classes
        state = {
            "rays": (classes + 1, classes + 1, len(thresholds) + 1),
            "matched": (classes,),
            "error_units": (classes,),
        }
        definition = {"moving": sorted(moving), "match_threshold_m": self.match_threshold}
        super().__init__(taxonomy, spec, thresholds, directions, state, backend, **definition)

    def update(
        self,
        pred: Any,
        gt: Any,
        pred_flow: Any,
        gt_flow: Any,
        origins: Any,
        tokens: str | Sequence[str] | None = None,
    ) -> None:
        """Count some frames.

        Args:
            pred: grids, or labels [X, Y, Z] or [B, X, Y, Z], numpy or torch.
            gt: likewise.
            pred_flow: [X, Y, Z, 2] or [B, X, Y, Z, 2] m/s along ego x and y.
            gt_flow: likewise.
            origins: a list of [O, 3] metres in the grid's frame, one a frame (see `ray_origins`).
            tokens: the frames' tokens, for messages.

        Raises:
            ValueError: shapes do not match, labels outside the class table, a predicted flow that is not finite where
                it counts, origins that are NaN; names the token.
        """
        names = as_tokens(tokens)
        grids = self._grids(pred, gt, names)
        device, frames = grids[0].device, len(grids[0])
        flows = []
        for value, what in ((pred_flow, "the predicted flow"), (gt_flow, "the true flow")):
            flow = as_batch(value, what, names, 4)
            if tuple(flow.shape) != (*grids[0].shape, 2):
                raise ValueError(
                    f"{about(names, 0) if names else ''}{what} has shape {tuple(flow.shape)}, want "
                    f"{(*grids[0].shape, 2)}: m/s along x and y for every voxel"
                )
            flows.append(flow.to(device, non_blocking=True))
        points, owner = as_origins(origins, frames, names)
        points, owner = points.to(device), owner.to(device).long()
        directions = self.directions(device)
        limit = torch.tensor(self.match_threshold, dtype=torch.float32, device=device)
        counts = []
        for k in range(frames):
            here = points[owner == k]
            (guess, near, p), (truth, far, q) = (
                ray_labels(labels[k].expand(len(here), -1, -1, -1), here, directions, self.rules, self._backend)
                for labels in grids
            )
            rays = count_rays(guess, truth, near, far, self.rules)
            hit = (guess == truth) & ((far - near).abs() < limit) & self._moving.to(device)[truth.long()]
            label = truth[hit].long()
            ours, theirs = (flow[k].reshape(-1, 2)[at[hit]].double() for flow, at in zip(flows, (p, q), strict=True))
            known = torch.isfinite(theirs).all(1)
            if not bool(torch.isfinite(ours[known]).all()):
                raise ValueError(
                    f"{about(names, k)}the predicted flow holds NaN or infinite values where it counts; give m/s"
                )
            apart = ours[known] - theirs[known]
            error = (apart[:, 0] * apart[:, 0] + apart[:, 1] * apart[:, 1]).sqrt()
            zeros = torch.zeros(256, dtype=torch.int64, device=device)
            units = (error / _UNIT).round().long()
            matched = zeros.index_add(0, label[known], torch.ones_like(units))
            counts.append((rays, matched, zeros.index_add(0, label[known], units)))
        # Only now: a batch with a bad frame leaves nothing behind.
        for rays, matched, units in counts:
            classes = self.taxonomy.num_classes
            self._add(rays=rays, matched=matched[:classes], error_units=units[:classes])
        self.frames += frames

    def _result(self, state: dict[str, Tensor]) -> MetricResult:
        iou = ray_iou(state["rays"], self.taxonomy)
        error = state["error_units"].double() * _UNIT / state["matched"]
        error[~self._moving[: self.taxonomy.num_classes]] = torch.nan
        mean = float(error.nanmean())
        score = float(iou.nanmean())
        names = [f"{limit:g}" for limit in self.rules.thresholds]
        figures = {
            "OccScore": 0.9 * score + 0.1 * (max(1 - mean, 0.0) if mean == mean else 0.0),
            "mAVE": mean,
            "RayIoU": score,
        } | {f"RayIoU@{name}": float(row.nanmean()) for name, row in zip(names, iou, strict=True)}
        per_class = {
            name: {f"IoU@{limit}": float(iou[k, c]) for k, limit in enumerate(names)}
            | {"AVE m/s": float(error[c]), "matched": int(state["matched"][c])}
            for c, name in enumerate(self.taxonomy.classes)
            if c != self.taxonomy.free
        }
        return MetricResult(figures, per_class, self.definition, plain=("mAVE", "AVE m/s"))
