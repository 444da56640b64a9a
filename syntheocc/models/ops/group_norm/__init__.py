"""GroupNorm with a shift before and SiLU after: Triton where it pays, plain torch everywhere else."""

import torch
from torch import Tensor

from syntheocc.models.ops.dispatch import use_triton, use_triton_autograd
from syntheocc.models.ops.group_norm import reference


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    shift: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """``silu(group_norm(x + shift))``.

    Args:
        x: [N, C, H, W] (other ranks go to the reference).
        num_groups: groups of the norm.
        weight: [C] scale, in x's dtype or float32.
        bias: [C] offset, likewise.
        eps: added to the variance.
        shift: [N, C] added to x first, or None.
        silu: apply SiLU to the result.

    Returns:
        The same shape as x, in x's memory format.
    """
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        if use_triton(x, weight, shift):
            from syntheocc.models.ops.group_norm import triton

            return triton.group_norm(x, num_groups, weight, bias, eps, shift, silu)
        if use_triton_autograd(x, weight, shift):
            from syntheocc.models.ops.group_norm import autograd

            return autograd.GroupNorm.apply(x, num_groups, weight, bias, eps, shift, silu)
    return reference.group_norm(x, num_groups, weight, bias, eps, shift, silu)
