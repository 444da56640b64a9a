"""Sum of the (plane, class) vectors of every pixel of an MPI: Triton for training on a GPU, else plain torch."""

import torch
from torch import Tensor

from syntheocc.models.ops.dispatch import use_triton_autograd
from syntheocc.models.ops.plane_embedding import reference


def has_kernel(layers: Tensor, table: Tensor) -> bool:
    """Whether these operands go to a kernel, which never waits for the device."""
    return layers.dtype == torch.uint8 and layers.is_contiguous() and use_triton_autograd(layers, table)


def plane_embedding(layers: Tensor, table: Tensor, free_class: int, dtype: torch.dtype) -> Tensor:
    """Sum of ``table[plane, class]`` over the non-free planes of every pixel, accumulated in float32.

    Args:
        layers: integer class ids [N, D, h, w].
        table: [D, classes, C].
        free_class: the id that contributes nothing.
        dtype: of the result.

    Returns:
        [N, C, h, w], channels last in memory. Where an id is no class, the kernel gives NaN (it cannot raise without
        waiting for the device), plain torch an error.
    """
    if has_kernel(layers, table):
        from syntheocc.models.ops.plane_embedding import triton

        return triton.PlaneEmbedding.apply(layers, table, free_class, dtype)
    return reference.plane_embedding(layers, table, free_class, dtype)
