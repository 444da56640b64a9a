"""SparseOcc made fast: for predicting in half precision with batch norms folded away, for training recorded."""

import copy

import torch
from torch import Tensor

from syntheocc.engine.recorded import RecordedModel
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


class RecordedSparseOcc(RecordedModel):
    """`SparseOcc` in training, recorded; see `RecordedModel`.

    Launching its kernels one by one takes the CPU twice as long as the GPU needs to run them (preset `small`, eight
    samples). Points in masks and dropout come from torch's own random state.
    """

    model: SparseOcc

    def __call__(self, images: Tensor, ego2img: Tensor) -> SparseOccOutput:
        """`SparseOcc.forward`."""
        config, rest = self.model.config, self.replay(images, ego2img)
        stages = []
        for index in range(len(config.stages)):
            corners, features, classes, occupancy, *rest = rest
            assert corners is not None and features is not None and classes is not None
            stages.append(StageOutput(corners, config.cell(index) // 2, features, classes, occupancy))
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return SparseOccOutput(stages, [MaskPrediction(classes, masks) for classes, masks in pairs])  # type: ignore[arg-type]

    def passes(self, *inputs: Tensor) -> list[Tensor | None]:
        """Corners, features, classes and occupancy of each stage, then classes and masks of each prediction."""
        output = self.model(*inputs)
        flat: list[Tensor | None] = []
        for stage in output.stages:
            flat += [stage.corners, stage.features, stage.class_logits, stage.occupancy_logits]
        for prediction in output.predictions:
            flat += [prediction.class_logits, prediction.mask_logits]
        return flat
