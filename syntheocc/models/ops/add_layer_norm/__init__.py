"""A residual sum and the LayerNorm after it: Triton where it pays, plain torch everywhere else."""

from torch import Tensor

from syntheocc.models.ops.add_layer_norm import reference
from syntheocc.models.ops.dispatch import use_triton, use_triton_autograd


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``(x + residual, layer_norm(x + residual))`` over the last axis.

    Args:
        x: [..., C].
        residual: the same shape, or None for zero.
        weight: [C] scale, in x's dtype or float32.
        bias: [C] offset, likewise.
        eps: added to the variance.

    Returns:
        The sum and the normed sum, both of x's shape. The sum is rounded to x's dtype before it is normed, as plain
        torch does.
    """
    contiguous = x.is_contiguous() and (residual is None or residual.is_contiguous())
    if contiguous and use_triton(x, residual, weight):
        from syntheocc.models.ops.add_layer_norm import triton

        return triton.add_layer_norm(x, residual, weight, bias, eps)
    if contiguous and use_triton_autograd(x, residual, weight):
        from syntheocc.models.ops.add_layer_norm import autograd

        if residual is None:
            return x, autograd.LayerNorm.apply(x, weight, bias, eps)
        return autograd.AddLayerNorm.apply(x, residual, weight, bias, eps)
    return reference.add_layer_norm(x, residual, weight, bias, eps)
