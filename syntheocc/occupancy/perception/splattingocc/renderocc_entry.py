"""RenderOcc as the programs see it."""

from syntheocc.occupancy.perception.splattingocc.model import RenderOcc
from syntheocc.occupancy.perception.splattingocc.presets import RENDEROCC_PRESETS
from syntheocc.occupancy.perception.splattingocc.step import RenderOccStep
from syntheocc.occupancy.perception.volume_entry import VolumeEntry


class RenderOccEntry(VolumeEntry):
    """Taught by rendering volumes in DVGO's form."""

    name = "renderocc"
    model_class = RenderOcc
    presets = RENDEROCC_PRESETS
    default_preset = "renderocc_7frame_small"
    step_class = RenderOccStep


ENTRY = RenderOccEntry()
