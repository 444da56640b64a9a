"""CUDA graphs of a step that is repeated: thousands of launches recorded once and replayed as one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class RecordedCall:
    """A function of tensors, recorded as a CUDA graph at its first call and replayed with new values after that.

    Launching the kernels of a step one by one takes the CPU longer than the GPU needs to run them. The recording keeps
    the addresses of all weights: it must be made again when one of them moves.

    Args:
        function: takes the tensors in order and returns a tensor, or a tuple of tensors and Nones; must not wait for
            the device.
        tensors: of the first call; later ones need the same shapes, dtypes and Nones.
        constant: a tensor that is the very object of the call before is taken to hold the same values still.
    """

    def __init__(self, function: Callable[..., Any], tensors: Sequence[Tensor | None], constant: bool = True):
        self._constant = constant
        self._static = [None if tensor is None else tensor.clone() for tensor in tensors]
        self._current: list[Tensor | None] = list(tensors) if constant else [None] * len(tensors)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # Compiling kernels and measuring convolution algorithms cannot be recorded: it happens here.
            for _ in range(2):
                function(*self._static)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = function(*self._static)

    def __call__(self, tensors: Sequence[Tensor | None]) -> Any:
        """The function's result for these tensors, in memory of its own."""
        for i, (static, tensor) in enumerate(zip(self._static, tensors, strict=True)):
            if static is None or tensor is None or (self._constant and tensor is self._current[i]):
                continue
            static.copy_(tensor)
            self._current[i] = tensor if self._constant else None
        self._graph.replay()
        if isinstance(self._output, Tensor):
            return self._output.clone()
        return tuple(None if tensor is None else tensor.clone() for tensor in self._output)


def signature(tensors: Sequence[Tensor | None]) -> tuple:
    """What two calls must share to use one recording."""
    return tuple(None if t is None else (tuple(t.shape), t.stride(), t.dtype, t.device) for t in tensors)


def weight_addresses(*models: torch.nn.Module) -> int:
    """A number that changes when a parameter or buffer is replaced or moved; not when it is changed in place."""
    return hash(tuple(t.data_ptr() for m in models for group in (m.parameters(), m.buffers()) for t in group))
