"""UNet and ControlNet of a training step as CUDA graphs, forward and backward: recorded once, replayed every step.

A step launches thousands of kernels, and launching them can take the CPU as long as the GPU needs to run them, or
longer where the model is small. What depends on the step (draws, captions, the condition's encoding, the loss)
stays outside, so that only shapes have to be the same from step to step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["RecordedNetworks"]

# Kernels are compiled and convolution algorithms measured before the recording, neither of which can be recorded.
_WARM_UP = 3
# Each holds a step's activations; shapes beyond these run as they are.
_MOST = 2


class RecordedNetworks:
    """A function of tensors and its gradients, replayed from CUDA graphs.

    Args:
        parameters: all that `function` trains. They must be changed in place only: a recording keeps their addresses.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = list(parameters)
        self._recordings: dict[tuple, _Recording] = {}

    def __call__(self, function: Callable[..., Tensor], key: tuple, inputs: Sequence[Tensor]) -> Tensor:
        """`function(*inputs)`, with gradients for inputs and parameters.

        Runs the function as it is where a recording would be wrong: on a CPU, without gradients, and while gradients
        of an earlier micro batch are waiting (they lie in the memory that a replay writes to).

        Args:
            function: must not wait for the device, and depend on nothing but its arguments, the parameters and `key`.
            key: what else a recording depends on.
            inputs: on one device.
        """
        waiting = any(parameter.grad is not None for parameter in self.parameters)
        if waiting or not torch.is_grad_enabled() or not all(tensor.is_cuda for tensor in inputs):
            return function(*inputs)
        shapes = tuple((tuple(t.shape), t.stride(), t.dtype, t.requires_grad) for t in inputs)
        if (key, shapes) not in self._recordings:
            if len(self._recordings) == _MOST:
                return function(*inputs)
            self._recordings[key, shapes] = _Recording(function, inputs, self.parameters)
        return _Replay.apply(self._recordings[key, shapes], *inputs, *self.parameters)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a model has parameters of its own, and goes without recordings."""


class _Recording:
    """One forward and one backward pass for inputs of certain shapes."""

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor], parameters: Sequence[nn.Parameter]):
        self.function = function  # what it refers to has to stay in memory
        # Leaves of the recorded pass, with the strides of what comes.
        self.inputs = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs]
        wanted = [tensor for tensor in (*self.inputs, *parameters) if tensor.requires_grad]

        def backward(output: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(output, wanted, gradient, allow_unused=True)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                output = function(*self.inputs)
                backward(output, torch.zeros_like(output))
                del output
        torch.cuda.current_stream().wait_stream(side)
        pool = torch.cuda.graph_pool_handle()
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # "thread_local": a loader's thread may pin memory meanwhile.
        with torch.cuda.graph(self.forward, pool=pool, capture_error_mode="thread_local"):
            output = function(*self.inputs)
        self.output_gradient = torch.zeros_like(output)
        with torch.cuda.graph(self.backward, pool=pool, capture_error_mode="thread_local"):
            found = iter(backward(output, self.output_gradient))
        # One for each input and parameter, None where there is none.
        self.gradients = [next(found) if t.requires_grad else None for t in (*self.inputs, *parameters)]
        self.output = output.detach()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recording: _Recording, *tensors: Tensor) -> Tensor:
        ctx.recording = recording
        for static, tensor in zip(recording.inputs, tensors, strict=False):
            static.detach().copy_(tensor)
        recording.forward.replay()
        return recording.output.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        recording = ctx.recording
        recording.output_gradient.copy_(gradient)
        recording.backward.replay()
        return (None, *(None if one is None else one.detach() for one in recording.gradients))
