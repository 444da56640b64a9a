"""RenderOcc's renderer: DVGO's (Sun et al., CVPR 2022) opacities of raw densities at a fixed interval.

``legacy=True`` is the published one: rays go on for kilometres through a space that is contracted beyond `radius`, and
depth comes out contracted too, ``d / (1 + d / radius)``: 10 m as 7.96 m. Otherwise rays end at `far`, lengths are
metres, and voxels are where they are (specs/occflownet_splattingocc.md 4.0, vectors V3 and V4).

A raw density d stops ``1 - (1 + e^(d - 13.8155))^(-1/2)`` of a ray at every sample: 0.2 % at the published threshold
8.5, 29 % at 13.8. Samples that stop less than 1e-7, and those behind what leaves less than 1e-3, have no part in
anything, gradients included.

Legend: R rays, S samples, C classes, X Y Z voxels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.losses.rendering import mass_before
from syntheocc.occupancy.rendering.compositing import RenderedRays, raw_alpha, shift_of, weights_from_alpha
from syntheocc.occupancy.rendering.lookup import trilinear, voxel_coordinates
from syntheocc.occupancy.rendering.pieces import Field, check_rays, render_in_pieces

__all__ = ["DvgoSettings", "contract", "legacy_distances", "render_dvgo"]

_INTERVAL = 0.5
_PRUNED = 1e-7
_OPAQUE = 1e-3


@dataclass(frozen=True, kw_only=True)
class DvgoSettings:
    """How rays are sampled.

    Raises:
        ValueError: lengths that are not positive.
    """

    legacy: bool = False
    """The published geometry."""
    radius: float = 39.0
    """Of legacy: metres around the grid's middle within which space is not contracted."""
    far: float = 52.0
    """Not of legacy: metres at which rays end. They are sampled twice a voxel."""
    alpha_init: float = 1e-6
    """What a raw density of 0 stops over an interval of 1; the shift is ``ln(1 / (1 - alpha_init) - 1)``."""
    chunk: int = 4096
    """Rays at a time."""

    def __post_init__(self):
        if not (self.radius > 0 and self.far > 0 and 0 < self.alpha_init < 1) or self.chunk < 1:
            raise ValueError(f"radius, far and chunk must be positive and alpha_init between 0 and 1, got {self}")


def render_dvgo(
    fields: Sequence[Field],
    index: Tensor,  # [R]
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    spec: GridSpec,
    settings: DvgoSettings | None = None,
    front_limits: Tensor | None = None,  # [R]
    keep_samples: bool = False,
) -> RenderedRays:
    """Renders rays, each through a field of its choice.

    Args:
        fields: raw densities, as a head gives them (published: after a softplus), and logits.
        index: int64, the field of each ray.
        origins: metres, in the grid's frame.
        directions: unit vectors.
        spec: where the voxels lie.
        settings: `DvgoSettings()` if None.
        front_limits: metres (contracted ones in legacy); for `RenderedRays.front`.
        keep_samples: also return weights, midpoints and lengths. The published distortion loss takes the latter two
            in units of `radius` (in legacy, lengths are radius / S).

    Returns:
        results in the order of the rays; ``weight_sum`` is 1 - the final transmittance, whose `binary_entropy` is the
        published entropy loss. Depth is metres, contracted ones in legacy.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    settings = settings or DvgoSettings()
    check_rays(fields, index, origins, directions, spec, {"front_limits": front_limits})
    origins, directions = origins.detach(), directions.detach()

    def piece(field: Field, rays: Tensor) -> Callable[[Tensor, Tensor], RenderedRays]:
        ray = _Ray(origins[rays].to(field.density), directions[rays].to(field.density), spec, settings)
        limits = None if front_limits is None else front_limits[rays].to(field.density)
        return lambda density, semantics: ray.render(density, semantics, limits, keep_samples)

    return render_in_pieces(fields, index, settings.chunk, piece, front_limits is not None, keep_samples)


def legacy_distances(spec: GridSpec, radius: float) -> tuple[Tensor, int]:
    """Where the published renderer samples a ray: metres float64 [S], and how many of them are not far out.

    391 at half a voxel (a little less: 0.1995 m) up to two radii, 26 from there in ever longer steps.
    """
    extent = (spec.upper[0] - spec.lower[0]) / 2
    background = (extent - radius) / radius
    inner = int(2 / (2 + 2 * background) * spec.shape[0] / _INTERVAL) + 1
    outer = inner // 15
    near = torch.linspace(0, 2, inner + 1, dtype=torch.float64)
    beyond = 2 / torch.linspace(1, 1 / 64, outer + 1, dtype=torch.float64)
    return radius * torch.cat([(edges[1:] + edges[:-1]) / 2 for edges in (near, beyond)]), inner


def contract(points: Tensor, background: float) -> Tensor:
    """Points [..., 3] in radii around the middle: those beyond 1 are drawn in to less than 1 + background."""
    norm = points.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    return torch.where(norm <= 1, points, points / norm * ((1 + background) - background / norm))


@dataclass(eq=False)
class _Ray:
    """A chunk of rays through one field."""

    origins: Tensor
    directions: Tensor
    spec: GridSpec
    settings: DvgoSettings

    def places(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Voxel coordinates [R, S, 3], depths [S] metres, and which samples count (bool [R, S] or all of them)."""
        if not self.settings.legacy:
            step = sum(self.spec.voxel_size) / 6
            count = max(1, round(self.settings.far / step))
            depth = (torch.arange(count, dtype=self.origins.dtype, device=self.origins.device) + 0.5) * step
            points = self.origins[:, None] + self.directions[:, None] * depth[:, None]
            return voxel_coordinates(points, self.spec), depth, None
        lower, upper = constant(self.spec.lower, self.origins), constant(self.spec.upper, self.origins)
        middle, half, radius = (lower + upper) / 2, (upper - lower) / 2, self.settings.radius
        background = (float(half[0]) - radius) / radius
        t = legacy_distances(self.spec, radius)[0].to(self.origins) / radius
        straight = (self.origins[:, None] - middle) / radius + self.directions[:, None] * t[:, None]
        points = contract(straight, background)
        # The published box is as flat as the grid in units of its half width, but radii are shorter than that.
        box = torch.stack([half[0] / radius, half[1] / radius, half[2] / half[0]])
        size = constant(self.spec.shape, points)
        at = (points + box) / (2 * box) * (size - 1)
        cell = (2 + 2 * background) / self.spec.shape[0]
        apart = _far_enough(points.diff(dim=1).norm(dim=-1), 0.95 * _INTERVAL * cell)
        return at, radius * (1 - 1 / (1 + t)), (straight.norm(dim=-1) <= 1) | apart

    def render(self, density: Tensor, semantics: Tensor, limits: Tensor | None, keep: bool) -> RenderedRays:
        with torch.no_grad():
            at, depth, counted = self.places()
        alpha = raw_alpha(trilinear(density, at), shift_of(self.settings.alpha_init), _INTERVAL)
        seen = alpha > _PRUNED if counted is None else (alpha > _PRUNED) & counted
        alpha = torch.where(seen, alpha, 0.0)
        with torch.no_grad():
            passed = torch.cumprod(1 - alpha, 1)
            reached = torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1]], 1) >= _OPAQUE
        weights, left = weights_from_alpha(torch.where(reached, alpha, 0.0))
        weights = torch.where(weights > _PRUNED, weights, 0.0)
        # Logits are looked up only where they count, a few percent of the samples of a trained model.
        ray, sample = (weights > 0).nonzero().unbind(1)
        values = trilinear(semantics, at[ray, sample]) * weights[ray, sample][:, None]
        length = depth.new_tensor(self.settings.radius / len(depth) if self.settings.legacy else float(2 * depth[0]))
        middle = depth.expand(len(weights), -1)
        return RenderedRays(
            weight_sum=1 - left,
            depth=(weights * depth).sum(1) + (_PRUNED if self.settings.legacy else 0.0),
            semantics=values.new_zeros(len(weights), values.shape[1]).index_add(0, ray, values),
            front=None if limits is None else mass_before(weights, middle, limits),
            sample_weights=weights if keep else None,
            midpoints=middle if keep else None,
            lengths=length.expand_as(weights) if keep else None,
        )


def _far_enough(steps: Tensor, least: float) -> Tensor:
    """Which points [R, S] lie more than `least` beyond the last one that did, along their ray, steps [R, S - 1]."""
    gone = torch.zeros_like(steps[:, 0])
    chosen = [torch.zeros_like(gone, dtype=torch.bool)]
    for step in steps.unbind(1):
        gone = gone + step
        chosen.append(gone > least)
        gone = torch.where(chosen[-1], 0.0, gone)
    return torch.stack(chosen, 1)
