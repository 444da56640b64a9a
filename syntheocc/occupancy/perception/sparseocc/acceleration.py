"""SparseOcc made fast: for predicting in half precision with batch norms folded away, for training recorded."""

import copy

import torch
from torch import Tensor

from syntheocc.engine.recorded import RecordedNetworks
from syntheocc.occupancy.perception.backbones import fold_batch_norms
from syntheocc.occupancy.perception.sparseocc.mask_decoder import MaskPrediction
from syntheocc.occupancy.perception.sparseocc.model import SparseOcc, SparseOccOutput
from syntheocc.occupancy.perception.sparseocc.voxel_decoder import StageOutput

__all__ = ["RecordedSparseOcc", "prepare_for_inference"]


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


class RecordedSparseOcc:
    """The model's forward and backward pass of training, recorded as CUDA graphs at the first step and replayed.

    Launching its kernels one by one takes the CPU twice as long as the GPU needs to run them (preset `small`, eight
    samples). Points in masks and dropout come from torch's own random state, so that one process draws others than
    two; where samples have generators of their own, call the model itself. Record while nothing else
    holds a graph of the model's parameters (an earlier output, a loss): what does keeps their gradients on its stream.

    Args:
        model: in training mode. Its parameters may be changed in place, not replaced.
        dtype: of autocast; None computes in the weights' own.
    """

    def __init__(self, model: SparseOcc, dtype: torch.dtype | None = None):
        self.model, self.dtype = model, dtype
        self._networks = RecordedNetworks([p for p in model.parameters() if p.requires_grad])

    def __call__(self, images: Tensor, ego2img: Tensor) -> SparseOccOutput:
        """`SparseOcc.forward`; as it is on a CPU, and in shapes other than those of the first two kinds of batches."""
        tensors = self._networks(self._flat, (self.model.training, self.dtype), (images, ego2img))
        stages, rest = [], list(tensors)
        two_heads = self.model.config.version == "1.0"
        for index in range(len(self.model.config.stages)):
            corners, features, classes = rest[:3]
            occupancy = rest[3] if two_heads else None
            rest = rest[4 if two_heads else 3 :]
            stages.append(StageOutput(corners, self.model.config.cell(index) // 2, features, classes, occupancy))
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return SparseOccOutput(stages, [MaskPrediction(classes, masks) for classes, masks in pairs])

    def _flat(self, images: Tensor, ego2img: Tensor) -> tuple[Tensor, ...]:
        # Without its cache: inside a caller's autocast, copies of the weights from before the recording would be used
        # in every replay.
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            output = self.model(images, ego2img)
        flat: list[Tensor] = []
        for stage in output.stages:
            flat += [stage.corners, stage.features, stage.class_logits]
            flat += [] if stage.occupancy_logits is None else [stage.occupancy_logits]
        for prediction in output.predictions:
            flat += [prediction.class_logits, prediction.mask_logits]
        return tuple(flat)
