"""Batches for one rank, in an order that does not depend on the ranks, from datasets with unreadable samples."""

from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset


@dataclass(frozen=True)
class BadSample:
    """What a dataset's `__getitem__` *returns* for a sample that cannot be read; the next one takes its place.

    Args:
        token: the sample's name, for the list of bad samples.
        reason: one line, with the file's name.
    """

    token: str
    reason: str


class ReadableSamples(Dataset):
    """A dataset whose unreadable samples are replaced by the next readable one: `dataset[i] -> (sample, bad ones)`.

    The replacement depends on the index alone, so every rank, worker and resumed run makes the same choice.

    Raises:
        ValueError: no sample of the dataset can be read.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self._known: dict[int, BadSample] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, list[BadSample]]:
        bad: list[BadSample] = []
        for offset in range(len(self.dataset)):
            at = (index + offset) % len(self.dataset)
            sample = self._known.get(at) or self.dataset[at]
            if not isinstance(sample, BadSample):
                return sample, bad
            self._known[at] = sample
            bad.append(sample)
        reasons = "; ".join(f"{sample.token}: {sample.reason}" for sample in bad[:3])
        raise ValueError(f"none of the dataset's {len(self.dataset)} samples can be read ({reasons})")
