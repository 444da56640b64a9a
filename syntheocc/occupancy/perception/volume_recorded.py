"""Models that are taught by rendering, with their networks recorded as CUDA graphs while they train."""

from torch import Tensor

from syntheocc.engine.recorded import RecordedModel
from syntheocc.occupancy.perception.trunk import TrunkGeometry
from syntheocc.occupancy.perception.view_transform import LiftCameras
from syntheocc.occupancy.perception.volume_model import VolumeModel, VolumeOutput

__all__ = ["RecordedVolumeModel"]


class RecordedVolumeModel(RecordedModel):
    """`VolumeModel` in training, trunk and heads recorded; see `RecordedModel`.

    Rays, whose number changes from step to step, and cameras' inverses, which wait for the device, stay outside.
    """

    model: VolumeModel

    def __call__(self, images: Tensor, cameras: LiftCameras) -> VolumeOutput:
        """`VolumeModel.forward`."""
        raw, logits, depth_logits, extras = self.replay(images, *self.model.trunk.geometry(cameras))
        assert raw is not None and logits is not None and depth_logits is not None
        return VolumeOutput(raw, logits, depth_logits, extras)

    def passes(self, *inputs: Tensor) -> list[Tensor | None]:
        """Raw densities, class logits, depth logits and the heads' extra numbers."""
        images, *geometry = inputs
        output = self.model(images, TrunkGeometry(*geometry))
        return [output.raw, output.logits, output.depth_logits, output.extras]
