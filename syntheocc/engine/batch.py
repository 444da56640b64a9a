"""The global batch is the setting; what one rank loads at a time and how often it accumulates follow from it.

A step's samples have positions 0 .. G-1 in its global batch. Their randomness (noise, timestep, dropped conditions)
depends on seed, step and position alone, never on the rank that happens to hold them: one, two and four ranks draw
the same training step, so their loss curves are the same up to the rounding of sums.
"""

import hashlib
import struct
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut: `micro` samples a forward, `accumulation` forwards a step, on `world` ranks."""

    micro: int
    accumulation: int
    world: int

    @property
    def global_batch_size(self) -> int:
        """Samples of one optimizer step over all ranks."""
        return self.micro * self.accumulation * self.world

    def positions(self, rank: int, micro_step: int) -> range:
        """Positions in the global batch of what `rank` trains on in its `micro_step`-th forward."""
        first = (micro_step * self.world + rank) * self.micro
        return range(first, first + self.micro)


def derive_batch(global_batch_size: int, world: int, micro_batch_size: int | None = None) -> BatchPlan:
    """Cut a global batch for `world` ranks.

    Args:
        global_batch_size: samples of one optimizer step over all ranks.
        world: number of ranks.
        micro_batch_size: samples a rank holds in memory at a time; None: its whole share, without accumulation.

    Raises:
        ValueError: a number is below 1, or the batch does not divide evenly, so that some sample would weigh more
            than another; the message names batch sizes that do.

    Example:
        >>> derive_batch(8, world=2, micro_batch_size=1)
        BatchPlan(micro=1, accumulation=4, world=2)
    """
    for name, value in (("global_batch_size", global_batch_size), ("the number of ranks", world)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ValueError(f"micro_batch_size is {micro_batch_size}; it must be at least 1")
    if micro_batch_size is None:
        unit, micro, what = world, global_batch_size // world, f"{world} ranks"
    else:
        unit, micro = world * micro_batch_size, micro_batch_size
        what = f"{world} ranks x micro_batch_size {micro_batch_size} = {unit}"
    if global_batch_size % unit:
        below, above = global_batch_size // unit * unit, (global_batch_size // unit + 1) * unit
        near = f"{below} or {above}" if below else str(above)
        raise ValueError(
            f"global_batch_size {global_batch_size} is no multiple of {what}; give {near}, or another micro_batch_size"
        )
    return BatchPlan(micro=micro, accumulation=global_batch_size // (micro * world), world=world)


def mix_seed(*numbers: int) -> int:
    """One 63-bit seed from several integers (blake2b): neighbouring numbers give unrelated streams."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sample_generator(seed: int, step: int, position: int, device: str | torch.device = "cpu") -> torch.Generator:
    """The generator of one sample of one step: the same numbers on whatever rank and in whatever micro batch.

    CPU and CUDA generators draw different numbers from the same seed; a curve is reproduced on the kind of device
    that drew it.

    Args:
        seed: the job's seed.
        step: the optimizer step, 0 for the first.
        position: place in the global batch (`BatchPlan.positions`).
        device: where the numbers are drawn.
    """
    return torch.Generator(device).manual_seed(mix_seed(seed, step, position))
