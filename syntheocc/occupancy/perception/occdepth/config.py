"""What an OccDepth model is made of: one frozen dataclass that is saved beside the weights."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.view_transform import DepthBins
from syntheocc.occupancy.taxonomy import Taxonomy

__all__ = ["LEGACY", "Lift", "OccDepthConfig", "as_published"]

Lift = Literal["flosp", "flosp_depth"]
Dataset = Literal["semantic_kitti", "nyuv2", "tartanair"]
DepthSpacing = Literal["uniform", "linear", "mismatched"]
Sampling = Literal["bilinear", "nearest"]
ViewFusion = Literal["similarity", "cosine"]
DepthFusion = Literal["residual", "multiply"]
VirtualDepth = Literal["sensor", "predicted"]
VirtualWarp = Literal["centred", "published"]

_STEPS = 4  # the 3D network halves its volume twice


@dataclass(frozen=True, kw_only=True)
class OccDepthConfig:
    """Everything that the network's shape and its losses depend on (specs/occdepth.md 2).

    The defaults of how things are computed are corrected where the published code errs; `as_published` gives a config
    that computes as the released weights were trained.

    Raises:
        ValueError: values that do not fit together, naming them.
    """

    grid: GridSpec
    """The grid that is predicted; a sample's own `origin` says where it begins."""
    taxonomy: Taxonomy
    """The classes that are predicted; free is one of them."""
    dataset: Dataset = "semantic_kitti"
    """Which readers the programs take."""
    project_scale: int = 2
    """Edge of the voxels that image features are lifted to, in voxels of the grid: 1 or 2."""
    axes: tuple[int, int, int] = (0, 1, 2)
    """Order in which the 3D network sees the grid's axes; (0, 2, 1) for the released NYUv2 weights, [x, up, y]."""

    num_views: int = 2
    """Cameras of a sample; 1 is the monocular model."""
    virtual_view: bool = False
    """The second view's features are the first one's, moved by a depth picture that comes with the sample (NYUv2)."""
    virtual_depth: VirtualDepth = "sensor"
    """Whose depth moves the virtual view: a sensor's, as published, which is needed at test time too, or the model's
    own estimate ("predicted"), which needs none."""
    virtual_warp: VirtualWarp = "centred"
    """"published" moves a virtual view's features half a cell too little and by the first sample's depth."""
    image_size: tuple[int, int] = (370, 1220)
    """Height and width of the network's input."""
    image_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    image_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Applied to RGB values 0..255."""

    backbone: str = "efficientnet_b7"
    """A network of `image_encoder.ENCODERS`."""
    decoder_channels: int | None = None
    """Width of the 2D decoder's coarsest level, halved at each finer one; None: that of the encoder's last map."""
    channels: int = 64
    """C: of the 2D feature maps and of the volume."""
    scales: tuple[int, ...] = (1, 2, 4, 8)
    """Strides of the feature maps that are lifted; their volumes are summed."""
    sampling: Sampling = "bilinear"
    """How a voxel's features are read: "nearest" is the published integer pixel."""
    pattern: int = 0
    """Pixels around a voxel's own that are averaged, one of `lifting.PATTERNS`; all published models have 0."""
    view_fusion: ViewFusion = "similarity"
    """"similarity" weighs voxels seen twice by 1 + cos of their features and those seen once by 1; "cosine" is the
    published weight: cos itself, which may be negative, and 1/2."""
    detach_second_view: bool = False
    """No gradient through the second image (published for small cards)."""

    lift: Lift = "flosp_depth"
    """Whether a depth distribution weighs the lifted features (occupancy-aware depth) or not."""
    depth: DepthBins = DepthBins(2.0, 54.0, 0.5)
    """Range of the depth distribution and, for "uniform" spacing, the width of its bins, metres."""
    depth_spacing: DepthSpacing = "uniform"
    """What the bins mean, in the loss and in the lifting alike; "mismatched" is the published mistake: uniform in the
    loss, linearly growing in the lifting."""
    depth_channels: int = 128
    """Inside the depth network."""
    depth_fusion: DepthFusion = "residual"
    """"residual" integrates the distribution over each voxel and adds evidence, so that hidden voxels keep their
    features; "multiply" is the published point sample: features times 100 times the probability."""

    relation_prior: bool = True
    """The context-relation prior at the 3D network's bottleneck."""
    num_relations: int = 4
    """4 as published for SemanticKITTI, or 2 (same class or not)."""
    cascade: bool = True
    """Occupied or free is decided first, and the classes from it."""
    occluded_head: bool = False
    """A third output that learns which voxels are occluded."""

    class_weights: tuple[float, ...] | None = None
    """Of the cross entropy, one a class; None weighs all alike."""
    occupancy_weights: tuple[float, float] | None = None
    """Of the cross entropy of the cascade, free and occupied."""
    frustum_tiles: int = 8
    """The frustum proportion loss cuts an image into as many columns and rows."""
    cross_entropy_loss: bool = True
    sem_scal_loss: bool = True
    geo_scal_loss: bool = True
    frustum_loss: bool = True
    relation_loss: bool = True
    depth_loss_weight: float = 1.0
    """0: the depth distribution learns from the voxels alone."""

    num_frames: ClassVar[int] = 1
    panoptic: ClassVar[bool] = False

    def __post_init__(self):
        for name in ("axes", "image_size", "image_mean", "image_std", "scales", "class_weights", "occupancy_weights"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        self._check_choices()
        self._check_grid()
        for name in ("channels", "depth_channels", "frustum_tiles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(self.image_size) != 2 or any(size < 32 for size in self.image_size):
            raise ValueError(f"image_size must be height and width of at least 32 pixels, got {self.image_size}")
        if self.num_views not in (1, 2):
            raise ValueError(f"num_views must be 1 or 2, got {self.num_views}")
        if self.virtual_view and self.num_views != 2:
            raise ValueError("a virtual view is the second of 2; set num_views to 2")
        if self.virtual_view and self.virtual_depth == "predicted" and self.lift != "flosp_depth":
            raise ValueError("a virtual view by predicted depth needs the depth network; set lift to 'flosp_depth'")
        if not self.scales or set(self.scales) - {1, 2, 4, 8} or len(set(self.scales)) != len(self.scales):
            raise ValueError(f"scales must be some of 1, 2, 4, 8, each once, got {self.scales}")
        if self.decoder_channels is not None and self.decoder_channels < 32:
            raise ValueError(f"decoder_channels is halved five times; it must be at least 32, got {self}")
        if self.depth_loss_weight < 0:
            raise ValueError(f"depth_loss_weight must not be negative, got {self.depth_loss_weight}")
        if self.class_weights is not None and len(self.class_weights) != self.taxonomy.num_classes:
            raise ValueError(
                f"{len(self.class_weights)} class weights for the {self.taxonomy.num_classes} classes of taxonomy "
                f"{self.taxonomy.name!r}"
            )
        if self.occupancy_weights is not None and len(self.occupancy_weights) != 2:
            raise ValueError(f"occupancy_weights are those of free and occupied, got {self.occupancy_weights}")

    def _check_choices(self) -> None:
        choices = {
            "dataset": Dataset,
            "lift": Lift,
            "depth_spacing": DepthSpacing,
            "sampling": Sampling,
            "view_fusion": ViewFusion,
            "depth_fusion": DepthFusion,
            "virtual_depth": VirtualDepth,
            "virtual_warp": VirtualWarp,
        }
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}")
        if not 0 <= self.pattern <= 8:
            raise ValueError(f"pattern must be 0 to 8, got {self.pattern}")
        if self.num_relations not in (2, 4):
            raise ValueError(f"num_relations must be 2 or 4, got {self.num_relations}")

    def _check_grid(self) -> None:
        if sorted(self.axes) != [0, 1, 2]:
            raise ValueError(f"axes is an order of 0, 1 and 2, got {self.axes}")
        if self.project_scale not in (1, 2):
            raise ValueError(f"project_scale must be 1 or 2, got {self.project_scale}")
        if any(number % self.coarse_factor for number in self.grid.shape):
            raise ValueError(
                f"the 3D network halves its volume twice, so the grid's {self.grid.shape} voxels must be multiples of "
                f"{self.coarse_factor}; crop or pad the grid, or change project_scale ({self.project_scale})"
            )
        if self.relation_prior and min(self.coarse_shape) < 2:
            raise ValueError(
                f"a relation prior needs 2 voxels along each axis of its {self.coarse_shape}; leave it out"
            )

    @property
    def coarse_factor(self) -> int:
        """Edge of a voxel at the 3D network's bottleneck, in voxels of the grid: 8 or 4."""
        return _STEPS * self.project_scale

    @property
    def coarse_shape(self) -> tuple[int, int, int]:
        """The bottleneck's voxels, [X, Y, Z] / `coarse_factor`; the relation prior's labels have this shape."""
        x, y, z = (number // self.coarse_factor for number in self.grid.shape)
        return x, y, z

    @property
    def volume_grid(self) -> GridSpec:
        """The grid that image features are lifted to."""
        x, y, z = (number // self.project_scale for number in self.grid.shape)
        a, b, c = (size * self.project_scale for size in self.grid.voxel_size)
        return GridSpec(self.grid.lower, (a, b, c), (x, y, z), self.grid.frame)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "OccDepthConfig":
        """The config that `to_dict` wrote, lists for tuples; ValueError naming keys that are unknown or missing."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"an OccDepth config has no {', '.join(unknown)}; was it written by a newer version?")
        if missing := sorted({"grid", "taxonomy"} - set(values)):
            raise ValueError(f"the OccDepth config lacks {', '.join(missing)}")
        parts = {"grid": GridSpec(**values["grid"]), "taxonomy": Taxonomy(**values["taxonomy"])}
        if "depth" in values:
            parts["depth"] = DepthBins(**values["depth"])
        return cls(**(values | parts))


# How the published code computes, mistakes included (specs/occdepth.md 6).
LEGACY: dict[str, Any] = {
    "sampling": "nearest",
    "view_fusion": "cosine",
    "depth_spacing": "mismatched",
    "depth_fusion": "multiply",
    "virtual_warp": "published",
}


def as_published(config: OccDepthConfig) -> OccDepthConfig:
    """The same network, computing as the released weights were trained."""
    return replace(config, **LEGACY)
