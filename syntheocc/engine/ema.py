"""An exponential moving average of trained parameters, in float32, updated by a handful of fused launches."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class EMA:
    """Averages of named parameters: average <- decay * average + (1 - decay) * parameter.

    The decay of the n-th update (from 0) is `min(decay, (1 + n) / (10 + n))`: the average forgets the random start
    fast (Tensorflow's and diffusers' warm-up). With `ramp` it is `decay * (1 - e^(-(first + n + 1) / ramp))`, as YOLOX
    and BEVDet average.

    Args:
        parameters: name -> parameter; the averages live on the parameters' devices, in float32.
        decay: of a long run, in [0, 1).
        ramp: updates over which the decay rises.
        first: updates that count as done when the first one comes; with `ramp`.

    Example:
        >>> ema = EMA(dict(model.named_parameters()))
        >>> optimizer.step(); ema.update()
        >>> with ema.applied():  # the model has the averaged weights inside
        ...     model.save_pretrained(folder)
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], decay: float = 0.9999, ramp: float | None = None, first: int = 0
    ):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"the decay of an average is in [0, 1), got {decay}")
        if not parameters:
            raise ValueError("no parameters to average; is anything trained?")
        if ramp is not None and not ramp > 0 or first < 0:
            raise ValueError(
                f"the ramp of an average's decay is above 0 and begins at 0 or later; got {ramp}, {first}"
            )
        self.decay, self.ramp, self.first = decay, ramp, first
        self.updates = 0
        self._parameters = dict(parameters)
        self._averages = [p.detach().to(torch.float32, copy=True) for p in self._parameters.values()]
        self._stored: list[Tensor] | None = None

    @property
    def averages(self) -> dict[str, Tensor]:
        """Name -> float32 average."""
        return dict(zip(self._parameters, self._averages, strict=True))

    def current_decay(self) -> float:
        """The decay of the next update."""
        if self.ramp is not None:
            return self.decay * -math.expm1(-(self.first + self.updates + 1) / self.ramp)
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters' current values into the averages."""
        values = [p.detach().to(torch.float32) for p in self._parameters.values()]
        torch._foreach_lerp_(self._averages, values, 1.0 - self.current_decay())
        self.updates += 1

    @torch.no_grad()
    def store(self) -> None:
        """Set the parameters' own values aside, for :meth:`restore`."""
        if self._stored is not None:
            raise RuntimeError("the parameters' values are already set aside; restore() them first")
        self._stored = [p.detach().clone() for p in self._parameters.values()]

    @torch.no_grad()
    def copy_to(self) -> None:
        """Give the parameters the averaged values."""
        torch._foreach_copy_(list(self._parameters.values()), self._averages)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the parameters back the values that :meth:`store` set aside."""
        if self._stored is None:
            raise RuntimeError("nothing was set aside; store() comes first")
        torch._foreach_copy_(list(self._parameters.values()), self._stored)
        self._stored = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters have the averaged values inside the block and their own again after it."""
        self.store()
        try:
            self.copy_to()
            yield
        finally:
            self.restore()

    def state_dict(self) -> dict[str, Any]:
        """Averages by name, and how many updates they saw."""
        return {"updates": self.updates, "averages": self.averages}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a saved average; the names and shapes must be those of the parameters.

        Raises:
            ValueError: other parameters were averaged.
        """
        saved = state["averages"]
        if set(saved) != set(self._parameters):
            odd = sorted(set(saved) ^ set(self._parameters))
            raise ValueError(f"the saved averages are of other parameters: {len(odd)} differ, first {odd[:3]}")
        for name, average in self.averages.items():
            if saved[name].shape != average.shape:
                raise ValueError(
                    f"the saved average of {name} is {list(saved[name].shape)}, the parameter {list(average.shape)}"
                )
            average.copy_(saved[name])
        self.updates = int(state["updates"])
