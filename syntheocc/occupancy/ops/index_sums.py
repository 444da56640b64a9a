"""Sums of many values by a few indices: voxels by class, by tile of a picture."""

import torch
from torch import Tensor

__all__ = ["index_sums"]

# On a GPU millions of additions to a few numbers wait for each other; to so many copies of them they do not.
_COPIES = 512


def index_sums(
    values: Tensor,  # [..., N]
    index: Tensor,  # int64 [N]
    size: int,
    copies: int | None = None,
) -> Tensor:
    """What `values` of each index add up to: [..., size], in the type of the values.

    Args:
        values: float or integer.
        index: 0..size - 1.
        size: how many sums.
        copies: partial sums of each, added up in the end; values that are neighbours go to different ones. Default: 1
            on a CPU, where it is `Tensor.index_add` as it is, else enough that neighbours do not meet.
    """
    if copies is None:
        copies = _COPIES if values.is_cuda else 1
    if copies > 1:
        index = index + size * (torch.arange(len(index), device=index.device) % copies)
    sums = values.new_zeros(*values.shape[:-1], copies * size).index_add(-1, index, values)
    return sums if copies == 1 else sums.unflatten(-1, (copies, size)).sum(-2, dtype=values.dtype)
