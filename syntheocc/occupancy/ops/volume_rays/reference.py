"""Rays through a volume, one sample after the other: the definition that the fast path is tested against."""

import torch
from torch import Tensor

from syntheocc.occupancy.ops.volume_rays import ALMOST, RaySamples
from syntheocc.occupancy.ops.volume_render import composite_volume


def volume_rays_reference(
    density: Tensor, semantics: Tensor, samples: RaySamples, opacity_size: float, nearest: bool
) -> tuple[Tensor, Tensor]:
    """See `syntheocc.occupancy.ops.volume_rays.volume_rays`."""
    rays = len(samples.lengths)
    left = density.new_ones(rays)
    stops, classes = [density.new_zeros(rays) for _ in range(3)], semantics.new_zeros(rays, semantics.shape[3])
    one = density.new_ones(rays, 1)
    for s in range(samples.lengths.shape[1]):
        at = samples.coordinates[:, s : s + 1]
        value = composite_volume(density[..., None], at, one, nearest, "reference")[:, 0]
        if opacity_size:
            value = -torch.log1p(-value.clamp(0, 1 - ALMOST)) / opacity_size
        passed = torch.exp(-value * samples.lengths[:, s])
        weight, left = left * (1 - passed), left * passed
        middle = samples.middles[:, s]
        for total, part in enumerate((weight, weight * middle, weight * (middle < samples.limits))):
            stops[total] = stops[total] + part
        classes = classes + weight[:, None] * composite_volume(semantics, at, one, nearest, "reference")
    return torch.stack(stops, 1), classes
