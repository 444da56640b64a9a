"""What a SparseOcc model is made of: one frozen dataclass that is saved beside the weights."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.taxonomy import Taxonomy

CHILDREN = 8  # a voxel splits into two along each axis


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One coarse-to-fine stage of the sparse voxel decoder.

    Raises:
        ValueError: a number that is not positive.
    """

    points: int
    """Points sampled around each voxel, for each group of channels."""
    out_points: int
    """Rows that the adaptive mixing makes of the sampled points."""
    keep_train: int
    """Voxels kept after the split while training; more than at test time lets the mask losses see what is left out."""
    keep_test: int
    """Voxels kept after the split at test time."""
    self_attention: bool = True
    """Whether the voxels attend to one another before they look at the images."""

    def __post_init__(self):
        for name in ("points", "out_points", "keep_train", "keep_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"a stage's {name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class SparseOccConfig:
    """Everything that the network's shape and its losses depend on (specs/sparseocc.md 2).

    Raises:
        ValueError: values that do not fit together, naming them.
    """

    grid: GridSpec
    """The grid that is predicted; it lies in the ego frame unless its ``frame`` says otherwise."""
    taxonomy: Taxonomy
    """The classes that are predicted; free is one of them."""
    instance_classes: tuple[int, ...] = ()
    """Labels whose voxels form one segment an object (things); every other class is one segment. Empty: semantics."""
    class_frequencies: tuple[float, ...] | None = None
    """Voxel count of each class in the training set, for the weights of the cross entropy; None weighs all alike."""

    num_frames: int = 8
    """Images a camera, the current one first, then ever older ones."""
    image_size: tuple[int, int] = (256, 704)
    """Height and width of the network's input."""
    image_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    image_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Applied to RGB values 0..255."""

    backbone: str = "resnet50"
    """A network that `syntheocc.occupancy.perception.backbones` builds."""
    frozen_stages: int | None = None
    """Stages of a pretrained backbone that do not train (0: the stem alone), batch statistics neither; None: all
    train, as they must from random weights."""
    embed_dims: int = 256
    num_levels: int = 4
    """Feature maps of the image neck: strides 4, 8, 16, 32."""
    num_groups: int = 4
    """Groups of channels that are sampled at points of their own."""
    num_heads: int = 8
    feedforward_dims: int = 512
    dropout: float = 0.1

    stages: tuple[StageConfig, ...] = ()
    """From the coarsest grid to the full one; each halves the voxel."""
    num_queries: int = 100
    mask_points: int = 4
    mask_out_points: int = 128
    mask_iterations: int = 2
    """How often the one mask decoder layer is applied."""

    version: Literal["1.0", "1.1"] = "1.1"
    """The published model: 1.1 scores all classes at once, 1.0 has a head for occupancy and one for the classes."""
    legacy: bool = False
    """Compute as the released weights were trained: scale weights of one group a frame, mask points at voxel corners,
    unseen voxels as background of the masks and of the Lovasz loss."""

    score_threshold: float = 0.3
    """Queries below it take no part in the prediction."""
    voxel_threshold: float = 0.01
    """A voxel whose best class scores less is free (semantics)."""
    overlap_threshold: float = 0.8
    """A segment that keeps less of its own mask is dropped (panoptic)."""

    def __post_init__(self):
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "instance_classes", tuple(self.instance_classes))
        object.__setattr__(self, "image_size", tuple(self.image_size))
        if self.class_frequencies is not None:
            object.__setattr__(self, "class_frequencies", tuple(self.class_frequencies))
            if len(self.class_frequencies) != self.taxonomy.num_classes:
                raise ValueError(
                    f"{len(self.class_frequencies)} class frequencies for the {self.taxonomy.num_classes} classes of "
                    f"taxonomy {self.taxonomy.name!r}"
                )
        if not self.stages:
            raise ValueError("a voxel decoder needs at least one stage")
        if self.version not in ("1.0", "1.1"):
            raise ValueError(f"version must be '1.0' or '1.1', got {self.version!r}")
        for name in ("num_groups", "num_heads"):
            if getattr(self, name) < 1 or self.embed_dims % getattr(self, name):
                raise ValueError(f"embed_dims {self.embed_dims} is not a multiple of {name} {getattr(self, name)}")
        for name in ("num_frames", "num_levels", "num_queries", "mask_points", "mask_out_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.mask_iterations < 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"mask_iterations {self.mask_iterations} or dropout {self.dropout} is out of range")
        bad = [c for c in self.instance_classes if not 0 <= c < self.taxonomy.num_classes or c == self.taxonomy.free]
        if bad:
            raise ValueError(f"instance_classes {bad} are no occupied classes of taxonomy {self.taxonomy.name!r}")

    @property
    def panoptic(self) -> bool:
        """Whether objects are told apart."""
        return bool(self.instance_classes)

    @property
    def occupied_classes(self) -> tuple[int, ...]:
        """Labels of all classes but free, ascending: what the mask classifier's outputs mean."""
        return tuple(c for c in range(self.taxonomy.num_classes) if c != self.taxonomy.free)

    def cell(self, stage: int) -> int:
        """Edge of a voxel before the split of a stage, in full-resolution voxels (8, 4, 2 with three stages)."""
        return 2 ** (len(self.stages) - stage)

    def coarse_shape(self) -> tuple[int, int, int]:
        """The first stage's grid; it reaches over the border where the full grid is not a multiple of its cell."""
        x, y, z = (-(-n // self.cell(0)) for n in self.grid.shape)
        return x, y, z

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SparseOccConfig":
        """The config that `to_dict` wrote, lists for tuples; ValueError naming keys that are unknown or missing."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"a SparseOcc config has no {', '.join(unknown)}; was it written by a newer version?")
        if missing := sorted({"grid", "taxonomy", "stages"} - set(values)):
            raise ValueError(f"the SparseOcc config lacks {', '.join(missing)}")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(
            **{
                **values,
                "grid": GridSpec(**values["grid"]),
                "taxonomy": Taxonomy(**values["taxonomy"]),
                "stages": tuple(StageConfig(**stage) for stage in values["stages"]),
            }
        )
