"""GroupNorm with an optional shift before and SiLU after, in plain torch."""

import torch.nn.functional as F
from torch import Tensor


def group_norm(
    x: Tensor,  # [N, C, H, W]
    num_groups: int,
    weight: Tensor,  # [C]
    bias: Tensor,  # [C]
    eps: float,
    shift: Tensor | None = None,  # [N, C], added to x first (a ResNet block's time embedding)
    silu: bool = False,
) -> Tensor:
    """``silu(group_norm(x + shift))``, [N, C, H, W]."""
    if shift is not None:
        x = x + shift[:, :, None, None]
    x = F.group_norm(x, num_groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    return F.silu(x) if silu else x
