"""A trained SparseOcc made ready to predict fast: half precision, batch norms folded away, compiled."""

import copy

import torch

from syntheocc.occupancy.perception.backbones import fold_batch_norms
from syntheocc.occupancy.perception.sparseocc.model import SparseOcc

__all__ = ["prepare_for_inference"]


def prepare_for_inference(
    model: SparseOcc, dtype: torch.dtype | None = torch.bfloat16, compile: str | None = None
) -> SparseOcc:
    """A copy of a model for predicting only.

    Args:
        model: stays as it is.
        dtype: of all weights and activations; coordinates and sampling weights stay float32. None keeps the model's.
        compile: backend of torch.compile for the image network and the decoders, "inductor" for speed; None leaves
            them as they are. The first prediction then takes minutes, and batches keep their shape.

    Returns:
        the copy, in evaluation mode, without gradients.
    """
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    # In the weights' own precision: a folded norm multiplies each of them.
    fold_batch_norms(fast.image_encoder)
    if dtype is not None:
        fast.to(dtype)
    if compile is not None:
        fast.image_encoder.compile(backend=compile, dynamic=False)
        for stage in fast.head.voxel_decoder.stages:
            stage.compile(backend=compile, dynamic=False)
        fast.head.mask_decoder.compile(backend=compile, dynamic=False)
    return fast
