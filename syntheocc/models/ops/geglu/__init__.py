"""GEGLU's gate: Triton where it pays, plain torch everywhere else."""

from torch import Tensor

from syntheocc.models.ops.dispatch import use_triton, use_triton_autograd
from syntheocc.models.ops.geglu import reference


def geglu(x: Tensor) -> Tensor:
    """``values * gelu(gates)`` of x [..., 2F] (values first, then gates), [..., F]."""
    if x.is_contiguous() and use_triton(x):
        from syntheocc.models.ops.geglu import triton

        return triton.geglu(x)
    if x.is_contiguous() and use_triton_autograd(x):
        from syntheocc.models.ops.geglu import autograd

        return autograd.Geglu.apply(x)
    return reference.geglu(x)
