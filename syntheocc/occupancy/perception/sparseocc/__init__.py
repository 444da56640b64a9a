"""SparseOcc (Liu et al., ECCV 2024): fully sparse occupancy and panoptic occupancy from cameras."""

from syntheocc.occupancy.perception.prediction import OccupancyPrediction
from syntheocc.occupancy.perception.sparseocc.config import SparseOccConfig, StageConfig
from syntheocc.occupancy.perception.sparseocc.model import SparseOcc, SparseOccOutput
from syntheocc.occupancy.perception.sparseocc.presets import PRESETS, SparseOccPreset, SparseOccRecipe, preset

__all__ = [
    "PRESETS",
    "OccupancyPrediction",
    "SparseOcc",
    "SparseOccConfig",
    "SparseOccOutput",
    "SparseOccPreset",
    "StageConfig",
    "SparseOccRecipe",
    "preset",
]
