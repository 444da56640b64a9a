"""What SplattingOcc and RenderOcc are made of and taught by: frozen dataclasses that are saved beside the weights."""

from dataclasses import dataclass

from syntheocc.occupancy.perception.volume_config import VolumeConfig
from syntheocc.occupancy.rendering.dvgo import DvgoSettings
from syntheocc.occupancy.rendering.gaussian import SplatSettings


@dataclass(frozen=True, kw_only=True)
class SplattingOccConfig(VolumeConfig):
    """SplattingOcc in the corrected design of specs/occflownet_splattingocc.md 4.2.

    Raises:
        ValueError: values that do not fit together, naming them.
    """

    splats: SplatSettings = SplatSettings()
    """How voxels become Gaussians and Gaussians are seen."""
    learn_scale: bool = False
    learn_offset: bool = False
    """Of each Gaussian; otherwise all have `splats.scale` and sit at the voxels' centres."""
    flow: bool = True
    """Gaussians of a box's class move with it to the rays' frames."""
    semantic_weight: float = 1.0
    depth_weight: float = 1.0
    hit_weight: float = 1.0
    """Every ray with a lidar return was stopped by something."""
    free_weight: float = 0.5
    """Of what stops a ray more than `free_margin` metres before its return."""
    free_margin: float = 0.8
    entropy_weight: float = 0.01
    """Of the opacities of all voxels."""
    neighbour_weight: float = 0.3
    """Of other frames' rays against those of the key frame."""
    max_depth: float = 52.0
    """Metres; returns beyond it teach no depth."""

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.splats, dict):
            object.__setattr__(self, "splats", SplatSettings(**self.splats))
        if self.heads.extras != self.extras:
            raise ValueError(
                f"learn_scale {self.learn_scale} and learn_offset {self.learn_offset} need heads with {self.extras} "
                f"extras, not {self.heads.extras}"
            )
        if self.splats.response != "ray":
            raise ValueError("training looks along rays: splats.response must be 'ray', 'ewa' paints images")

    @property
    def reach(self) -> float:
        """Metres that a voxel's Gaussian can be met above the voxel: where it answers by a twenty-third.

        Of `splats.scale`, the size that learnt ones begin with: larger ones are in the way of rays before it.
        """
        return max(0.0, 2.5 * self.splats.scale - self.grid.voxel_size[2] / 2)

    @property
    def extras(self) -> int:
        """How many numbers a voxel are learnt besides opacity and classes."""
        return int(self.learn_scale) + 3 * int(self.learn_offset)


@dataclass(frozen=True, kw_only=True)
class RenderOccConfig(VolumeConfig):
    """RenderOcc, SplattingOcc's baseline (specs/occflownet_splattingocc.md 4.0).

    Raises:
        ValueError: values that do not fit together, naming them.
    """

    render: DvgoSettings = DvgoSettings()
    """How rays are rendered; `legacy` is the published geometry and depth."""
    semantic_weight: float = 1.0
    depth_weight: float = 1.0
    entropy_weight: float = 0.01
    """Of what is left of each ray: all or nothing."""
    distortion_weight: float = 0.01
    neighbour_weight: float = 0.3
    """How likely rays of other frames are drawn against those of the key frame."""
    max_depth: float = 52.0

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.render, dict):
            object.__setattr__(self, "render", DvgoSettings(**self.render))
