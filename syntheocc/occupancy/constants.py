"""Small constants on a device, made once: a tensor built from numbers waits for all the work of the GPU before it."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["constant"]


def constant(values: Any, like: Tensor | torch.device | str) -> Tensor:
    """A number or nested sequences of numbers as a tensor that is kept for the next call: read it, never change it.

    Args:
        values: what ``torch.tensor`` takes.
        like: a tensor, as in ``like.new_tensor(values)``; or a device, as in ``torch.tensor(values, device=like)``.

    Example:
        >>> constant((0.4, 0.4), torch.zeros(1, dtype=torch.float64)).dtype
        torch.float64
        >>> constant((200, 16), "cpu").dtype
        torch.int64
    """
    device = like.device if isinstance(like, Tensor) else torch.device(like)
    # Equal numbers of other types would be found under the same key: the type of tensor is part of it.
    dtype = like.dtype if isinstance(like, Tensor) else torch.tensor(values, device="cpu").dtype
    # The compiler makes constants of its own, and warns of caches.
    make = _make if torch.compiler.is_compiling() else _kept
    return make(_hashable(values), device, dtype)


def _make(values: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    # A tensor of inference mode could not be used in training later.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype)


_kept = lru_cache(maxsize=4096)(_make)


def _hashable(values: Any) -> Any:
    return tuple(_hashable(value) for value in values) if isinstance(values, Sequence) else values
