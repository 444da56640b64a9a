"""The end of a ResNet block in plain torch."""

from torch import Tensor


def residual_add(
    x: Tensor,  # [N, C, H, W]
    residual: Tensor,  # [N, C, H, W]
    bias: Tensor,  # [C]
) -> Tensor:
    """``x + bias + residual``, [N, C, H, W]."""
    return x + bias.to(x.dtype)[:, None, None] + residual
