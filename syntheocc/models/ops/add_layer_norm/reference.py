"""A residual sum and the LayerNorm after it, in plain torch."""

import torch.nn.functional as F
from torch import Tensor


def add_layer_norm(
    x: Tensor,  # [..., C]
    residual: Tensor | None,  # [..., C]
    weight: Tensor,  # [C]
    bias: Tensor,  # [C]
    eps: float,
) -> tuple[Tensor, Tensor]:
    """``(x + residual, layer_norm(x + residual))``, both [..., C]."""
    if residual is not None:
        x = x + residual
    return x, F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)
