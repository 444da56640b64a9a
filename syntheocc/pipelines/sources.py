"""Where the condition of a frame comes from: a grid that is rendered, or an MPI that was rendered before.

V views, D planes, h w latent size, K neighbours of a view.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.rendering.mpi import PlaneSpec, SemanticMPI, render_mpi
from syntheocc.occupancy.taxonomy import TAXONOMIES, Taxonomy


@dataclass(frozen=True)
class ConditionSpec:
    """What a condition must look like for one ControlNet; read from its config.

    Attributes:
        planes: where the planes lie.
        pixel_origin: "center" or "corner".
        samples_per_cell: rays a latent pixel.
        taxonomy_name: of the class table.
        taxonomy: the table, None for one that this package does not know: a grid must then bring one of that name.
        num_classes: number of ids of that table, free included.
        free: its free id.
    """

    planes: PlaneSpec
    pixel_origin: str
    samples_per_cell: int
    taxonomy_name: str
    taxonomy: Taxonomy | None
    num_classes: int
    free: int

    def reads(self, taxonomy: Taxonomy) -> bool:
        """Whether labels of `taxonomy` mean to the ControlNet what they say: same name, number of ids and free id."""
        own = (self.taxonomy_name, self.num_classes, self.free)
        return own == (taxonomy.name, taxonomy.num_classes, taxonomy.free)


def condition_spec(controlnet: Any) -> ConditionSpec:
    """Read the spec from an `MPIControlNetModel`."""
    config = controlnet.config
    return ConditionSpec(
        planes=controlnet.plane_spec,
        pixel_origin=config.pixel_origin,
        samples_per_cell=config.samples_per_cell,
        taxonomy_name=config.taxonomy,
        taxonomy=TAXONOMIES.get(config.taxonomy),
        num_classes=config.num_classes,
        free=config.free_class,
    )


class Source(Protocol):
    """Condition of one frame."""

    @property
    def view_names(self) -> tuple[str, ...]:
        """Camera names in view order."""

    def check(self, spec: ConditionSpec, height: int, width: int) -> None:
        """Raise ValueError, with the remedy, for what rendering or encoding would trip over. Sizes of the latents."""

    def render(self, spec: ConditionSpec, height: int, width: int, device: torch.device) -> SemanticMPI:
        """The MPI `[V, D, h, w]` on `device`, as the spec wants it."""

    def neighbors(self, num: int = 2) -> Tensor:
        """`[V, K]` long with K <= num, -1 where a view has fewer."""


@dataclass(frozen=True)
class GridSource:
    """A grid seen by a rig."""

    grid: OccupancyGrid
    rig: CameraRig

    @property
    def view_names(self) -> tuple[str, ...]:
        """Camera names in view order."""
        return tuple(self.rig.names)

    def check(self, spec: ConditionSpec, height: int, width: int) -> None:
        """Raise ValueError when the grid's taxonomy cannot be mapped to the ControlNet's."""
        if spec.taxonomy is not None:
            self.grid.taxonomy.mapping_to(spec.taxonomy)
        elif not spec.reads(self.grid.taxonomy):
            raise ValueError(
                f"the ControlNet's taxonomy {spec.taxonomy_name!r} is not one of {sorted(TAXONOMIES)}: give a grid "
                f"with exactly that taxonomy, {spec.num_classes} ids and {spec.free} free, not "
                f"{_describe(self.grid.taxonomy)}"
            )

    def render(self, spec: ConditionSpec, height: int, width: int, device: torch.device) -> SemanticMPI:
        """The MPI `[V, D, h, w]`, labels mapped to the spec's taxonomy."""
        return render_mpi(
            self.grid.to(device),
            self.rig,
            height,
            width,
            planes=spec.planes,
            pixel_origin=spec.pixel_origin,
            samples_per_cell=spec.samples_per_cell,
            taxonomy=spec.taxonomy,
        )

    def neighbors(self, num: int = 2) -> Tensor:
        """From the rig's geometry."""
        return _without_padding(self.rig.neighbors(num))


@dataclass(frozen=True)
class MPISource:
    """An MPI rendered before; a rig, where given, only tells the neighbours."""

    mpi: SemanticMPI
    rig: CameraRig | None

    @property
    def view_names(self) -> tuple[str, ...]:
        """Camera names in view order."""
        return tuple(self.mpi.names)

    def check(self, spec: ConditionSpec, height: int, width: int) -> None:
        """Raise ValueError when the MPI is not what the ControlNet was trained on, or the rig another one."""
        mpi, size = self.mpi, tuple(self.mpi.nearest.shape[-2:])
        if size != (height, width):
            raise ValueError(
                f"the MPI is {size[0]}x{size[1]} but the latents are {height}x{width}: leave height and width out, or "
                f"render it with render_mpi(grid, rig, {height}, {width}, ...)"
            )
        if mpi.planes != spec.planes:
            raise ValueError(
                f"the MPI has {mpi.planes}, the ControlNet reads {spec.planes}; render it with planes= the latter"
            )
        if mpi.pixel_origin != spec.pixel_origin:
            raise ValueError(
                f"the MPI was sampled with pixel_origin={mpi.pixel_origin!r}, the ControlNet reads "
                f"{spec.pixel_origin!r}; render it with that"
            )
        if not spec.reads(mpi.taxonomy):
            raise ValueError(
                f"the MPI's taxonomy is {_describe(mpi.taxonomy)}, the ControlNet reads {spec.taxonomy_name!r} "
                f"of {spec.num_classes} ids with {spec.free} free; render it with that (see taxonomy_named), "
                "or pass occupancy= and cameras= instead"
            )
        highest = max(int(mpi.labels.max()), int(mpi.nearest.max()))
        if highest >= mpi.taxonomy.num_classes:
            raise ValueError(
                f"the MPI has class id {highest}, its taxonomy {mpi.taxonomy.name!r} 0..{mpi.taxonomy.num_classes - 1}"
                f"; unknown cells (255) must be free, {mpi.taxonomy.free}, as render_mpi makes them"
            )
        if self.rig is not None and tuple(self.rig.names) != self.view_names:
            raise ValueError(f"the MPI's cameras are {self.view_names}, the rig's {self.rig.names}: give one rig")

    def render(self, spec: ConditionSpec, height: int, width: int, device: torch.device) -> SemanticMPI:
        """The MPI as it is, on `device`."""
        return self.mpi.to(device)

    def neighbors(self, num: int = 2) -> Tensor:
        """From the rig, or a ring over the order of the views."""
        table = ring_neighbors(len(self.view_names)) if self.rig is None else self.rig.neighbors(num)
        return _without_padding(table)


def ring_neighbors(num_views: int) -> Tensor:
    """`[V, 2]`: view i sees i-1 and i+1, around the ring; -1 where a rig of one or two cameras has fewer.

    The order of the six nuScenes cameras (`NUSCENES_CAMERAS`) is such a ring.
    """
    if num_views == 1:
        return torch.full((1, 2), -1)
    views = torch.arange(num_views)
    table = torch.stack([(views - 1) % num_views, (views + 1) % num_views], dim=1)
    if num_views == 2:
        table[:, 1] = -1
    return table


def _describe(taxonomy: Taxonomy) -> str:
    return f"{taxonomy.name!r} of {taxonomy.num_classes} ids with {taxonomy.free} free"


def _without_padding(table: Tensor) -> Tensor:
    """Drop columns of padding: each costs a whole attention and changes nothing. A single camera has none left."""
    return table[:, (table >= 0).any(dim=0)]
