"""What all metrics share: integer state, merging, resetting, results that carry their definition."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.taxonomy import Taxonomy

__all__ = ["Accumulator", "MetricResult"]


class MetricResult(dict):
    """Figures by name, as fractions (0..1); NaN where a figure is undefined.

    Args:
        figures: the summary, e.g. ``{"RayIoU": 0.37, "RayIoU@1": ...}``.
        per_class: class name -> column -> value; counts are integers.
        definition: what was measured: the metric's name, classes, mask, thresholds, ...
        plain: figures and columns that are no fractions (m/s), which the table prints as they are.

    Example:
        >>> result = MetricResult({"mIoU": 0.25}, {"car": {"IoU": 0.25, "gt": 4}}, {"metric": "OccupancyIoU"})
        >>> print(result.table())
        class           IoU          gt
        car           25.00           4
        mIoU          25.00
        <BLANKLINE>
        OccupancyIoU
    """

    def __init__(
        self,
        figures: Mapping[str, float],
        per_class: Mapping[str, Mapping],
        definition: Mapping[str, Any],
        plain: Iterable[str] = (),
    ):
        super().__init__(figures)
        self._plain = frozenset(plain)
        self.per_class = {name: dict(row) for name, row in per_class.items()}
        self.definition = dict(definition)

    def table(self) -> str:
        """A row per class, then the summary and the definition; fractions in per cent."""
        columns = list(dict.fromkeys(column for row in self.per_class.values() for column in row))
        width = max([len("class"), *map(len, self.per_class), *map(len, self)]) + 1
        lines = [f"{'class':<{width}}" + "".join(f"{column:>12}" for column in columns)] if columns else []
        for name, row in self.per_class.items():
            lines.append(f"{name:<{width}}" + "".join(self._cell(column, row.get(column)) for column in columns))
        lines += [f"{name:<{width}}{self._cell(name, value)}" for name, value in self.items()]
        return "\n".join(line.rstrip() for line in [*lines, "", describe(self.definition)])

    def _cell(self, name: str, value: Any) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return f"{'-':>12}"
        if not isinstance(value, float):
            return f"{value:>12}"
        return f"{value:>12.3f}" if name in self._plain else f"{100 * value:>12.2f}"

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; what is undefined is null."""
        clean = lambda v: None if isinstance(v, float) and not math.isfinite(v) else v  # noqa: E731
        return {
            "figures": {name: clean(value) for name, value in self.items()},
            "per_class": {n: {c: clean(v) for c, v in row.items()} for n, row in self.per_class.items()},
            "definition": self.definition,
        }


def describe(definition: Mapping[str, Any]) -> str:
    """A definition in a line or a few."""
    rest = [f"{name}: {value}" for name, value in definition.items() if name not in ("metric", "classes")]
    return "; ".join([str(definition.get("metric", "")), *rest])


class Accumulator:
    """Base of the metrics.

    A metric adds integers to ``self.state`` (name -> int64 tensor, on the device of the last update) in its `update`,
    and turns them into a `MetricResult` in `compute`. Real numbers are added as multiples of a small unit, so that
    sums do not depend on the order of the frames or on how they are shared over processes.

    Args:
        taxonomy: the class table of predictions and ground truth.
        definition: everything else that the figures depend on, as JSON values.
        shapes: name -> shape of the tensors in the state.

    Example:
        >>> metric = RayIoU(OCC3D_NUSCENES.taxonomy)
        >>> for pred, gt, origins in frames:
        ...     metric.update(pred, gt, origins)
        >>> metric.merge_state(metrics_of_other_processes)
        >>> print(metric.compute().table())
    """

    def __init__(self, taxonomy: Taxonomy, definition: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]):
        self.taxonomy = taxonomy
        self.definition = {
            "metric": type(self).__name__,
            "taxonomy": taxonomy.name,
            "classes": list(taxonomy.classes),
            "free": taxonomy.free,
            **definition,
        }
        self._shapes = dict(shapes)
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        self.frames = 0
        self.state = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in self._shapes.items()}
        self._highest: Tensor | None = None

    def compute(self) -> MetricResult:
        """The figures over everything seen so far.

        Raises:
            ValueError: nothing was seen, or a label that the class table does not have.
        """
        if not self.frames:
            raise ValueError(
                f"{self.definition['metric']} has seen no frame, so there is nothing to compute; check that the "
                "dataset is not empty"
            )
        return self._result(self.state_dict()["state"])

    def merge_state(self, others: "Accumulator | Iterable[Accumulator]") -> "Accumulator":
        """Add what other metrics of the same definition have counted; returns itself.

        Raises:
            ValueError: definitions differ; the message names how.
        """
        for other in [others] if isinstance(others, Accumulator) else others:
            self.load_state_dict(other.state_dict(), add=True)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Definition, number of frames and counts (int64 tensors on the CPU): enough to go on elsewhere."""
        self._check_highest()
        return {
            "definition": dict(self.definition),
            "frames": self.frames,
            "state": {name: value.cpu().clone() for name, value in self.state.items()},
        }

    def load_state_dict(self, saved: Mapping[str, Any], add: bool = False) -> None:
        """Take over a `state_dict`; with `add`, on top of what is there.

        Raises:
            ValueError: it is of another definition.
        """
        there = saved["definition"]
        differing = [
            f"{name}: {self.definition.get(name)!r} here, {there.get(name)!r} there"
            for name in sorted(self.definition.keys() | there.keys())
            if self.definition.get(name) != there.get(name)
        ]
        if differing:
            raise ValueError(f"figures of different definitions do not mix ({'; '.join(differing)})")
        if not add:
            self.reset()
        self.frames += int(saved["frames"])
        for name, value in self.state.items():
            self.state[name] = value + torch.as_tensor(saved["state"][name]).to(value)

    def _result(self, state: dict[str, Tensor]) -> MetricResult:
        raise NotImplementedError

    def _add(self, **counts: Tensor) -> None:
        """Add to the state, on the device of what is added."""
        for name, value in counts.items():
            self.state[name] = self.state[name].to(value.device, non_blocking=True) + value

    def _see(self, labels: Tensor, what: str, tokens: list[str]) -> None:
        """Check uint8 labels [B, ...] against the class table: at once on a CPU, when figures are read on a GPU."""
        # 255 is unknown: one more wraps to 0, so that one maximum tells.
        highest = (labels + 1).amax() if labels.numel() else None
        if highest is None:
            return
        if labels.device.type != "cpu":
            before = self._highest
            self._highest = highest if before is None else torch.maximum(before.to(highest.device), highest)
        elif int(highest) > self.taxonomy.num_classes:
            worst = (labels + 1).reshape(len(labels), -1).amax(1)
            bad = int((worst > self.taxonomy.num_classes).nonzero()[0])
            raise ValueError(
                f"{about(tokens, bad)}{what} holds class id {int(worst[bad]) - 1}, but taxonomy "
                f"{self.taxonomy.name!r} ends at {self.taxonomy.num_classes - 1} (255 is unknown); is this another "
                "dataset's numbering?"
            )

    def _check_highest(self) -> None:
        if self._highest is not None and int(self._highest) > self.taxonomy.num_classes:
            raise ValueError(
                f"a frame on the GPU holds class id {int(self._highest) - 1}, but taxonomy {self.taxonomy.name!r} "
                f"ends at {self.taxonomy.num_classes - 1} (255 is unknown); on the CPU the message names the frame"
            )


def about(tokens: list[str], frame: int) -> str:
    """How a message about a frame begins: its token, or its place in the batch."""
    return f"sample {tokens[frame]}: " if tokens else f"frame {frame} of the batch: "
