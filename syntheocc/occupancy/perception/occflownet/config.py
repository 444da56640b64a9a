"""What an OccFlowNet is made of and taught by: one frozen dataclass that is saved beside the weights."""

from dataclasses import dataclass
from typing import Literal

from syntheocc.occupancy.perception.volume_config import VolumeConfig
from syntheocc.occupancy.rendering.compositing import DensityForm
from syntheocc.occupancy.rendering.volume import RenderSettings

FlowMode = Literal["warp", "scatter", "filter", "none"]


@dataclass(frozen=True, kw_only=True)
class OccFlowNetConfig(VolumeConfig):
    """Everything that the network's shape, its losses and its answers depend on (specs/occflownet_splattingocc.md 3).

    Raises:
        ValueError: values that do not fit together, naming them.
    """

    flow: FlowMode = "warp"
    """Moving objects in other frames: their samples go back with the boxes ("warp"), voxels are moved with them
    ("scatter", published), voxels of classes that may move are left out ("filter"), or nothing is done ("none")."""
    density: DensityForm = "opacity"
    """What the density head says: "opacity" of a voxel; "sigmoid", 0..1 per metre, is published: a voxel of 0.4 m then
    stops at most a third of a ray."""
    far: float = 40.0
    """Metres along a ray."""
    proposals: int = 50
    samples: int = 100
    """Intervals of a ray, and where it is looked at; see `RenderSettings`."""
    chunk: int = 16384
    """Rays rendered at a time."""
    depth_weight: float = 0.05
    semantic_weight: float = 1.0
    legacy: bool = False
    """Published rendering: volumes are looked up with the grid's faces for voxel centres, and the length of a ray is
    compared with the camera's z."""

    def __post_init__(self):
        super().__post_init__()
        if self.flow not in ("warp", "scatter", "filter", "none"):
            raise ValueError(f"flow must be 'warp', 'scatter', 'filter' or 'none', got {self.flow!r}")
        self.render_settings()  # checks the rest

    def render_settings(self) -> RenderSettings:
        """How rays are rendered."""
        return RenderSettings(
            far=self.far,
            density=self.density,
            proposals=self.proposals,
            samples=self.samples,
            legacy=self.legacy,
            chunk=self.chunk,
        )
