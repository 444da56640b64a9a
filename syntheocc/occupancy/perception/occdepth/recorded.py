"""OccDepth with its networks recorded as CUDA graphs while it trains."""

import torch
from torch import Tensor

from syntheocc.engine.recorded import RecordedModel
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras
from syntheocc.occupancy.perception.occdepth.model import OccDepth, OccDepthOutput

__all__ = ["RecordedTraining"]


class RecordedTraining(RecordedModel):
    """`OccDepth` in training, recorded; see `RecordedModel`. Answers are those of `acceleration.RecordedOccDepth`.

    Raises:
        ValueError: a model that makes its second view: that inverts matrices and waits for the device.
    """

    model: OccDepth

    def __init__(self, model: OccDepth, dtype: torch.dtype | None = None):
        if model.config.virtual_view:
            raise ValueError("a model with a virtual second view cannot be recorded: its cameras' inverses wait")
        super().__init__(model, dtype)

    def __call__(self, images: Tensor, cameras: StereoCameras) -> OccDepthOutput:
        """`OccDepth.forward`."""
        logits, *others = self.replay(images, cameras.velo2img, cameras.intrinsics, cameras.origin)
        assert logits is not None
        return OccDepthOutput(logits, *others)

    def passes(self, *inputs: Tensor) -> list[Tensor | None]:
        """The fields of `OccDepthOutput`, in order."""
        images, *cameras = inputs
        return list(self.model(images, StereoCameras(*cameras)))
