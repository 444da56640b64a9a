"""Multi-scale, multi-view sampling through torch's 2-D grid_sample: any device, any number of levels.

The views of a frame are stacked into one tall image, a row of zeros after each: what lies beyond a view's border is
zero, as it would be beyond the image's.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def msmv_sampling_torch(features: Sequence[Tensor], locations: Tensor, weights: Tensor) -> Tensor:
    """See `syntheocc.occupancy.ops.msmv_sampling.msmv_sampling`."""
    batch, frames, queries, groups, points, _ = locations.shape
    views, channels = features[0].shape[2], features[0].shape[-1] // groups
    located = locations.float().transpose(2, 3).reshape(batch * frames * groups, queries * points, 3)
    u, v, view = located.unbind(-1)
    view = (view.detach().nan_to_num(0.0) * (views - 1)).round().clamp(0, views - 1)
    shares = weights.float().transpose(2, 3).reshape(batch * frames * groups, 1, 1, queries * points, len(features))
    out: Tensor | float = 0.0
    for level, maps in enumerate(features):
        height, width = maps.shape[3:5]
        x, y = u * (width - 1), v * (height - 1)
        near = (x > -1) & (x < width) & (y > -1) & (y < height)  # False for NaN
        # Everywhere else the point moves to the zero row above its view (the first view has zeros beyond the image).
        x, y = torch.where(near, x, 0.0), torch.where(near, y, -1.0) + view * (height + 1)
        rows = views * (height + 1)
        grid = torch.stack([_to_unit(x, width), _to_unit(y, rows)], -1)[:, None]
        split = maps.float().unflatten(-1, (groups, channels))  # [B, T, V, H, W, G, C]
        tall = F.pad(split.permute(0, 1, 5, 6, 2, 3, 4), (0, 0, 0, 1)).reshape(-1, channels, rows, width)
        sampled = F.grid_sample(tall, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
        out = out + sampled * shares[..., level]  # [B*T*G, C, 1, Q*P]
    assert isinstance(out, Tensor)
    out = out.view(batch, frames, groups, channels, queries, points).permute(0, 4, 2, 1, 5, 3)
    return out.to(features[0].dtype).contiguous()


def _to_unit(pixels: Tensor, size: int) -> Tensor:
    """Pixels 0 .. size - 1 as grid_sample's -1 .. 1; a size of 1 has the one coordinate 0."""
    return 2 * pixels / max(size - 1, 1) - 1
