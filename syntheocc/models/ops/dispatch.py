"""When a Triton kernel may stand in for its plain torch reference."""

import functools
import importlib.util

import torch
from torch import Tensor


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def use_triton(*tensors: Tensor | None) -> bool:
    """Whether these operands go to a kernel: on a GPU, without gradients, and not while torch.compile looks.

    The kernels have no backward; and inductor fuses the plain operations with their neighbours, which a kernel of ours
    would prevent.
    """
    if torch.compiler.is_compiling() or not has_triton():
        return False
    present = [t for t in tensors if t is not None]
    if not all(t.is_cuda for t in present):
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in present))
