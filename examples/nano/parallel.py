"""Several GPUs, one training: averaged gradients, and a schedule that follows the clock.

The stages run for a given time, not for a given number of steps, so that a whole training fits a machine's time slot.
Every rank must still use the same learning rate: rank 0's clock counts, and the others hear of it now and then.
"""

import math
import os
import time
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syntheocc.engine.ranks import Ranks


class Team:
    """One process among those of a job: its rank, its device, and what they do together."""

    def __init__(self, device: str | None = None):
        self.ranks = Ranks.from_environment()
        use_cuda = torch.cuda.is_available() if device is None else device == "cuda"
        self.device = torch.device("cuda", self.ranks.local_rank) if use_cuda else torch.device("cpu")
        if use_cuda:
            torch.cuda.set_device(self.device)
        if self.ranks.world > 1:
            dist.init_process_group("nccl" if use_cuda else "gloo")
        self.began = time.perf_counter()

    @property
    def rank(self) -> int:
        """Number of the process."""
        return self.ranks.rank

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self.ranks.world

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def log(self, message: str) -> None:
        """Print a line with the seconds since the start; rank 0 only."""
        if self.is_main:
            print(f"[{time.perf_counter() - self.began:6.1f} s] {message}", flush=True)

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Replace float32 tensors by their means over the ranks, in one message."""
        if self.world == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.world).split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients; a parameter without one counts as zero."""
        if self.world == 1:
            return
        parameters = list(parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.average_([parameter.grad for parameter in parameters])

    def copy_from_main_(self, tensors: Iterable[Tensor]) -> None:
        """Give float32 tensors rank 0's values, in one message."""
        if self.world == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.broadcast(flat, 0)
        parts = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])

    def sum(self, value: float) -> float:
        """The sum of a number over the ranks."""
        if self.world == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)

    def close(self) -> None:
        """Leave the process group."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()


class Progress:
    """How much of a stage's time is over, 0..1, the same number on every rank at the same step.

    Args:
        team: who trains together.
        seconds: how long the stage takes.
        interval: steps between two looks at rank 0's clock; between them the progress is extrapolated.
        max_steps: end after so many steps, however long they take.

    Example:
        >>> for step, share in Progress(team, seconds=60):  # doctest: +SKIP
        ...     set_learning_rate(optimizer, 1e-3 * warm_cosine(step, share))
    """

    def __init__(self, team: Team, seconds: float, interval: int = 10, max_steps: int | None = None):
        self.team, self.seconds, self.interval, self.max_steps = team, seconds, interval, max_steps

    def __iter__(self):
        began, step = time.perf_counter(), 0
        share = rate = 0.0
        looked = 0
        while self.max_steps is None or step < self.max_steps:
            if step % self.interval == 0 or step == 1:
                now = self._main_clock(began)
                rate = (now - share) / (step - looked) if step > looked else 0.0
                share, looked = now, step
            value = share + rate * (step - looked)
            if self.max_steps is not None:
                value = max(value, step / self.max_steps)
            if value >= 1:
                return
            yield step, value
            step += 1

    def _main_clock(self, began: float) -> float:
        # Waits for the device: otherwise the host would queue steps far beyond the end of the stage.
        if self.team.device.type == "cuda":
            torch.cuda.synchronize(self.team.device)
        now = torch.tensor([(time.perf_counter() - began) / self.seconds], device=self.team.device)
        self.team.copy_from_main_([now])
        return float(now)


def warm_cosine(step: int, share: float, warmup: int = 100) -> float:
    """Factor of the learning rate: rises over `warmup` steps, falls to zero along half a cosine of the time."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def workers_for(world: int) -> int:
    """Processes a rank may have for scenes: its share of the cores, one left for itself."""
    return max(1, (os.cpu_count() or 1) // world - 1)
