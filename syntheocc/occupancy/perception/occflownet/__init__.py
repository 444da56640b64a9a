"""OccFlowNet (Boeder et al., WACV 2025): occupancy from cameras, taught by rendering lidar points."""

from syntheocc.occupancy.perception.occflownet.config import OccFlowNetConfig
from syntheocc.occupancy.perception.occflownet.model import OccFlowNet
from syntheocc.occupancy.perception.occflownet.presets import PRESETS

__all__ = ["PRESETS", "OccFlowNet", "OccFlowNetConfig"]
