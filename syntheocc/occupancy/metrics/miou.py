"""Voxel mIoU of semantic occupancy, as the Occ3D benchmark counts it (specs/sparseocc.md 3.7). Legend: C classes."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from syntheocc.occupancy.grids import OCC3D_NUSCENES
from syntheocc.occupancy.metrics.accumulator import Accumulator, MetricResult, about
from syntheocc.occupancy.metrics.inputs import as_batch, as_labels, as_tokens
from syntheocc.occupancy.taxonomy import Taxonomy

__all__ = ["OccupancyIoU", "confusion", "masked"]


class OccupancyIoU(Accumulator):
    """Voxel IoU per class over a dataset, their mean, and the IoU of occupied against free.

    Counted are the voxels whose ground truth is known and that the mask observes, over the whole dataset at once. A
    class that the ground truth never has there has no IoU and is left out of "mIoU", the mean over all classes
    but free ("others" included: 17 of Occ3D, 16 of OpenOcc v2); free takes part in the errors of the others. "IoU" is
    that of occupied voxels whatever their class. Predicted 255 is a miss of whatever is there.

    Args:
        taxonomy: class table of predictions and ground truth.
        mask: "camera" (the published figure), "lidar", or None for all voxels. It says what `update` is given, and
            stands in the result.

    Example:
        >>> metric = OccupancyIoU(OCC3D_NUSCENES.taxonomy, mask="camera")
        >>> metric.update(pred, labels.grid, labels.mask_camera)
        >>> metric.compute()["mIoU"]
    """

    def __init__(
        self, taxonomy: Taxonomy = OCC3D_NUSCENES.taxonomy, mask: Literal["camera", "lidar"] | None = "camera"
    ):
        if mask not in ("camera", "lidar", None):
            raise ValueError(f"mask must be 'camera', 'lidar' or None, got {mask!r}")
        self.mask = mask
        classes = taxonomy.num_classes
        super().__init__(taxonomy, {"mask": mask}, {"voxels": (classes, classes + 1)})

    def update(self, pred: Any, gt: Any, mask: Any = None, tokens: str | Sequence[str] | None = None) -> None:
        """Count some frames.

        Args:
            pred: grids, or labels [X, Y, Z] or [B, X, Y, Z], numpy or torch.
            gt: likewise.
            mask: bool or 0/1, of the same shape: the voxels that the sensor of the metric's mask observed.
            tokens: the frames' tokens, for messages.

        Raises:
            ValueError: shapes do not match, labels outside the class table, or a mask that is missing or too many.
        """
        names = as_tokens(tokens)
        guess, truth = voxel_pair(self, pred, gt, names)
        if (mask is None) != (self.mask is None):
            have = "no mask was given" if mask is None else "a mask was given"
            raise ValueError(
                f"{about(names, 0) if names else ''}{have}, but the metric counts "
                f"{'all voxels' if self.mask is None else f'what the {self.mask} observed'} (mask={self.mask!r})"
            )
        kept = None if mask is None else masked(mask, truth, names)
        self._add(voxels=confusion(guess, truth, kept, self.taxonomy.num_classes))
        self.frames += len(truth)

    def _result(self, state: dict[str, Tensor]) -> MetricResult:
        voxels, free = state["voxels"], self.taxonomy.free
        classes = self.taxonomy.num_classes
        truth, guess = voxels.sum(1), voxels.sum(0)[:classes]
        hits = voxels[:, :classes].diagonal()
        iou = hits.double() / (truth + guess - hits)
        iou[truth == 0] = torch.nan
        occupied = torch.arange(classes) != free
        both = voxels[:, :classes][occupied][:, occupied].sum()
        either = truth[occupied].sum() + guess[occupied].sum() - both
        figures = {
            "mIoU": float(iou[occupied].nanmean()),
            "IoU": float(both) / float(either) if int(truth[occupied].sum()) else float("nan"),
        }
        per_class = {
            name: {"IoU": float(iou[c]), "gt": int(truth[c]), "pred": int(guess[c])}
            for c, name in enumerate(self.taxonomy.classes)
        }
        return MetricResult(figures, per_class, self.definition)


def voxel_pair(metric: Accumulator, pred: Any, gt: Any, names: list[str]) -> tuple[Tensor, Tensor]:
    """Prediction and ground truth uint8 [B, ...] on the prediction's device, checked against the metric's classes."""
    pair = []
    for value, what in ((pred, "the prediction"), (gt, "the ground truth")):
        labels = as_labels(value, metric.taxonomy, what, names, None)
        pair.append(labels[None] if labels.ndim == 3 else labels)
    guess, truth = pair
    if guess.shape != truth.shape:
        raise ValueError(
            f"{about(names, 0) if names else ''}the prediction has shape {tuple(guess.shape)}, the ground truth "
            f"{tuple(truth.shape)}; they must match"
        )
    if names and len(names) != len(truth):
        raise ValueError(f"got {len(names)} tokens for {len(truth)} frames")
    truth = truth.to(guess.device, non_blocking=True)
    for labels, what in ((guess, "the prediction"), (truth, "the ground truth")):
        metric._see(labels, what, names)
    return guess, truth


def masked(mask: Any, truth: Tensor, names: list[str], what: str = "the mask") -> Tensor:
    """A mask as bool of the shape and on the device of the ground truth."""
    kept = as_batch(mask, what, names, None)
    kept = kept[None] if kept.ndim == 3 else kept
    if kept.shape != truth.shape:
        raise ValueError(
            f"{about(names, 0) if names else ''}{what} has shape {tuple(kept.shape)}, the ground truth "
            f"{tuple(truth.shape)}; they must match"
        )
    return kept.to(truth.device, non_blocking=True) != 0


def confusion(guess: Tensor, truth: Tensor, kept: Tensor | None, classes: int) -> Tensor:
    """Voxels by true and predicted class, int64 [C, C + 1]; the last column is "unknown". True 255 is left out.

    Args:
        guess: predicted labels uint8.
        truth: true labels uint8, of the same shape.
        kept: bool of that shape, the voxels that count; None: all.
        classes: C.
    """
    bins = classes * (classes + 1)
    # Two bytes a voxel where that is enough: counting is a matter of memory.
    small = torch.int16 if bins < 2**15 else torch.int32
    code = truth.clamp_max(classes).to(small).mul_(classes + 1).add_(guess.clamp_max(classes))
    # True 255 has codes past all others already.
    if kept is not None:
        # Arithmetic, not selection, which waits at every edge of the mask.
        code.mul_(kept).add_((~kept).to(small), alpha=bins)
    return torch.bincount(code.flatten(), minlength=bins)[:bins].view(classes, classes + 1)
