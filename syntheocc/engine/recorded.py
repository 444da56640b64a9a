"""Networks of a training step as CUDA graphs, forward and backward: recorded once, replayed every step.

A step launches thousands of kernels, and launching them can take the CPU as long as the GPU needs to run them, or
longer where the model is small. What depends on the step (captions, labels, the loss) stays outside, so that only
shapes have to be the same from step to step. Numbers drawn from torch's own state are new ones in every replay.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["RecordedModel", "RecordedNetworks"]

# Kernels are compiled and convolution algorithms measured before the recording, neither of which can be recorded.
_WARM_UP = 3
# Each holds a step's activations; shapes beyond these run as they are.
_MOST = 2

Outputs: TypeAlias = Tensor | tuple[Tensor, ...]


class RecordedNetworks:
    """A function of tensors and its gradients, replayed from CUDA graphs.

    Args:
        parameters: all that `function` trains. They must be changed in place only: a recording keeps their addresses.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = list(parameters)
        self._recordings: dict[tuple, _Recording] = {}

    def __call__(self, function: Callable[..., Outputs], key: tuple, inputs: Sequence[Tensor]) -> Any:
        """`function(*inputs)`, with gradients for inputs and parameters.

        Runs the function as it is where a recording would be wrong: on a CPU, without gradients, and while gradients
        of an earlier micro batch are waiting (they lie in the memory that a replay writes to).

        Args:
            function: returns a tensor or a tuple of tensors; must not wait for the device, and depend on nothing but
                its arguments, the parameters, torch's own random state and `key`.
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
        recording = self._recordings[key, shapes]
        outputs = _Replay.apply(recording, *inputs, *self.parameters)
        return outputs[0] if recording.single else outputs

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a model has parameters of its own, and goes without recordings."""


class RecordedModel(ABC):
    """A model's forward and backward pass of training, recorded as CUDA graphs at the first step and replayed.

    Random numbers come from torch's own state, so that one process draws others than two; where samples have
    generators of their own, call the model itself. Record while nothing else holds a graph of the model's parameters
    (an earlier output, a loss): what does keeps their gradients on its stream.

    Args:
        model: in training mode. Its parameters may be changed in place, not replaced. Before the recording it is run
            three times, which moves running statistics.
        dtype: of autocast; None computes in the weights' own.

    Raises:
        ValueError: a model with gradient checkpointing, which sets random states while it is recorded.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None):
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise ValueError(
                "gradient checkpointing cannot be recorded: call gradient_checkpointing_enable(False) before"
            )
        self.model, self.dtype = model, dtype
        self._networks = RecordedNetworks([p for p in model.parameters() if p.requires_grad])
        self._present: dict[tuple, list[bool]] = {}

    @abstractmethod
    def passes(self, *inputs: Tensor) -> Sequence[Tensor | None]:
        """The model's outputs one after another; must not wait for the device, and depend on nothing but `inputs`."""

    def replay(self, *inputs: Tensor) -> list[Tensor | None]:
        """`passes`, recorded where it can be: on a CPU, and in shapes beyond the first two kinds, it runs as it is."""
        key = (self.model.training, self.dtype)
        found = iter(self._networks(self._flat, key, inputs))
        return [next(found) if there else None for there in self._present[key]]

    def _flat(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        # Without its cache: inside a caller's autocast, copies of the weights from before the recording would be used
        # in every replay.
        with torch.autocast(inputs[0].device.type, self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            outputs = self.passes(*inputs)
        self._present[self.model.training, self.dtype] = [one is not None for one in outputs]
        return tuple(one for one in outputs if one is not None)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a model goes without recordings."""
        return None


class _Recording:
    """One forward and one backward pass for inputs of certain shapes."""

    def __init__(self, function: Callable[..., Outputs], inputs: Sequence[Tensor], parameters: Sequence[nn.Parameter]):
        self.function = function  # what it refers to has to stay in memory
        # Leaves of the recorded pass, with the strides of what comes.
        self.inputs = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs]
        wanted = [tensor for tensor in (*self.inputs, *parameters) if tensor.requires_grad]

        self.single = False

        def forward() -> tuple[Tensor, ...]:
            found = function(*self.inputs)
            self.single = isinstance(found, Tensor)
            return (found,) if isinstance(found, Tensor) else tuple(found)

        def backward(outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
            pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None]
            return torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)

        def zeros(outputs: Sequence[Tensor]) -> list[Tensor | None]:
            return [torch.zeros_like(one) if one.requires_grad else None for one in outputs]

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                outputs = forward()
                backward(outputs, zeros(outputs))
                del outputs
        torch.cuda.current_stream().wait_stream(side)
        pool = torch.cuda.graph_pool_handle()
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # "thread_local": a loader's thread may pin memory meanwhile.
        with torch.cuda.graph(self.forward, pool=pool, capture_error_mode="thread_local"):
            outputs = forward()
        self.output_gradients = zeros(outputs)
        with torch.cuda.graph(self.backward, pool=pool, capture_error_mode="thread_local"):
            found = iter(backward(outputs, self.output_gradients))
        # One for each input and parameter, None where there is none.
        self.gradients = [next(found) if t.requires_grad else None for t in (*self.inputs, *parameters)]
        self.outputs = [one.detach() for one in outputs]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recording: _Recording, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.recording = recording
        ctx.set_materialize_grads(False)
        for static, tensor in zip(recording.inputs, tensors, strict=False):
            static.detach().copy_(tensor)
        recording.forward.replay()
        outputs = tuple(one.detach() for one in recording.outputs)
        ctx.mark_non_differentiable(
            *(one for one, g in zip(outputs, recording.output_gradients, strict=True) if g is None)
        )
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        recording = ctx.recording
        for static, gradient in zip(recording.output_gradients, gradients, strict=True):
            if static is not None:
                # An output that the loss did not use has no gradient.
                static.zero_() if gradient is None else static.copy_(gradient)
        recording.backward.replay()
        return (None, *(None if one is None else one.detach() for one in recording.gradients))
