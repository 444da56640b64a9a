"""The order of the samples: seeded, the same on any number of ranks, and resumable in the middle of an epoch.

The stream is epoch after epoch without a gap; a global batch takes the next G of it and may straddle two epochs, so
nothing is dropped and nothing padded. The position is counted in samples of all ranks together, hence a job may
resume on another number of ranks.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from syntheocc.engine.batch import mix_seed


class EpochSampler:
    """Indices of a dataset of `length` samples, epoch after epoch.

    Args:
        length: number of samples in the dataset.
        seed: of the shuffles; every epoch has its own.
        order: instead of a shuffle, a function epoch -> indices (class-balanced resampling draws with replacement).
            It must depend on nothing but the epoch. Epochs may differ in length.
        names: of the samples, so that a run is not continued on others.
        sources: name -> what there is to say of a source of samples, where there are several; a run is not continued
            on others, and the message says which.

    Example:
        >>> sampler = EpochSampler(3, order=lambda epoch: [2, 0, 1])
        >>> batches = sampler.batches(2)  # reads ahead without moving the sampler
        >>> next(batches), next(batches), next(batches)
        ([2, 0], [1, 2], [0, 1])
        >>> sampler.advance(4)  # two batches were trained on
        >>> sampler.state_dict()
        {'epoch': 1, 'position': 1}
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        order: Callable[[int], Sequence[int]] | None = None,
        names: Sequence[str] = (),
        sources: Mapping[str, str] | None = None,
    ):
        if length < 1:
            raise ValueError(f"a dataset of {length} samples has nothing to train on")
        self.length = length
        self.seed = seed
        self._order = order
        self._names = list(names)
        self.sources = dict(sources or {})
        self.epoch = 0
        self.position = 0
        self._cached: dict[int, list[int]] = {}

    def indices(self, epoch: int) -> list[int]:
        """All indices of an epoch, in order.

        Raises:
            ValueError: the given order is empty or names a sample that the dataset does not have.
        """
        if epoch in self._cached:
            return self._cached[epoch]
        if self._order is None:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
            indices = torch.randperm(self.length, generator=generator).tolist()
        else:
            indices = [int(index) for index in self._order(epoch)]
            if not indices:
                raise ValueError(f"the order of epoch {epoch} is empty; give at least one index")
            if min(indices) < 0 or max(indices) >= self.length:
                raise ValueError(
                    f"the order of epoch {epoch} has indices {min(indices)}..{max(indices)}; the dataset has samples "
                    f"0..{self.length - 1}"
                )
        # Readers run ahead, perhaps into the next epoch, while the sampler still counts in this one.
        while len(self._cached) >= 4:
            del self._cached[min(self._cached)]
        self._cached[epoch] = indices
        return indices

    def batches(self, size: int) -> Iterator[list[int]]:
        """Global batches of `size` indices from the current position, without end; does not move the sampler."""
        epoch, position = self.epoch, self.position
        while True:
            batch: list[int] = []
            while len(batch) < size:
                indices = self.indices(epoch)
                taken = indices[position : position + size - len(batch)]
                batch += taken
                position += len(taken)
                if position >= len(indices):
                    epoch, position = epoch + 1, 0
            yield batch

    def advance(self, count: int) -> None:
        """Move on by `count` samples: those of all ranks together."""
        self.position += count
        while self.position >= (size := len(self.indices(self.epoch))):
            self.epoch, self.position = self.epoch + 1, self.position - size

    def steps(self, epochs: int, global_batch_size: int) -> int:
        """Optimizer steps that see `epochs` epochs; the last one may take a few samples of the next epoch."""
        samples = sum(len(self.indices(epoch)) for epoch in range(epochs)) if self._order else epochs * self.length
        return -(-samples // global_batch_size)

    def fingerprint(self) -> str:
        """16 hex digits of the present epoch's order and of the samples' names."""
        text = json.dumps([self.indices(self.epoch), self._names])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a saved stream stood.

        Raises:
            ValueError: the position lies outside of its epoch: the dataset or the order is another one.
        """
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position < len(self.indices(epoch)):
            raise ValueError(
                f"epoch {epoch}, position {position} does not exist in an epoch of {len(self.indices(max(epoch, 0)))} "
                "samples; the checkpoint was made with another dataset"
            )
        self.epoch, self.position = epoch, position
