"""Small constants on a device, made once: a tensor built from numbers waits for all the work of the GPU before it."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["constant", "passing_constant"]

# Never emptied: a recorded CUDA graph reads a constant where it was, also long after the last call.
_kept: dict[tuple, Tensor] = {}


def constant(values: Any, like: Tensor | torch.device | str) -> Tensor:
    """A number or nested sequences of numbers as a tensor that is kept for the next call: read it, never change it.

    For what a program has few of: grids, sizes, patterns. `passing_constant` is for what comes and goes.

    Args:
        values: what ``torch.tensor`` takes.
        like: a tensor, as in ``like.new_tensor(values)``; or a device, as in ``torch.tensor(values, device=like)``.

    Example:
        >>> constant((0.4, 0.4), torch.zeros(1, dtype=torch.float64)).dtype
        torch.float64
        >>> constant((200, 16), "cpu").dtype
        torch.int64
    """
    key = _key(values, like)
    if torch.compiler.is_compiling():  # the compiler makes constants of its own
        return _made(*key)
    found = _kept.get(key)
    if found is None:
        found = _made(*key)
        # Not what stands for a tensor while something is traced.
        if type(found) is Tensor:
            _kept[key] = found
    return found


def passing_constant(values: Any, like: Tensor | torch.device | str) -> Tensor:
    """`constant` of values that come and go, as those of a scene: the last 4096 are kept."""
    return _lately(*_key(values, like))


def _made(values: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    # A tensor of inference mode could not be used in training later.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype)


_lately = lru_cache(maxsize=4096)(_made)


def _key(values: Any, like: Tensor | torch.device | str) -> tuple[Any, torch.device, torch.dtype]:
    # Equal numbers of other types would be found under the same key: the type of tensor is part of it.
    if isinstance(like, Tensor):
        return _hashable(values), like.device, like.dtype
    kinds = {type(number) for number in _numbers(values)}
    whole = torch.bool if kinds == {bool} else torch.int64
    return _hashable(values), torch.device(like), torch.get_default_dtype() if float in kinds else whole


def _hashable(values: Any) -> Any:
    return tuple(_hashable(value) for value in values) if isinstance(values, Sequence) else values


def _numbers(values: Any) -> Iterator[Any]:
    if isinstance(values, Sequence):
        for value in values:
            yield from _numbers(value)
    else:
        yield values
