"""SplattingOcc as the programs see it."""

from syntheocc.occupancy.perception.splattingocc.model import SplattingOcc
from syntheocc.occupancy.perception.splattingocc.presets import SPLATTINGOCC_PRESETS
from syntheocc.occupancy.perception.splattingocc.step import SplattingOccStep
from syntheocc.occupancy.perception.volume_entry import VolumeEntry


class SplattingOccEntry(VolumeEntry):
    """Taught by splatting Gaussians."""

    name = "splattingocc"
    model_class = SplattingOcc
    presets = SPLATTINGOCC_PRESETS
    default_preset = "splattingocc_small"
    step_class = SplattingOccStep


ENTRY = SplattingOccEntry()
