"""From densities along a ray to weights, depth and semantics: metric transmittance (Max 1995; Mildenhall et al. 2020).

Legend: R rays, S samples, C classes. Specification: specs/occflownet_splattingocc.md 3.3, vectors V1, V2, V3.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "DensityForm",
    "DepthForm",
    "RenderedRays",
    "activate_density",
    "composite_depth",
    "depth_of_sums",
    "metric_density",
    "raw_alpha",
    "weights_from_alpha",
    "weights_from_density",
]

DensityForm = Literal["sigmoid", "softplus", "opacity"]
DepthForm = Literal["sum", "normalised", "residual"]

# Densities per metre that a softplus of 1 stands for: a voxel of 0.4 m is then 98 % opaque (specification 3.3, fixed).
SOFTPLUS_SCALE = 10.0
# Opacities stop this far from 1, where the density of a voxel would be infinite.
_ALMOST = 1e-6


@dataclass(eq=False)
class RenderedRays:
    """What rays saw.

    Args:
        weight_sum: [R] share of the ray that was stopped, 0..1.
        depth: [R] metres along the ray (Euclidean, not the camera's z); see `composite_depth`.
        semantics: [R, C] composited logits (or whatever the volume held).
        front: [R] share that was stopped before the limits asked for; None if none were.
        sample_weights: [R, S] compositing weights, None unless asked for.
        midpoints: [R, S] metres, the middle of each interval, likewise; lengths [R, S] metres likewise.
    """

    weight_sum: Tensor
    depth: Tensor
    semantics: Tensor
    front: Tensor | None = None
    sample_weights: Tensor | None = None
    midpoints: Tensor | None = None
    lengths: Tensor | None = None

    def select(self, index: Tensor) -> "RenderedRays":
        """Some of the rays, or all in another order."""
        columns: list[Any] = [None if value is None else value[index] for value in vars(self).values()]
        return RenderedRays(*columns)

    @staticmethod
    def cat(parts: list["RenderedRays"]) -> "RenderedRays":
        """All rays of several; intervals are padded with empty ones at the end of shorter rays."""
        columns: dict[str, Any] = {}
        for name in vars(parts[0]):
            values = [getattr(part, name) for part in parts]
            if values[0] is None:
                columns[name] = None
                continue
            if name in ("sample_weights", "midpoints", "lengths"):
                widest = max(value.shape[1] for value in values)
                values = [functional.pad(value, (0, widest - value.shape[1])) for value in values]
            columns[name] = torch.cat(values)
        return RenderedRays(**columns)


def activate_density(raw: Tensor, form: DensityForm, scale: float | Tensor = SOFTPLUS_SCALE) -> Tensor:
    """A head's raw output as the volume that renderers take.

    Args:
        raw: any shape.
        form: "sigmoid": 0..1 per metre, the published form, in which a voxel of 0.4 m stops at most a third of a ray;
            "softplus": `scale` * softplus per metre; "opacity": 0..1, the share of a ray that a voxel's length stops.
        scale: of "softplus", a number or a learnt one; 1 / metre.

    Raises:
        ValueError: an unknown form.
    """
    if form in ("sigmoid", "opacity"):
        return raw.sigmoid()
    if form == "softplus":
        return functional.softplus(raw) * scale
    raise ValueError(f"density must be 'sigmoid', 'softplus' or 'opacity', got {form!r}")


def metric_density(values: Tensor, form: DensityForm, voxel_size: float) -> Tensor:
    """Looked-up values as densities in 1 / metre.

    An opacity o becomes ``-ln(1 - o) / voxel_size``: an interval of d metres stops 1 - (1 - o)^(d / voxel_size).

    Args:
        values: of an activated volume (`activate_density`), any shape.
        form: what they are.
        voxel_size: metres.
    """
    if form == "opacity":
        return -torch.log1p(-values.clamp(0, 1 - _ALMOST)) / voxel_size
    return values


def raw_alpha(raw: Tensor, shift: float, interval: float = 0.5) -> Tensor:
    """DVGO's opacity ``1 - (1 + e^(raw + shift))^(-interval)`` (Sun et al., CVPR 2022), any shape."""
    return -torch.expm1(-interval * functional.softplus(raw + shift))


def shift_of(alpha_init: float = 1e-6) -> float:
    """DVGO's shift: a raw density of 0 and an interval of 1 give `alpha_init`."""
    return math.log(1 / (1 - alpha_init) - 1)


def weights_from_density(
    density: Tensor,  # [R, S]
    lengths: Tensor,  # [R, S]
) -> Tensor:
    """``w_i = T_i (1 - e^(-density_i length_i))``, T_i what is left after the samples before: [R, S].

    Args:
        density: 1 / metre, not negative.
        lengths: metres.
    """
    optical = density * lengths
    before = optical.cumsum(1) - optical
    return torch.exp(-before) * -torch.expm1(-optical)


def weights_from_alpha(
    alpha: Tensor,  # [R, S]
) -> tuple[Tensor, Tensor]:
    """Weights [R, S] of samples that stop the share alpha of what reaches them, and what is left [R]."""
    left = torch.cumprod(1 - alpha, 1)
    before = torch.cat([torch.ones_like(left[:, :1]), left[:, :-1]], 1)
    return before * alpha, left[:, -1] if alpha.shape[1] else left.new_ones(len(left))


def composite_depth(weights: Tensor, midpoints: Tensor, form: DepthForm, far: float) -> Tensor:
    """Depth [R] in metres.

    Args:
        weights: [R, S].
        midpoints: [R, S] metres.
        form: "sum" of weight * midpoint, as published (what passes counts as 0 m); "normalised" by the weights' sum;
            "residual": what passes counts as `far`.
        far: metres.
    """
    return depth_of_sums((weights * midpoints).sum(1), weights.sum(1), form, far)


def depth_of_sums(depth: Tensor, weight_sum: Tensor, form: DepthForm, far: float) -> Tensor:
    """`composite_depth` of the sums [R] of weight * midpoint and of the weights."""
    if form == "normalised":
        return depth / weight_sum.clamp_min(1e-6)
    if form == "residual":
        return depth + (1 - weight_sum) * far
    return depth
