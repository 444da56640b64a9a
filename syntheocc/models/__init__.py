"""Networks: the MPI encoder, the ControlNet that reads it, the multi-view UNet, and loading of released weights."""

from typing import TYPE_CHECKING

from syntheocc._lazy import lazy_attributes

if TYPE_CHECKING:
    from syntheocc.models.attention import MultiviewTransformerBlock
    from syntheocc.models.controlnet_mpi import MPIControlNetModel
    from syntheocc.models.convert import load_released
    from syntheocc.models.mpi_encoder import MPIEncoder
    from syntheocc.models.neighbors import NeighborLinks, previous_and_next
    from syntheocc.models.presets import tiny_components
    from syntheocc.models.unet_multiview import MultiviewUNet2DConditionModel

__all__ = [
    "MPIControlNetModel",
    "MPIEncoder",
    "MultiviewTransformerBlock",
    "MultiviewUNet2DConditionModel",
    "NeighborLinks",
    "load_released",
    "previous_and_next",
    "tiny_components",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "MPIControlNetModel": "controlnet_mpi",
        "MPIEncoder": "mpi_encoder",
        "MultiviewTransformerBlock": "attention",
        "MultiviewUNet2DConditionModel": "unet_multiview",
        "NeighborLinks": "neighbors",
        "load_released": "convert",
        "previous_and_next": "neighbors",
        "tiny_components": "presets",
    },
)
