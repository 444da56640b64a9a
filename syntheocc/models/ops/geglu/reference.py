"""GEGLU's gate (Shazeer 2020, arXiv:2002.05202) in plain torch."""

import torch.nn.functional as F
from torch import Tensor


def geglu(
    x: Tensor,  # [..., 2F], values then gates
) -> Tensor:
    """``values * gelu(gates)`` with the exact (erf) GELU, [..., F]."""
    values, gates = x.chunk(2, dim=-1)
    return values * F.gelu(gates)
