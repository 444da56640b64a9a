"""Batches for one rank, in an order that does not depend on the ranks, from datasets with unreadable samples."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from syntheocc.engine.batch import BatchPlan
from syntheocc.engine.samplers import EpochSampler
from syntheocc.engine.stopping import leave_signals_to_the_parent


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


class RankBatches:
    """The indices of one rank's micro batches, without end, from where the sampler stands when iteration begins."""

    def __init__(self, sampler: EpochSampler, plan: BatchPlan, rank: int):
        self._sampler = sampler
        self._plan = plan
        self._rank = rank

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._sampler.batches(self._plan.global_batch_size):
            for micro_step in range(self._plan.accumulation):
                yield [batch[position] for position in self._plan.positions(self._rank, micro_step)]


class _Collate:
    """The dataset's collate, beside the list of bad samples that were replaced."""

    def __init__(self, collate: Callable[[list[Any]], Any]):
        self._collate = collate

    def __call__(self, items: list[tuple[Any, list[BadSample]]]) -> tuple[Any, list[BadSample]]:
        return self._collate([sample for sample, _ in items]), [bad for _, all_bad in items for bad in all_bad]


def rank_loader(
    dataset: Any,
    collate: Callable[[list[Any]], Any],
    batches: RankBatches,
    workers: int = 0,
    pin_memory: bool = False,
    seed: int = 0,
) -> DataLoader:
    """A loader of `(batch, bad samples)`, micro batch after micro batch, without end."""
    return DataLoader(
        ReadableSamples(dataset),
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_Collate(collate),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_the_parent if workers else None,
        # A generator of its own: the loader would draw its workers' seeds from the global one, which is to resume.
        generator=torch.Generator().manual_seed(seed),
    )


@contextmanager
def reading(loader: DataLoader) -> Iterator[Iterator[tuple[Any, list[BadSample]]]]:
    """The loader's batches; its processes end with the block, after an error too.

    A traceback may keep the iterator until the interpreter ends. That would send the readers one SIGTERM, which they
    leave to the parent (`leave_signals_to_the_parent`), and wait for them forever.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        if loader.num_workers:
            batches._shutdown_workers()  # type: ignore[attr-defined] # what the iterator's own __del__ calls


def to_device(batch: Any, device: Any) -> Any:
    """A batch on a device: its own `to`, or that of every tensor in dicts, lists and tuples."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def batch_tokens(batch: Any) -> list[str]:
    """Names of a batch's samples where it has them, for messages."""
    tokens = batch.get("tokens") if isinstance(batch, Mapping) else getattr(batch, "tokens", None)
    return [str(token) for token in tokens] if tokens is not None else []
