"""Who am I among the processes of a job: torchrun, `accelerate launch` and a plain start look the same from here.

Batch jobs share nothing but their work list, so they need no communication until the end. Each rank takes every
`world`-th sample: no sample is lost, none is padded or done twice, whatever the number of ranks.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """A process's place: `rank` of `world`, `local_rank` on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "Ranks":
        """Read RANK, WORLD_SIZE and LOCAL_RANK as torchrun and `accelerate launch` set them; alone without them."""
        environ = os.environ if environ is None else environ
        ranks = cls(*(int(environ.get(name, default)) for name, default in _VARIABLES))
        if not 0 <= ranks.rank < ranks.world:
            raise ValueError(f"RANK={ranks.rank} is not below WORLD_SIZE={ranks.world}; start through torchrun")
        return ranks

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for the job."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """The rank's part of `items`: disjoint over ranks, together all of them."""
        return list(items[self.rank :: self.world])

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, on every rank; call it on all ranks inside :meth:`group`."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def group(self):
        """The process group of a CPU-side job (gloo); nothing at all for a process alone.

        The timeout is a week: ranks meet only at the end, and one may have hours of work more than another.
        """
        if self.world == 1:
            yield self
            return
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=timedelta(days=7))
        try:
            yield self
        finally:
            dist.destroy_process_group()


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
