"""Semantic scene completion as SemanticKITTI and NYUv2 count it (specs/occdepth.md 3). Legend: B frames, C classes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.grids import NYUV2, SEMANTIC_KITTI, GridSpec
from syntheocc.occupancy.metrics.accumulator import Accumulator, MetricResult, about
from syntheocc.occupancy.metrics.inputs import as_tokens
from syntheocc.occupancy.metrics.miou import confusion, masked, voxel_pair
from syntheocc.occupancy.taxonomy import Taxonomy

__all__ = ["SSCIoU"]


class SSCIoU(Accumulator):
    """Scene completion (occupied or not) and semantic scene completion over a dataset.

    Counted are all voxels whose ground truth is known (not 255). "iou", "precision" and "recall" are those of occupied
    voxels whatever their class, all 0 without a true positive. "miou" is the mean over all classes but free of
    TP / (TP + FP + FN + eps): a class that occurs neither here nor there counts as 0, unlike in `OccupancyIoU`. A
    voxel predicted unknown is a miss.

    Args:
        taxonomy: class table of predictions and ground truth.
        eps: 1e-5 as in MonoScene's and OccDepth's tables, 1e-15 as in the official SemanticKITTI script.
        nonempty: `update` gets a mask of the voxels that count at all (SSCNet's protocol of NYUv2).
        nonsurface: `update` gets a further mask of those that count for completion alone.
        ranges: metres r for figures in growing volumes ahead of the sensor, 0 <= x < r and -r/2 <= y < r/2 of the
            voxels' centres (12.8, 25.6 and 51.2 in SemanticKITTI's tables): "iou@12.8", "miou@12.8", ...
        spec: where the voxels lie; needed by `ranges`, in a frame whose x looks forward.

    Example:
        >>> metric = SSCIoU.semantic_kitti()
        >>> metric.update(pred, gt)
        >>> metric.compute()["miou"]
    """

    def __init__(
        self,
        taxonomy: Taxonomy = SEMANTIC_KITTI.taxonomy,
        eps: float = 1e-5,
        nonempty: bool = False,
        nonsurface: bool = False,
        ranges: Sequence[float] = (),
        spec: GridSpec | None = None,
    ):
        self.eps, self.nonempty, self.nonsurface = eps, nonempty, nonsurface
        self.ranges = tuple(sorted(float(r) for r in ranges))
        if self.ranges and spec is None:
            raise ValueError("figures by distance need to know where the voxels lie; give spec")
        if not all(r > 0 for r in self.ranges):
            raise ValueError(f"ranges must be positive metres, got {self.ranges}")
        self._band = None if not self.ranges or spec is None else _bands(spec, self.ranges)
        classes = taxonomy.num_classes
        shape = (len(self.ranges) + 1, classes, classes + 1)
        definition = {"eps": eps, "nonempty": nonempty, "nonsurface": nonsurface, "ranges_m": list(self.ranges)}
        if spec is not None and self.ranges:
            definition["grid"] = {"lower": list(spec.lower), "size": list(spec.voxel_size), "shape": list(spec.shape)}
        super().__init__(taxonomy, definition, {"voxels": shape, "completion": shape})

    @classmethod
    def semantic_kitti(cls, ranges: Sequence[float] = (12.8, 25.6, 51.2)) -> "SSCIoU":
        """The official SemanticKITTI figures, and those by distance."""
        return cls(SEMANTIC_KITTI.taxonomy, eps=1e-15, ranges=ranges, spec=SEMANTIC_KITTI.spec)

    @classmethod
    def nyuv2(cls) -> "SSCIoU":
        """NYUv2 over all known voxels, as MonoScene and OccDepth report it (not SSCNet's masked protocol)."""
        return cls(NYUV2.taxonomy)

    def update(
        self,
        pred: Any,
        gt: Any,
        nonempty: Any = None,
        nonsurface: Any = None,
        tokens: str | Sequence[str] | None = None,
    ) -> None:
        """Count some frames.

        Args:
            pred: grids, or labels [X, Y, Z] or [B, X, Y, Z], numpy or torch.
            gt: likewise; 255 is left out.
            nonempty: bool or 0/1 of the same shape; given exactly if the metric was made with it.
            nonsurface: likewise.
            tokens: the frames' tokens, for messages.

        Raises:
            ValueError: shapes do not match, labels outside the class table, or a mask that is missing or too many.
        """
        names = as_tokens(tokens)
        guess, truth = voxel_pair(self, pred, gt, names)
        kept: Tensor | None = None
        for value, wanted, what in (
            (nonempty, self.nonempty, "nonempty"),
            (nonsurface, self.nonsurface, "nonsurface"),
        ):
            if (value is not None) != wanted:
                raise ValueError(
                    f"{about(names, 0) if names else ''}the metric was made with {what}={wanted}, so update "
                    f"{'needs such a' if wanted else 'takes no such'} mask"
                )
        if nonempty is not None:
            kept = masked(nonempty, truth, names, "nonempty")
        voxels = self._counts(guess, truth, kept)
        completion = voxels
        if nonsurface is not None:
            surface = masked(nonsurface, truth, names, "nonsurface")
            completion = self._counts(guess, truth, surface if kept is None else surface & kept)
        self._add(voxels=voxels, completion=completion)
        self.frames += len(truth)

    def _counts(self, guess: Tensor, truth: Tensor, kept: Tensor | None) -> Tensor:
        """Voxels by band of distance (the last is beyond all), true and predicted class."""
        classes = self.taxonomy.num_classes
        if self._band is None:
            return confusion(guess, truth, kept, classes)[None]
        if self._band.shape != truth.shape[1:]:
            raise ValueError(f"grids are {tuple(truth.shape[1:])}, the metric's spec says {tuple(self._band.shape)}")
        band = self._band.to(truth.device)
        parts = []
        for k in range(len(self.ranges) + 1):
            inside = (band == k).expand(truth.shape)
            parts.append(confusion(guess, truth, inside if kept is None else inside & kept, classes))
        return torch.stack(parts)

    def _result(self, state: dict[str, Tensor]) -> MetricResult:
        voxels, completion = state["voxels"], state["completion"]
        figures, rows = self._figures(voxels.sum(0), completion.sum(0), "")
        for k, r in enumerate(self.ranges):
            part, columns = self._figures(voxels[: k + 1].sum(0), completion[: k + 1].sum(0), f"@{r:g}")
            figures |= part
            rows = {name: rows[name] | {f"iou@{r:g}": columns[name][f"iou@{r:g}"]} for name in rows}
        return MetricResult(figures, rows, self.definition)

    def _figures(self, voxels: Tensor, completion: Tensor, suffix: str) -> tuple[dict, dict]:
        free, classes = self.taxonomy.free, self.taxonomy.num_classes
        occupied = torch.arange(classes) != free
        both = float(completion[:, :classes][occupied][:, occupied].sum())
        made_up = float(completion[free, :classes][occupied].sum())
        missed = float(completion[occupied].sum()) - both
        tp = voxels[:, :classes].diagonal()
        fp, fn = voxels.sum(0)[:classes] - tp, voxels.sum(1) - tp
        iou = tp / ((tp + fp + fn).double() + self.eps)
        figures = {
            f"iou{suffix}": both / (both + made_up + missed) if both else 0.0,
            f"precision{suffix}": both / (both + made_up) if both else 0.0,
            f"recall{suffix}": both / (both + missed) if both else 0.0,
            f"miou{suffix}": float(iou[occupied].mean()),
        }
        rows = {
            name: {f"iou{suffix}": float(iou[c])}
            | ({} if suffix else {"tp": int(tp[c]), "fp": int(fp[c]), "fn": int(fn[c])})
            for c, name in enumerate(self.taxonomy.classes)
        }
        return figures, rows


def _bands(spec: GridSpec, ranges: tuple[float, ...]) -> Tensor:
    """Of every voxel the first range that holds its centre, int64 [X, Y, Z]; beyond all: their number."""
    x, y, _ = spec.centers().unbind(-1)
    band = torch.full(spec.shape, len(ranges))
    for k in reversed(range(len(ranges))):
        half = ranges[k] / 2
        band[(x >= 0) & (x < ranges[k]) & (y >= -half) & (y < half)] = k
    return band
