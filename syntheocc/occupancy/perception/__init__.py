"""Perception models: occupancy from images."""

from typing import TYPE_CHECKING

from syntheocc._lazy import lazy_attributes

_EXPORTS = {
    "OccDepth": "occdepth",
    "OccFlowNet": "occflownet",
    "RenderOcc": "splattingocc",
    "SparseOcc": "sparseocc",
    "SplattingOcc": "splattingocc",
}
__all__ = ["OccDepth", "OccFlowNet", "RenderOcc", "SparseOcc", "SplattingOcc"]
__getattr__, __dir__ = lazy_attributes(__name__, _EXPORTS)

if TYPE_CHECKING:
    from syntheocc.occupancy.perception.occdepth import OccDepth
    from syntheocc.occupancy.perception.occflownet import OccFlowNet
    from syntheocc.occupancy.perception.sparseocc import SparseOcc
    from syntheocc.occupancy.perception.splattingocc import RenderOcc, SplattingOcc
