"""Small constants on a device, made once: a tensor built from numbers waits for all the work of the GPU before it."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def constant(values: float | Sequence[float], like: Tensor) -> Tensor:
    """What ``like.new_tensor(values)`` gives, kept for the next call; read only."""
    key = tuple(float(v) for v in values) if isinstance(values, Sequence) else float(values)
    return _made(key, like.device, like.dtype)


@lru_cache(maxsize=4096)
def _made(values: float | tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, device=device, dtype=dtype)
