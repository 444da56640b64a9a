"""Dropout that depends on seed, step and the sample's place in the global batch, not on who computes it.

torch's dropout kernels draw from the random state of the device, batch after batch, so one process and two would drop
different units. Here every sample draws with a seed of its own: the state of the device is set to it, the kernel runs
on that sample alone, and the state comes back. The kernels stay torch's fused ones, attention's included, which take
no generator.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from syntheocc.engine.batch import mix_seed

__all__ = ["Generators", "Seeds", "dropout", "each_sample", "fold", "seeds_of"]

# Where random numbers come from: one generator, one a sample (so that they do not depend on how a batch is split over
# devices), or torch's own.
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
# One seed a sample; None: torch's own random state.
Seeds: TypeAlias = tuple[int, ...] | None


def seeds_of(generators: Generators) -> Seeds:
    """The seeds of generators that are given one a sample; None where there is no such thing."""
    if generators is None or isinstance(generators, torch.Generator):
        return None
    return tuple(generator.initial_seed() & (2**63 - 1) for generator in generators)


def fold(seeds: Seeds, number: int) -> Seeds:
    """The seeds of a part of a network: unrelated ones for every number."""
    return None if seeds is None else tuple(mix_seed(seed, number) for seed in seeds)


def each_sample(
    function: Callable[..., Tensor],
    seeds: Seeds,
    *tensors: Tensor,  # [B, ...] each
) -> Tensor:
    """``function(*tensors)``, sample by sample, each drawing with its seed; as a whole without seeds.

    Args:
        function: treats samples alike; what it draws, it draws from torch's own state on the tensors' device.
        seeds: one a sample.
        tensors: their first dimension is the sample's.

    Raises:
        ValueError: another number of seeds than samples.
    """
    if seeds is None:
        return function(*tensors)
    if len(seeds) != len(tensors[0]):
        raise ValueError(f"{len(seeds)} seeds for {len(tensors[0])} samples; give one a sample")
    parts = []
    for i, seed in enumerate(seeds):
        with _drawing_from(seed, tensors[0].device):
            parts.append(function(*(tensor[i : i + 1] for tensor in tensors)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def dropout(
    x: Tensor,  # [B, ...]
    share: float,
    training: bool,
    seeds: Seeds = None,
) -> Tensor:
    """`torch.nn.functional.dropout` with one seed a sample."""
    if not training or share == 0.0:
        return x
    return each_sample(lambda part: functional.dropout(part, share), seeds, x)


@contextmanager
def _drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's own random state of a device begins at `seed` inside, and is what it was afterwards."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
    else:
        generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)
