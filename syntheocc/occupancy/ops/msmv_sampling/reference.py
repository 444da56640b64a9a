"""Multi-scale, multi-view sampling by indexing: the definition that the fast paths are tested against."""

from collections.abc import Sequence

import torch
from torch import Tensor


def msmv_sampling_reference(features: Sequence[Tensor], locations: Tensor, weights: Tensor) -> Tensor:
    """See `syntheocc.occupancy.ops.msmv_sampling.msmv_sampling`."""
    batch, frames, views = features[0].shape[:3]
    groups = locations.shape[3]
    device = locations.device
    u, v, view = locations.float().unbind(-1)  # [B, T, Q, G, P]
    view = (view.detach().nan_to_num(0.0) * (views - 1)).round().long().clamp(0, views - 1)
    b = torch.arange(batch, device=device).view(-1, 1, 1, 1, 1)
    t = torch.arange(frames, device=device).view(-1, 1, 1, 1)
    g = torch.arange(groups, device=device).view(-1, 1)
    out = 0.0
    for level, maps in enumerate(features):
        height, width = maps.shape[3:5]
        maps = maps.float().unflatten(-1, (groups, -1))  # [B, T, V, H, W, G, C]
        x, y = u * (width - 1), v * (height - 1)
        near = (x > -1) & (x < width) & (y > -1) & (y < height)  # False for NaN
        # Elsewhere the point moves to a pixel that counts as zero, where nothing depends on it.
        x, y = torch.where(near, x, -2.0), torch.where(near, y, -2.0)
        left, top = x.detach().floor(), y.detach().floor()
        for dx in (0, 1):
            for dy in (0, 1):
                column, row = left.long() + dx, top.long() + dy
                share = (1 - (x - column).abs()) * (1 - (y - row).abs())
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                found = maps[b, t, view, row.clamp(0, height - 1), column.clamp(0, width - 1), g]
                share = torch.where(inside, share * weights[..., level].float(), 0.0)
                out = out + share[..., None] * found
    assert isinstance(out, Tensor)
    return out.permute(0, 2, 3, 1, 4, 5).to(features[0].dtype).contiguous()
