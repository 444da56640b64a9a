"""GEGLU's gate: Triton where it pays, plain torch everywhere else."""

from torch import Tensor

from syntheocc.models.ops.dispatch import use_triton
from syntheocc.models.ops.geglu import reference


def geglu(x: Tensor) -> Tensor:
    """``values * gelu(gates)`` of x [..., 2F] (values first, then gates), [..., F]."""
    if x.is_contiguous() and use_triton(x):
        from syntheocc.models.ops.geglu import triton

        return triton.geglu(x)
    return reference.geglu(x)
