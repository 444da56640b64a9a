"""A step's scalars on their way from the device to the log, without making the device wait."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# What the loop itself logs beside the module's scalars.
_RESERVED = {"step", "lr", "grad_norm", "stop", "finite", "own_loss"}


def check_output(output: Mapping[str, Tensor]) -> None:
    """Whether a module's answer is a dict of scalar tensors with a "loss" and no name of the loop's own.

    Raises:
        ValueError: it is not.
    """
    if "loss" not in output:
        raise ValueError(f"the module gave {sorted(output)}; it must give a dict with 'loss'")
    if _RESERVED & set(output):
        raise ValueError(f"the module gave {sorted(_RESERVED & set(output))}; these names are the loop's own")
    for name, value in output.items():
        if value.numel() != 1:
            raise ValueError(f"the module's {name!r} is no scalar but {list(value.shape)}")


def stack_scalars(outputs: Sequence[Mapping[str, Tensor]]) -> tuple[list[str], Tensor]:
    """Names and float32 means `[N]` of the scalars of a step's micro batches; "loss" comes first.

    Raises:
        ValueError: the micro batches differ in their names.
    """
    names = ["loss", *sorted(set(outputs[0]) - {"loss"})]
    for output in outputs:
        if set(output) != set(names):
            raise ValueError(f"the module gave {sorted(output)} for one micro batch and {sorted(names)} for another")
    rows = [torch.stack([output[name].detach().float().reshape(()) for name in names]) for output in outputs]
    return names, torch.stack(rows).mean(dim=0)


@dataclass
class Pending:
    """Scalars of a step that the device may still be computing.

    Reading them at once would hold the CPU until the device is idle; read a step later, they are there already. The
    copy to pinned memory is queued right behind the step, so it does not wait for what is queued afterwards.
    """

    step: int
    names: list[str]
    learning_rate: float
    tokens: list[str]
    values: Tensor
    arrived: Any = None

    def __post_init__(self) -> None:
        if self.values.is_cuda:
            on_host = torch.empty(self.values.shape, dtype=self.values.dtype, pin_memory=True)
            on_host.copy_(self.values, non_blocking=True)
            self.values, self.arrived = on_host, torch.cuda.Event()
            self.arrived.record()

    def read(self) -> dict[str, float]:
        """The scalars, by name; waits for them if need be."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))
