"""Paired bootstrap over scenes: one draw of scenes serves every quantity, so that differences and ratios are paired.

A scene is the unit that is independent: its frames and views share the place, the weather and the light. Quantities
are functions of sums over scenes (a confusion matrix, a sum and a count), so a resample is a weighted sum.

Example:
    >>> draws = Resamples(num_scenes=3, num_resamples=1000, seed=0)
    >>> ours, theirs = torch.tensor([3.0, 4.0, 5.0]), torch.tensor([1.0, 2.0, 3.0])
    >>> draws.interval(draws.means(ours) - draws.means(theirs))   # always 2, whatever scenes are drawn
    Interval(value=2.0, low=2.0, high=2.0)

Legend: S scenes, B resamples.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Interval", "Resamples"]


class Interval(NamedTuple):
    """A quantity of the sample itself, and the bounds between which its resamples lie."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Resamples:
    """B draws of S scenes with replacement; row 0 is the sample itself.

    Args:
        num_scenes: S.
        num_resamples: B.
        seed: of the draws.

    Raises:
        ValueError: fewer than two scenes or one resample.
    """

    def __init__(self, num_scenes: int, num_resamples: int = 2000, seed: int = 0):
        if num_scenes < 2 or num_resamples < 1:
            raise ValueError(
                f"a bootstrap needs at least two scenes and one resample, got {num_scenes} and {num_resamples}"
            )
        generator = torch.Generator().manual_seed(seed)
        #: int64 [B, S], the scenes of each draw.
        self.picks = torch.randint(num_scenes, (num_resamples, num_scenes), generator=generator)
        counts = torch.zeros(num_resamples, num_scenes, dtype=torch.float64)
        counts.scatter_add_(1, self.picks, torch.ones_like(counts))
        self._weights = torch.cat([torch.ones(1, num_scenes, dtype=torch.float64), counts])

    @property
    def num_scenes(self) -> int:
        """S."""
        return self._weights.shape[1]

    def sums(self, per_scene: Tensor) -> Tensor:
        """Sum over the scenes of each draw.

        Args:
            per_scene: [S, ...] counts or sums of each scene.

        Returns:
            float64 [1+B, ...]; row 0 is the plain sum.

        Raises:
            ValueError: another number of scenes.
        """
        if len(per_scene) != self.num_scenes:
            raise ValueError(f"the draws are of {self.num_scenes} scenes, got values of {len(per_scene)}")
        values = per_scene.detach().cpu().double()
        return (self._weights @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])

    def means(self, per_scene: Tensor) -> Tensor:
        """Mean over the scenes of each draw, float64 [1+B, ...]; NaN is left out of a number's mean."""
        known = torch.isfinite(per_scene)
        return self.sums(torch.where(known, per_scene, 0.0)) / self.sums(known)

    def interval(self, values: Tensor, level: float = 0.95) -> Interval:
        """The interval of a quantity [1+B]: its value on the sample, and the percentiles of its resamples."""
        value, rest = values[0], values[1:]
        rest = rest[torch.isfinite(rest)]
        if not len(rest):
            return Interval(float(value), float("nan"), float("nan"))
        tail = (1 - level) / 2
        low, high = torch.quantile(rest, torch.tensor([tail, 1 - tail], dtype=rest.dtype)).tolist()
        return Interval(float(value), low, high)
