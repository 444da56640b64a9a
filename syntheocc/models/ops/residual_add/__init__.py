"""The end of a ResNet block: Triton where it pays, plain torch everywhere else."""

import torch
from torch import Tensor

from syntheocc.models.ops.dispatch import use_triton, use_triton_autograd
from syntheocc.models.ops.residual_add import reference


def residual_add(x: Tensor, residual: Tensor, bias: Tensor) -> Tensor:
    """``x + bias + residual`` of two tensors [N, C, H, W] and a bias [C]."""
    channels_last = all(t.is_contiguous(memory_format=torch.channels_last) for t in (x, residual))
    if channels_last and x.dtype == residual.dtype:
        if use_triton(x, residual, bias):
            from syntheocc.models.ops.residual_add import triton

            return triton.residual_add(x, residual, bias)
        if use_triton_autograd(x, residual, bias):
            from syntheocc.models.ops.residual_add import autograd

            return autograd.ResidualAdd.apply(x, residual, bias)
    return reference.residual_add(x, residual, bias)
