"""Composited values of a volume by indexing: the definition that the fast paths are tested against."""

import torch
from torch import Tensor


def composite_volume_reference(volume: Tensor, coordinates: Tensor, weights: Tensor, nearest: bool) -> Tensor:
    """See `syntheocc.occupancy.ops.volume_render.composite_volume`."""
    size = torch.tensor(volume.shape[:3], device=volume.device)
    finite = torch.isfinite(coordinates).all(-1, keepdim=True)
    at = torch.where(finite, coordinates, -9.0).clamp(-9, 1e6)
    corner = (at + 0.5).floor() if nearest else at.floor()
    out = volume.new_zeros(len(coordinates), volume.shape[3])
    for step in torch.cartesian_prod(*[torch.arange(1 if nearest else 2, device=volume.device)] * 3).view(-1, 3):
        cell = corner + step
        share = torch.ones_like(weights) if nearest else (1 - (at - cell).abs()).prod(-1)
        inside = ((cell >= 0) & (cell < size)).all(-1)
        x, y, z = (cell * inside[..., None]).long().unbind(-1)
        out = out + ((weights * share * inside)[..., None] * volume[x, y, z]).sum(1)
    return out
