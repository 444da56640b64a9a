"""When a Triton kernel may stand in for its plain torch reference."""

import importlib.util

import torch
from torch import Tensor

# A constant, not a function: torch.compile traces through the question below.
HAS_TRITON = importlib.util.find_spec("triton") is not None


def use_triton(*tensors: Tensor | None) -> bool:
    """Whether these operands go to a kernel: on a GPU where Triton is installed, and without gradients (no backward).

    Under torch.compile too: inductor takes the kernels into its graph, and its own norms are slower
    (benchmarks/generation.py).
    """
    present = [t for t in tensors if t is not None]
    if not HAS_TRITON or not all(t.is_cuda for t in present):
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in present))


def use_triton_autograd(*tensors: Tensor | None) -> bool:
    """Whether these operands go to a kernel with a backward: on a GPU, where gradients are wanted.

    Not under torch.compile: inductor derives and fuses the backward itself, and chooses what to keep for it.
    """
    present = [t for t in tensors if t is not None]
    if not HAS_TRITON or not all(t.is_cuda for t in present) or torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() and any(t.requires_grad for t in present)
