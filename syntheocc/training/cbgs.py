"""Class-balanced grouping and sampling: rare classes are drawn as often as common ones.

The resampling of SyntheOcc (specs/syntheocc.md 3), after Zhu et al. 2019, arXiv:1908.09492. Eleven groups: the ten
detection classes, and background. A sample is in the group of every class of which it has a box; one without any is in
the background's group, 120 times. Of a group with `n` of all `N` entries, n * (1/11) / (n/N) = N/11 samples are drawn
with replacement: the same number from every group that is not empty.

Example: samples {car}, {car, bus} and {} give groups car [0, 1], bus [1], background [2] * 120; N = 123, hence 11
draws from each of the three groups, 33 samples an epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from syntheocc.engine.batch import mix_seed
from syntheocc.occupancy.data.frames import DETECTION_CLASSES, Boxes, Frame

__all__ = ["BACKGROUND_COUNT", "ClassBalance", "classes_of"]

# How often a sample without foreground counts.
BACKGROUND_COUNT = 120


def classes_of(frames: Sequence[Frame]) -> frozenset[str]:
    """The detection classes that the boxes of a sample's frames have.

    Raises:
        ValueError: a frame comes without annotations, so that nobody knows.
    """
    names: set[str] = set()
    for frame in frames:
        boxes: Boxes | None = frame.boxes
        if boxes is None:
            raise ValueError(
                f"sample {frame.token} has no boxes, by which --use_cbgs balances the classes; give infos with "
                "annotations, or leave --use_cbgs out"
            )
        names.update(boxes.names)
    return frozenset(names & set(DETECTION_CLASSES))


@dataclass(frozen=True)
class ClassBalance:
    """The order of an epoch; `EpochSampler(len(samples), order=ClassBalance(...))` follows it.

    Args:
        classes: of every sample, the detection classes that it has.
        seed: of the draws; every epoch has its own.
    """

    classes: Sequence[frozenset[str]]
    seed: int = 0

    def groups(self) -> list[list[int]]:
        """Samples of each detection class, in the order of `DETECTION_CLASSES`, and of the background."""
        members = [[i for i, names in enumerate(self.classes) if name in names] for name in DETECTION_CLASSES]
        return [*members, [i for i, names in enumerate(self.classes) if not names]]

    def draws_per_group(self) -> int:
        """How many samples an epoch draws from each group that is not empty."""
        *foreground, background = self.groups()
        entries = sum(map(len, foreground)) + BACKGROUND_COUNT * len(background)
        # In whole numbers: the quotient of rounded shares may fall short of N/11 by an ulp, and truncate to one less.
        return max(1, entries // (len(foreground) + 1))

    def __call__(self, epoch: int) -> list[int]:
        """Indices of the samples of an epoch, shuffled."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        count = self.draws_per_group()
        drawn: list[int] = []
        for group in self.groups():
            if group:
                picks = torch.randint(len(group), (count,), generator=generator).tolist()
                drawn += [group[pick] for pick in picks]
        order = torch.randperm(len(drawn), generator=generator).tolist()
        return [drawn[i] for i in order]
