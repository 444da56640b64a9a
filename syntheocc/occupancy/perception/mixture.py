"""Training on several data roots at once: photographs and generated views of the same samples, in a chosen ratio.

A generated data set has the tokens, scenes and file names of its original. So every root keeps a dataset of its own:
a frame's history, labels and lidar are those of its root, and indices tell the roots apart. Nothing in the files is
renamed; where samples are named (unreadable ones, log lines), those of an extra root are `<root>:<token>`.

Legend: R data roots, the first one is `--dataroot`; n frames of a root.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from syntheocc.engine.batch import mix_seed
from syntheocc.engine.loading import BadSample
from syntheocc.engine.trackers import note
from syntheocc.occupancy.data.frames import Frame, about
from syntheocc.occupancy.data.generated import manifest_digest
from syntheocc.occupancy.perception.mixture_checks import check_places, check_sample, check_samples_once
from syntheocc.occupancy.perception.registry import ModelEntry
from syntheocc.occupancy.perception.settings import TrainConfig
from syntheocc.occupancy.perception.sources import evenly_spread

__all__ = ["Mixture", "extra_settings", "root_key", "samples_per_epoch", "training_mixture", "warn_of_twins"]

# An epoch's order is a list in memory; more samples of a root than this are a slip of a digit.
_MOST = 10_000_000


class Mixture(Dataset):
    """The samples of several datasets; index i is one of the first dataset's, then of the second's, and so on.

    An epoch has every frame of the first dataset once, and of each other one as many samples as `per_epoch` says:
    the next ones of an endless stream of that dataset's own shuffled rounds, so that its frames are seen equally
    often. It depends on nothing but its number.

    Args:
        datasets: each with `frames`, `order(epoch)` (indices of one round) and `len`; R of them.
        roots: their data roots.
        per_epoch: samples of each dataset in an epoch, on average; the first one's is its number of frames.
        seed: of the epochs' order.
    """

    def __init__(self, datasets: Sequence[Any], roots: Sequence[Path], per_epoch: Sequence[Fraction], seed: int):
        self.datasets, self.roots, self.per_epoch, self.seed = list(datasets), list(roots), list(per_epoch), seed
        self.frames = [frame for data in self.datasets for frame in data.frames]
        self._starts = [0, *accumulate(len(data) for data in self.datasets)]
        keys = [root_key(root, data.frames) for root, data in zip(roots, datasets, strict=True)]
        self.names = [
            frame.token if number == 0 else f"{number}:{key}/{frame.token}"
            for number, (key, data) in enumerate(zip(keys, self.datasets, strict=True))
            for frame in data.frames
        ]
        self.sources = {
            "dataroot" if number == 0 else f"extra_dataroot {number}": (
                f"{len(data.frames)} frames, {float(wanted):g} samples an epoch, key {key}"
            )
            for number, (key, data, wanted) in enumerate(zip(keys, self.datasets, self.per_epoch, strict=True))
        }

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = self.source_of(index)
        sample = self.datasets[number][index - self._starts[number]]
        if number and isinstance(sample, BadSample):
            return replace(sample, token=f"{self.roots[number]}:{sample.token}")
        if number:
            sample.tokens = [f"{self.roots[number]}:{token}" for token in sample.tokens]
        return sample

    def source_of(self, index: int) -> int:
        """The number of the dataset that an index is of."""
        return next(number for number, end in enumerate(self._starts[1:]) if index < end)

    def order(self, epoch: int) -> list[int]:
        """Indices of an epoch, all datasets shuffled together (for `syntheocc.engine.samplers.EpochSampler`)."""
        chosen: list[int] = []
        for data, start, wanted in zip(self.datasets, self._starts, self.per_epoch, strict=False):
            # Positions in the stream of rounds: no sample is lost where an epoch has a fraction of a round.
            first, end = int(epoch * wanted), int((epoch + 1) * wanted)
            number = len(data.frames)
            for at in range(first // number, -(-end // number)):
                of_round = data.order(at)
                chosen += [start + i for i in of_round[max(0, first - at * number) : end - at * number]]
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        return [chosen[i] for i in torch.randperm(len(chosen), generator=generator).tolist()]


def warn_of_twins(mixture: Mixture, held_out: Sequence[Frame]) -> None:
    """Say where a held-out frame is trained on after all: as a generated view of it, with the same labels."""
    tokens = {frame.token for frame in held_out}
    for root, data in zip(mixture.roots[1:], mixture.datasets[1:], strict=True):
        twins = sum(frame.token in tokens for frame in data.frames)
        if twins:
            note(
                f"{twins} of {len(tokens)} held-out frames are in {root}, with labels: their scores are not those of "
                "unseen scenes; give infos of the training split as --extra_info_path"
            )


def samples_per_epoch(
    frames: Sequence[int], repeat: Sequence[float] = (), share: Sequence[float] = ()
) -> list[Fraction]:
    """How many samples of each data root an epoch has, which has every frame of the first root once.

    Args:
        frames: of each root, R numbers.
        repeat: how often each frame of an extra root is seen, R - 1 numbers or one for all; empty: once.
        share: instead, the share of all samples that comes from each extra root, R - 1 numbers.

    Raises:
        ValueError: so small a number that an epoch has less than one sample of a root, or one beyond all measure.

    Example:
        >>> samples_per_epoch([100, 30], share=[0.5]), samples_per_epoch([100, 30], repeat=[2])
        ([Fraction(100, 1), Fraction(100, 1)], [Fraction(100, 1), Fraction(60, 1)])
    """
    first, *others = frames
    exact = [Fraction(str(number)) for number in share or repeat or [1.0]]
    if share:
        wanted = [first * part / (1 - sum(exact)) for part in exact]
    else:
        wanted = [n * times for n, times in zip(others, exact * len(others), strict=False)]
    for number, (samples, n) in enumerate(zip(wanted, others, strict=True), 1):
        if not 1 <= samples <= max(n, _MOST):
            raise ValueError(
                f"extra_dataroot {number}: {float(samples):g} samples an epoch of {first} frames of dataroot; give a "
                f"{'larger' if samples < 1 else 'smaller'} {'extra_share' if share else 'extra_repeat'}"
            )
    return [Fraction(first), *wanted]


def extra_settings(settings: TrainConfig) -> list[TrainConfig]:
    """The settings of each extra data root as if it were the only one; what is drawn differs from the first's."""
    found = []
    for i, root in enumerate(settings.extra_dataroot):
        infos = tuple(str(root / Path(path).name) for path in settings.info_path)
        if settings.extra_info_path:
            infos = (settings.extra_info_path[i],)
        labels = settings.extra_labels_root[i] if settings.extra_labels_root else None
        found.append(
            replace(
                settings,
                dataroot=root,
                info_path=infos,
                labels_root=labels,
                depth_root=None,
                seed=mix_seed(settings.seed, i + 1),
                validation_steps=0,
                extra_dataroot=(),
                extra_info_path=(),
                extra_labels_root=(),
                extra_repeat=(),
                extra_share=(),
            )
        )
    return found


def root_key(root: Path, frames: Sequence[Frame]) -> str:
    """16 hex digits that tell data roots apart, wherever they lie: of the manifest, else of a few pictures."""
    digest = manifest_digest(root)
    if digest is not None:
        return digest
    found = hashlib.blake2b(digest_size=8)
    for frame in (frames[i] for i in evenly_spread(len(frames), 8)):
        found.update(frame.token.encode())
        for path in list(frame.image_paths.values())[:1]:
            with suppress(OSError):  # a bad sample, later
                found.update(path.read_bytes())
    return found.hexdigest()


def training_mixture(entry: ModelEntry, config: Any, recipe: Any, settings: TrainConfig) -> Mixture:
    """The samples of `--dataroot` and of every `--extra_dataroot`.

    Args:
        entry: the model's.
        config: the model's, fitted to the labels.
        recipe: of the preset.
        settings: of the run, with an extra root at least.

    Raises:
        ValueError: a root that is not there or does not go with the first one (`mixture_checks`).
    """
    first = entry.training_data(config, recipe, settings)
    datasets, roots = [first], [settings.dataroot]
    for own in extra_settings(settings):
        with about(f"--extra_dataroot {own.dataroot}"):
            check_places(own, settings)
            data = entry.training_data(config, recipe, own)
            check_sample(entry, config, own, first, data)
        datasets.append(data)
        roots.append(own.dataroot)
    check_samples_once(roots, datasets)
    wanted = samples_per_epoch([len(data.frames) for data in datasets], settings.extra_repeat, settings.extra_share)
    return Mixture(datasets, roots, wanted, settings.seed)
