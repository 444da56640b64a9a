"""Volume rendering of occupancy: depth and semantics along rays through voxel volumes, with gradients to the volumes.

OccFlowNet's renderer on metric transmittance, in its published form (``legacy=True``, density "sigmoid") and in the
corrected one (voxel-centred lookup, opacities per voxel length). The RenderOcc form is in `rendering.dvgo`; volumes of
other frames come from `rendering.flow`.

Many rays of several samples go together: they are grouped by volume, so each ray costs the lookups of its own samples
only, and cut into chunks whose intermediate values are computed again in the backward pass. Everything is float32
(float64 where the volumes are), inside autocast too.

Legend: R rays, S samples of a ray, B samples of a batch, C classes, X Y Z voxels.
Specification: specs/occflownet_splattingocc.md 3.3, 3.7.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.losses.rendering import mass_before
from syntheocc.occupancy.ops.volume_rays import RaySamples, volume_rays
from syntheocc.occupancy.ops.volume_render import choose_backend, composite_volume
from syntheocc.occupancy.rendering.compositing import (
    DensityForm,
    DepthForm,
    RenderedRays,
    composite_depth,
    depth_of_sums,
    metric_density,
    weights_from_density,
)
from syntheocc.occupancy.rendering.lookup import nearest_voxel, trilinear, voxel_coordinates
from syntheocc.occupancy.rendering.motion import RayWarp
from syntheocc.occupancy.rendering.pieces import Field, check_rays, fields_of, render_in_pieces
from syntheocc.occupancy.rendering.sampling import edges_around, resample, uniform_edges, voxel_edges

__all__ = ["Field", "RenderSettings", "fields_of", "render_rays"]


@dataclass(frozen=True, kw_only=True)
class RenderSettings:
    """How rays are sampled and composited.

    Raises:
        ValueError: a setting out of range.
    """

    near: float = 0.05
    """Metres along the ray."""
    far: float = 40.0
    density: DensityForm = "opacity"
    """What the volume holds; see `activate_density`."""
    sampling: Literal["importance", "uniform", "exact"] = "importance"
    """"importance": `samples` where `proposals` even intervals stop the ray; "uniform": `samples` even intervals;
    "exact": one interval for each voxel on the way, whose value is the voxel's own."""
    proposals: int = 50
    samples: int = 100
    depth: DepthForm = "sum"
    """See `composite_depth`."""
    legacy: bool = False
    """The published lookup, shifted by up to half a voxel (V6)."""
    chunk: int = 16384
    """Rays at a time."""
    backend: str | None = None
    """Of `composite_volume`; "triton" renders rays of objects that stand still in one kernel (`volume_rays`); None
    takes the fastest."""

    def __post_init__(self):
        if not 0 <= self.near < self.far:
            raise ValueError(f"rays go from near to far, 0 <= near < far; got {self.near} and {self.far} metres")
        for name in ("proposals", "samples", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        choices = {
            "density": ("sigmoid", "softplus", "opacity"),
            "sampling": ("importance", "uniform", "exact"),
            "depth": ("sum", "normalised", "residual"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        if self.legacy and self.sampling == "exact":
            raise ValueError(
                "the exact intervals lie between voxels; the legacy lookup knows none. Choose one of both"
            )

    @property
    def intervals(self) -> int:
        """Even intervals that a ray is first cut into."""
        return self.proposals if self.sampling == "importance" else self.samples


def render_rays(
    fields: Sequence[Field],
    index: Tensor,  # [R]
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    spec: GridSpec,
    settings: RenderSettings | None = None,
    warp: RayWarp | None = None,
    jitter: Tensor | None = None,  # [R, settings.intervals - 1]
    front_limits: Tensor | None = None,  # [R]
    keep_samples: bool = False,
) -> RenderedRays:
    """Renders rays, each through a field of its choice.

    Args:
        fields: the volumes; those of a batch come from `fields_of`.
        index: int64, the field of each ray.
        origins: metres in the grid's frame; may lie outside the grid.
        directions: unit vectors.
        spec: where the voxels lie.
        settings: `RenderSettings()` if None.
        warp: where samples are looked up instead (objects that moved), a row a ray.
        jitter: moves the even intervals' edges (`ray_jitter`, training). None: samples are the same every time
            (evaluation). Exact intervals have none.
        front_limits: metres; for `RenderedRays.front`, the free-space loss.
        keep_samples: also return weights, midpoints and lengths of the samples (distortion loss).

    Returns:
        results in the order of the rays. No gradient goes to where samples lie.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.

    Example:
        >>> spec = GridSpec(lower=(0.0, 0.0, 0.0), voxel_size=1.0, shape=(4, 1, 1))
        >>> opacity = torch.zeros(1, 4, 1, 1)
        >>> opacity[0, 2] = 1.0
        >>> at, along = torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
        >>> exact = RenderSettings(sampling="exact")
        >>> seen = render_rays(fields_of(opacity, opacity[..., None]), torch.tensor([0]), at, along, spec, exact)
        >>> round(float(seen.depth), 3)
        2.0
    """
    settings = settings or RenderSettings()
    rows = {"front_limits": front_limits, "warp": None if warp is None else warp.enter}
    check_rays(fields, index, origins, directions, spec, rows)
    if jitter is not None and tuple(jitter.shape) != (len(index), settings.intervals - 1):
        raise ValueError(
            f"jitter must be {(len(index), settings.intervals - 1)}, a number for each inner edge, got "
            f"{tuple(jitter.shape)}"
        )
    origins, directions = origins.detach(), directions.detach()

    def piece(field: Field, rays: Tensor) -> Callable[[Tensor, Tensor], RenderedRays]:
        dtype = field.density.dtype
        start, way = origins[rays].to(dtype), directions[rays].to(dtype)
        edges = None
        if settings.sampling != "exact":
            noise = None if jitter is None else jitter[rays]
            near, far = settings.near, settings.far
            edges = uniform_edges(len(rays), near, far, settings.intervals, start.device, dtype, noise)
        part = _Piece(field, start, way, spec, settings, None if warp is None else warp.select(rays))
        places = part.places(edges)
        limits = None if front_limits is None else front_limits[rays].to(dtype)
        return lambda density, semantics: part.render(density, semantics, *places, limits, keep_samples)

    # Without the values of all samples there is little to save by computing them again.
    lean = (settings.backend or choose_backend(fields[0].semantics)) == "triton"
    return render_in_pieces(fields, index, settings.chunk, piece, front_limits is not None, keep_samples, not lean)


class _Lookup(NamedTuple):
    """Voxel coordinates [r, S, 3] of samples and, where objects move, of where they were; see `RayWarp.apply`."""

    at: Tensor
    source: Tensor | None = None
    moved: Tensor = torch.zeros(())
    left: Tensor = torch.zeros(())


@dataclass(eq=False)
class _Piece:
    """A chunk of rays through one field."""

    field: Field
    origins: Tensor
    directions: Tensor
    spec: GridSpec
    settings: RenderSettings
    warp: RayWarp | None

    @property
    def voxel_size(self) -> float:
        """Metres that an opacity is for."""
        return sum(self.spec.voxel_size) / 3

    def lookup(self, distances: Tensor) -> "_Lookup":
        """Where the field is looked at for points at distances [r, S]."""
        points = self.origins[:, None] + self.directions[:, None] * distances[..., None]
        at = voxel_coordinates(points, self.spec, self.settings.legacy)
        if self.warp is None:
            return _Lookup(at)
        source, moved, left = self.warp.apply(points, distances)
        return _Lookup(at, voxel_coordinates(source, self.spec, self.settings.legacy), moved, left)

    def density_at(self, volume: Tensor, where: "_Lookup") -> tuple[Tensor, Tensor]:
        """Density in 1 / metre [r, S], and the voxel coordinates [r, S, 3] that it is from."""
        values, at = self.read(volume, where.at), where.at
        if where.source is not None:
            stays = self.field.stays
            # Voxels are taken away and moved, not samples: objects keep the half voxel by which they fade out.
            rest = 0.0 if stays is None else self.read(volume * stays, at)
            values = torch.where(where.left, rest, values)
            body = self.read(volume if stays is None else volume * ~stays, where.source)
            moved = where.moved if stays is None else where.moved & (body >= values)
            values, at = torch.where(moved, body, values), torch.where(moved[..., None], where.source, at)
        return metric_density(values, self.settings.density, self.voxel_size), at

    def read(self, volume: Tensor, at: Tensor) -> Tensor:
        """Values at voxel coordinates: of the voxel itself between voxel crossings, interpolated otherwise."""
        return nearest_voxel(volume, at) if self.settings.sampling == "exact" else trilinear(volume, at)

    @torch.no_grad()
    def places(self, edges: Tensor | None) -> tuple[Tensor, Tensor]:
        """Distances [r, S] at which the field is looked at, and the edges [r, S + 1] of their intervals."""
        settings = self.settings
        if edges is None:
            edges = voxel_edges(self.origins, self.directions, self.spec, settings.near, settings.far)
        middle = (edges[:, 1:] + edges[:, :-1]) / 2
        if settings.sampling != "importance":
            return middle, edges
        density, _ = self.density_at(self.field.density, self.lookup(middle))
        samples = resample(edges, density, settings.samples)
        return samples, edges_around(samples, settings.near, settings.far)

    def render(
        self, density: Tensor, semantics: Tensor, at: Tensor, edges: Tensor, limits: Tensor | None, keep: bool
    ) -> RenderedRays:
        """Looks up and composites; called once more in the backward pass where rays come in chunks."""
        settings, exact = self.settings, self.settings.sampling == "exact"
        with torch.no_grad():
            where = self.lookup(at)
            lengths, middle = edges.diff(dim=1), (edges[:, 1:] + edges[:, :-1]) / 2
        backend = settings.backend or choose_backend(semantics)
        if backend == "triton" and where.source is None and not keep:
            samples = RaySamples(where.at, lengths, middle, middle.new_zeros(len(at)) if limits is None else limits)
            size = self.voxel_size if settings.density == "opacity" else 0.0
            stops, classes = volume_rays(density, semantics, samples, size, exact, backend)
            weight_sum, depth, front = stops.unbind(1)
            depth = depth_of_sums(depth, weight_sum, settings.depth, settings.far)
            return RenderedRays(weight_sum, depth, classes, None if limits is None else front)
        values, coordinates = self.density_at(density, where)
        weights = weights_from_density(values, lengths)
        return RenderedRays(
            weight_sum=weights.sum(1),
            depth=composite_depth(weights, middle, settings.depth, settings.far),
            semantics=composite_volume(semantics, coordinates, weights, exact, backend),
            front=None if limits is None else mass_before(weights, middle, limits),
            sample_weights=weights if keep else None,
            midpoints=middle if keep else None,
            lengths=lengths if keep else None,
        )
