"""One process a GPU under torchrun, or one alone: groups, shares of a clock, and tensors of all ranks."""

import os
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from syntheocc.engine.ranks import Ranks


class Clock:
    """Seconds since a process started, against a budget."""

    def __init__(self, budget: float):
        self.budget, self.started = budget, time.monotonic()

    def spent(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.started

    def left(self) -> float:
        """Seconds of the budget that are left; negative when it is overdrawn."""
        return self.budget - self.spent()


def fair_share(seconds: float, steps: dict[str, float], names: Sequence[str]) -> float:
    """What the first of the runs that are left has of the seconds: as much as a step of it takes beside the others."""
    return seconds * steps[names[0]] / sum(steps[name] for name in names)


def device_of(ranks: Ranks, name: str | None) -> torch.device:
    """The rank's GPU, or the CPU where there is none (or it is asked for); too few GPUs are shared."""
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return device


@contextmanager
def kept_going(what: str, failures: list[str]) -> Iterator[None]:
    """Note and print an error of one part of a run instead of losing the parts that are done."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        failures.append(f"{what}: {type(error).__name__}: {error}")


@contextmanager
def group(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """The process group: gloo for objects, NCCL for tensors on GPUs; nothing for a process alone.

    NCCL refuses two ranks on one GPU: where they share GPUs, tensors meet on the host.
    """
    if ranks.world == 1:
        yield
        return
    import torch.distributed as dist

    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    alone = device.type == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count()
    backend = "cpu:gloo,cuda:nccl" if alone else "gloo"
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


def agreed(value: float, ranks: Ranks, device: torch.device, how: str = "first") -> float:
    """One number for all ranks: that of rank 0 ("first"), the least ("min") or the greatest ("max")."""
    if ranks.world == 1:
        return value
    import torch.distributed as dist

    tensor = torch.tensor([value], dtype=torch.float64, device=_meeting(device))
    if how == "first":
        dist.broadcast(tensor, 0)
    else:
        dist.all_reduce(tensor, dist.ReduceOp.MIN if how == "min" else dist.ReduceOp.MAX)
    return float(tensor)


def same_on_all_ranks(module: torch.nn.Module, ranks: Ranks) -> None:
    """Give every rank rank 0's weights and running statistics."""
    if ranks.world > 1:
        import torch.distributed as dist

        for tensor in module.state_dict().values():
            met = tensor.to(_meeting(tensor.device))
            dist.broadcast(met, 0)
            tensor.copy_(met)


def of_all_ranks(rows: Tensor, ranks: Ranks) -> Tensor:
    """The rows of all ranks in rank order, [world * n, ...]; n is the least number of rows that a rank has."""
    if ranks.world == 1:
        return rows
    import torch.distributed as dist

    device, met = rows.device, _meeting(rows.device)
    count = int(agreed(len(rows), ranks, device, "min"))
    gathered = rows.new_empty(ranks.world * count, *rows.shape[1:], device=met)
    # Parts of one tensor: gigabytes of labels are not copied once more.
    dist.all_gather(list(gathered.split(count)), rows[:count].contiguous().to(met))
    return gathered.to(device)


def _meeting(device: torch.device) -> torch.device:
    """Where tensors of a device are exchanged."""
    import torch.distributed as dist

    return device if "nccl" in str(dist.get_backend_config()) else torch.device("cpu")
