"""CUDA graphs of a denoising step: thousands of launches recorded once and replayed as one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class RecordedCall:
    """A function of tensors, recorded as a CUDA graph at its first call and replayed with new values after that.

    Launching the kernels of a step one by one takes the CPU longer than the GPU needs to run them. The recording keeps
    the addresses of all weights: it must be made again when one of them moves.

    Args:
        function: takes the tensors in order and returns one tensor; must not wait for the device.
        tensors: of the first call; later ones need the same shapes, dtypes and Nones.
    """

    def __init__(self, function: Callable[..., Tensor], tensors: Sequence[Tensor | None]):
        self._static = [None if tensor is None else tensor.clone() for tensor in tensors]
        self._current = list(tensors)
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

    def __call__(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """The function's result for these tensors."""
        for i, (static, tensor) in enumerate(zip(self._static, tensors, strict=True)):
            if static is not None and tensor is not None and tensor is not self._current[i]:
                static.copy_(tensor)
                self._current[i] = tensor
        self._graph.replay()
        return self._output.clone()


def signature(tensors: Sequence[Tensor | None]) -> tuple:
    """What two calls must share to use one recording."""
    return tuple(None if t is None else (tuple(t.shape), t.stride(), t.dtype, t.device) for t in tensors)


def weight_addresses(*models: torch.nn.Module) -> int:
    """A number that changes when a parameter or buffer is replaced or moved; not when it is changed in place."""
    return hash(tuple(t.data_ptr() for m in models for group in (m.parameters(), m.buffers()) for t in group))
