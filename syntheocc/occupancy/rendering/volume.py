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
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.losses.rendering import mass_before
from syntheocc.occupancy.rendering.compositing import (
    DensityForm,
    DepthForm,
    RenderedRays,
    composite_depth,
    metric_density,
    weights_from_density,
)
from syntheocc.occupancy.rendering.lookup import nearest, trilinear, voxel_coordinates
from syntheocc.occupancy.rendering.motion import RayWarp
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


@dataclass(eq=False)
class Field:
    """A volume that rays are rendered through.

    Args:
        density: [X, Y, Z] activated, see `RenderSettings.density`.
        semantics: [X, Y, Z, C] what is composited, logits in general.
        classes: int64 [X, Y, Z] class of each voxel, for samples that are warped by class (`rendering.motion`).
        stays: bool [X, Y, Z] voxels of classes that do not move, likewise.
    """

    density: Tensor
    semantics: Tensor
    classes: Tensor | None = None
    stays: Tensor | None = None


def fields_of(density: Tensor, semantics: Tensor) -> list[Field]:
    """The volumes of a batch, density [B, X, Y, Z] and semantics [B, X, Y, Z, C]."""
    return [Field(*pair) for pair in zip(density, semantics, strict=True)]


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
    _check(fields, index, origins, directions, spec, settings, warp, jitter, front_limits)
    dtype = torch.float64 if fields[0].density.dtype == torch.float64 else torch.float32
    with torch.autocast(origins.device.type, enabled=False):
        fields = [Field(f.density.to(dtype), f.semantics.to(dtype), f.classes, f.stays) for f in fields]
        origins, directions = origins.detach().to(dtype), directions.detach().to(dtype)
        edges = None
        if settings.sampling != "exact":
            near, far, count = settings.near, settings.far, settings.intervals
            edges = uniform_edges(len(index), near, far, count, origins.device, dtype, jitter)
        parts, order = [], []
        pieces = _pieces(index, len(fields), settings.chunk)
        again = len(pieces) > 1 and torch.is_grad_enabled()
        for field, rays in pieces:
            piece = _Piece(
                fields[field], origins[rays], directions[rays], spec, settings,
                None if warp is None else warp.select(rays),
            )  # fmt: skip
            at, bounds = piece.places(None if edges is None else edges[rays])
            limits = None if front_limits is None else front_limits[rays].to(dtype)
            run: Callable[..., RenderedRays] = piece.render
            if again:
                parts.append(_recomputed(run, fields[field], at, bounds, limits, keep_samples))
            else:
                parts.append(run(fields[field].density, fields[field].semantics, at, bounds, limits, keep_samples))
            order.append(rays)
        if not parts:
            return _nothing(fields[0], front_limits, keep_samples)
        back = torch.empty_like(index)
        back[torch.cat(order)] = torch.arange(len(index), device=index.device)
        return RenderedRays.cat(parts).select(back)


@dataclass(eq=False)
class _Piece:
    """A chunk of rays through one field."""

    field: Field
    origins: Tensor
    directions: Tensor
    spec: GridSpec
    settings: RenderSettings
    warp: RayWarp | None

    def lookup(self, distances: Tensor) -> tuple[Tensor, Tensor | None]:
        """Voxel coordinates [r, S, 3] of points at distances [r, S], and what an object has left (bool [r, S])."""
        points = self.origins[:, None] + self.directions[:, None] * distances[..., None]
        left = None
        if self.warp is not None:
            points, left = self.warp.apply(points, distances, self.class_at)
        return voxel_coordinates(points, self.spec, self.settings.legacy), left

    def class_at(self, points: Tensor) -> Tensor:
        """Class of the voxel that each point lies in, int64 [...]; -1 outside the grid."""
        assert self.field.classes is not None
        return nearest(self.field.classes, voxel_coordinates(points, self.spec, self.settings.legacy), outside=-1)

    def density_at(self, volume: Tensor, coordinates: Tensor, left: Tensor | None) -> Tensor:
        """Density in 1 / metre at coordinates."""
        read = nearest if self.settings.sampling == "exact" else trilinear
        values = read(volume, coordinates)
        if left is not None:
            # Voxels are taken away, not samples: those beside an object that has left would still see half of it.
            rest = read(volume * self.field.stays, coordinates) if self.field.stays is not None else 0.0
            values = torch.where(left, rest, values)
        return metric_density(values, self.settings.density, sum(self.spec.voxel_size) / 3)

    @torch.no_grad()
    def places(self, edges: Tensor | None) -> tuple[Tensor, Tensor]:
        """Distances [r, S] at which the field is looked at, and the edges [r, S + 1] of their intervals."""
        settings = self.settings
        if edges is None:
            edges = voxel_edges(self.origins, self.directions, self.spec, settings.near, settings.far)
        middle = (edges[:, 1:] + edges[:, :-1]) / 2
        if settings.sampling != "importance":
            return middle, edges
        density = self.density_at(self.field.density, *self.lookup(middle))
        samples = resample(edges, density, settings.samples)
        return samples, edges_around(samples, settings.near, settings.far)

    def render(
        self, density: Tensor, semantics: Tensor, at: Tensor, edges: Tensor, limits: Tensor | None, keep: bool
    ) -> RenderedRays:
        """Looks up and composites; called once more in the backward pass where rays come in chunks."""
        with torch.no_grad():
            coordinates, left = self.lookup(at)
            lengths, middle = edges.diff(dim=1), (edges[:, 1:] + edges[:, :-1]) / 2
        weights = weights_from_density(self.density_at(density, coordinates, left), lengths)
        read = nearest if self.settings.sampling == "exact" else trilinear
        values = read(semantics, coordinates)
        return RenderedRays(
            weight_sum=weights.sum(1),
            depth=composite_depth(weights, middle, self.settings.depth, self.settings.far),
            semantics=torch.einsum("rs,rsc->rc", weights, values),
            front=None if limits is None else mass_before(weights, middle, limits),
            sample_weights=weights if keep else None,
            midpoints=middle if keep else None,
            lengths=lengths if keep else None,
        )


def _recomputed(run: Callable[..., RenderedRays], field: Field, *arguments) -> RenderedRays:
    def call(density: Tensor, semantics: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(vars(run(density, semantics, *arguments)).values())

    values = checkpoint(call, field.density, field.semantics, use_reentrant=False, preserve_rng_state=False)
    return RenderedRays(*values)


def _pieces(index: Tensor, fields: int, chunk: int) -> list[tuple[int, Tensor]]:
    """Fields and the rays through them, at most `chunk` at a time."""
    if not len(index):
        return []
    if fields == 1:
        return [(0, rays) for rays in torch.arange(len(index), device=index.device).split(chunk)]
    counts = torch.bincount(index, minlength=fields).tolist()
    groups = index.argsort(stable=True).split(counts)
    return [(field, rays) for field, group in enumerate(groups) if len(group) for rays in group.split(chunk)]


def _nothing(field: Field, limits: Tensor | None, keep: bool) -> RenderedRays:
    """The result without rays; still depends on the volumes, so that a distributed backward pass does not hang."""
    none = field.density.flatten()[:0]
    wide = none[:, None] * none.new_zeros(0, 1) if keep else None
    semantics = field.semantics.flatten(0, 2)[:0]
    return RenderedRays(none, none, semantics, None if limits is None else none, wide, wide, wide)


def _check(
    fields: Sequence[Field],
    index: Tensor,
    origins: Tensor,
    directions: Tensor,
    spec: GridSpec,
    settings: RenderSettings,
    warp: RayWarp | None,
    jitter: Tensor | None,
    limits: Tensor | None,
) -> None:
    if not fields:
        raise ValueError("no field to render")
    for field in fields:
        if tuple(field.density.shape) != spec.shape or tuple(field.semantics.shape[:3]) != spec.shape:
            raise ValueError(
                f"a field is density [X, Y, Z] and semantics [X, Y, Z, C] of the grid's shape {spec.shape}, got "
                f"{tuple(field.density.shape)} and {tuple(field.semantics.shape)}"
            )
        if field.semantics.ndim != 4 or field.semantics.shape[3] != fields[0].semantics.shape[3]:
            raise ValueError(f"semantics are [X, Y, Z, C], as many classes each, got {tuple(field.semantics.shape)}")
        if warp is not None and warp.by_class and (field.classes is None or field.stays is None):
            raise ValueError("samples warped by class need Field.classes and Field.stays; `rendering.flow` makes them")
    rays = (len(index),)
    for name, value, shape in (
        ("index", index, rays),
        ("origins", origins, (*rays, 3)),
        ("directions", directions, (*rays, 3)),
        ("front_limits", limits, rays),
        ("jitter", jitter, (*rays, settings.intervals - 1)),
        ("warp", None if warp is None else warp.enter[:, :0].sum(1), rays),
    ):
        if value is None:
            continue
        if tuple(value.shape) != shape:
            raise ValueError(f"{name} must have a row for each of {rays[0]} rays, {shape}; got {tuple(value.shape)}")
        if value.device != fields[0].density.device:
            raise ValueError(f"{name} is on {value.device}, the fields on {fields[0].density.device}")
