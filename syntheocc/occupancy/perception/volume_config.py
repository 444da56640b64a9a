"""What the models that are taught by rendering have in common: trunk, heads, classes, and how a voxel is decided."""

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.trunk import TrunkConfig
from syntheocc.occupancy.perception.view_transform import DepthBins
from syntheocc.occupancy.perception.volume_heads import HeadConfig
from syntheocc.occupancy.taxonomy import Taxonomy

__all__ = ["VolumeConfig"]


@dataclass(frozen=True, kw_only=True)
class VolumeConfig:
    """Everything that a model's network, its losses and its answers depend on; saved beside the weights.

    Raises:
        ValueError: values that do not fit together, naming them.
    """

    trunk: TrunkConfig
    heads: HeadConfig
    taxonomy: Taxonomy
    """The classes that are predicted; the last one is free, as in Occ3D."""
    threshold: float
    """A voxel is occupied where its density (`VolumeModel.density`) is above this, and free elsewhere. It is fixed:
    stored with the weights, never chosen on what is evaluated."""
    rays_per_sample: int = 8192
    """Rays of a training step; from a sample with more, so many are drawn."""
    image_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    image_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Applied to RGB values 0..255."""
    bgr: bool = False
    """Reverse the channels and normalise them by the unreversed means; the published weights want it."""

    lss_depth_weight: float = 0.05
    """Of the loss of the trunk's depth distributions against the lidar's depth."""
    voxel_weight: float = 0.0
    """Of the losses on labelled voxels; 0: no 3D labels are used."""
    ray_weight: float = 1.0
    """Of the losses on rendered rays; 0: no 2D labels are used (the 3D-supervised trunk)."""

    voxel_surfaces: bool = True
    """A ray may be stopped anywhere in the voxel of its point, on level ground anywhere in its layer, and what is in
    front counts from there (`rendering.surfaces`); otherwise at the point itself, which the true occupancy does not.
    The published depths (`legacy`) know points only."""

    panoptic: ClassVar[bool] = False

    def __post_init__(self):
        for name in ("image_mean", "image_std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.taxonomy.free != self.taxonomy.num_classes - 1:
            raise ValueError(
                f"the last class of taxonomy {self.taxonomy.name!r} must be free, not {self.taxonomy.classes[-1]!r}; "
                "these models predict Occ3D's classes"
            )
        if self.rays_per_sample < 1:
            raise ValueError(f"rays_per_sample must be at least 1, got {self.rays_per_sample}")
        for name in ("lss_depth_weight", "voxel_weight", "ray_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def grid(self) -> GridSpec:
        """The grid that is predicted."""
        return self.trunk.grid

    @property
    def num_frames(self) -> int:
        """Images a camera, the current one first."""
        return self.trunk.num_frames

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.trunk.image_size

    @property
    def occupied_classes(self) -> int:
        """K: how many classes there are without free."""
        return self.taxonomy.num_classes - 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The config that `to_dict` wrote, lists for tuples; ValueError naming keys that are unknown or missing."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"a {cls.__name__} has no {', '.join(unknown)}; was it written by a newer version?")
        if missing := sorted({"trunk", "heads", "taxonomy", "threshold"} - set(values)):
            raise ValueError(f"the {cls.__name__} lacks {', '.join(missing)}")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        trunk = dict(values["trunk"])
        trunk |= {"grid": GridSpec(**trunk["grid"]), "depth": DepthBins(**trunk["depth"])}
        parts = {
            "trunk": TrunkConfig(**trunk),
            "heads": HeadConfig(**values["heads"]),
            "taxonomy": Taxonomy(**values["taxonomy"]),
        }
        return cls(**(values | parts))
