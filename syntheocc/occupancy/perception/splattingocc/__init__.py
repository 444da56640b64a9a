"""SplattingOcc: occupancy from cameras, taught by splatting Gaussians; and RenderOcc (Pan et al., ICRA 2024)."""

from syntheocc.occupancy.perception.splattingocc.config import RenderOccConfig, SplattingOccConfig
from syntheocc.occupancy.perception.splattingocc.model import RenderOcc, SplattingOcc
from syntheocc.occupancy.perception.splattingocc.presets import RENDEROCC_PRESETS, SPLATTINGOCC_PRESETS

__all__ = [
    "RENDEROCC_PRESETS",
    "SPLATTINGOCC_PRESETS",
    "RenderOcc",
    "RenderOccConfig",
    "SplattingOcc",
    "SplattingOccConfig",
]
