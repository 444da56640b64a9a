"""From feature maps to a volume of features: where a voxel's centre falls in a picture, there its features are read.

FLoSP (MonoScene, Cao and de Charette, CVPR 2022) for one view; OccDepth's stereo soft feature assignment for two: what
both views agree on is probably there. Nothing here has parameters (specs/occdepth.md 2.2).

Corrected against the published code: a voxel's features are interpolated, not those of one integer pixel; features of
two views that disagree are weakened, not turned into their opposite; and a voxel seen once keeps its features whole.

Legend: B samples, V views, C channels, N voxels, P points of a pattern, h w feature map.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.perception.occdepth.geometry import Projection

__all__ = ["PATTERNS", "PixelLookup", "fuse_views", "lift_features", "look_up", "read_map"]

_CROSS = ((-1, 0), (1, 0), (0, -1), (0, 1))
_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_SPREAD = ((0, 0), (0, -2), (0, 2), *_DIAGONAL, (-2, 0), (2, 0))
_CORNERS = ((-2, -2), (-2, 2), (2, -2), (2, 2))
_KNIGHTS = tuple((a, b) for a in (-3, -1, 1, 3) for b in (-3, -1, 1, 3) if abs(a) != abs(b))

# Pixels around a voxel's own (du, dv) whose features are averaged. The published 3 lists one neighbour twice and
# forgets another.
PATTERNS: tuple[tuple[tuple[int, int], ...], ...] = (
    ((0, 0),),
    ((0, 0), *_CROSS),
    ((0, 0), *_DIAGONAL),
    ((0, 0), *_CROSS, *_DIAGONAL),
    _SPREAD,
    (*_SPREAD, *_CORNERS),
    tuple((a, b) for b in range(-2, 3) for a in range(-2, 3)),
    tuple(point for point in _SPREAD if point != (1, 1)),
    (*_SPREAD, *_CORNERS, *_KNIGHTS),
)


class PixelLookup(NamedTuple):
    """Where each voxel's features are read, whatever the scale; fixed for a rig that does not move."""

    pixels: Tensor
    """[B, V, N, P, 2] u, v of the network's input: whole numbers (int64) for "nearest", places (float32) otherwise."""
    inside: Tensor
    """bool [B, V, N, P]."""


def look_up(
    projection: Projection,
    image_size: tuple[int, int],
    sampling: Literal["bilinear", "nearest"] = "bilinear",
    pattern: int = 0,
) -> PixelLookup:
    """The pixels of projected voxels.

    Args:
        projection: of `project_voxels`.
        image_size: H and W.
        sampling: "nearest" rounds half to even, as published.
        pattern: which of `PATTERNS`.
    """
    height, width = image_size
    offsets = constant(PATTERNS[pattern], projection.pixels.device)  # [P, 2]
    whole = projection.pixels.round().long()[..., None, :] + offsets
    u, v = whole.unbind(-1)
    inside = (projection.depth > 0)[..., None] & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    if sampling == "nearest":
        return PixelLookup(torch.where(inside[..., None], whole, 0), inside)
    places = projection.pixels[..., None, :] + offsets
    return PixelLookup(torch.where(inside[..., None], places, 0.0).float(), inside)


def read_map(
    features: Tensor,  # [B, V, C, h, w]
    lookup: PixelLookup,
    stride: int,
) -> Tensor:
    """The features of each voxel in each view: [B, V, N, C]; zero where a view does not show it.

    Args:
        features: of pixels ``stride`` apart; a cell stands for its `stride` x `stride` pixels.
        lookup: where.
        stride: of the map.
    """
    batch, views, channels, height, width = features.shape
    # Rows of one pixel each: in channels-last memory this is a view, and a voxel reads one piece of memory.
    rows = features.permute(0, 1, 3, 4, 2).reshape(batch * views * height * width, channels)
    first = (torch.arange(batch * views, device=rows.device) * height * width).view(batch, views, 1, 1)

    def read(column: Tensor, row: Tensor) -> Tensor:
        index = first + row * width + column  # [B, V, N, P]
        return rows.index_select(0, index.flatten()).view(*index.shape, channels)

    inside = lookup.inside[..., None]
    if not lookup.pixels.is_floating_point():
        u, v = (lookup.pixels // stride).unbind(-1)
        values = read(u, v)
    else:
        x, y = ((lookup.pixels + 0.5) / stride - 0.5).unbind(-1)
        x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
        left, top = x.floor(), y.floor()
        right, bottom = (left + 1).clamp_max(width - 1), (top + 1).clamp_max(height - 1)
        share_x, share_y = ((p - low).to(rows.dtype)[..., None] for p, low in ((x, left), (y, top)))
        left, top, right, bottom = (place.long() for place in (left, top, right, bottom))
        upper = torch.lerp(read(left, top), read(right, top), share_x)
        lower = torch.lerp(read(left, bottom), read(right, bottom), share_x)
        values = torch.lerp(upper, lower, share_y)
    values = torch.where(inside, values, torch.zeros((), dtype=values.dtype, device=values.device))
    if values.shape[3] == 1:
        return values[..., 0, :]
    return values.sum(3) / inside.sum(3).clamp_min(1).to(values.dtype)


def fuse_views(
    values: Tensor,  # [B, V, N, C]
    seen: Tensor,  # bool [B, V, N]
    fusion: Literal["similarity", "cosine"] = "similarity",
) -> Tensor:
    """One feature a voxel of those of all views: [B, N, C].

    With a pair's cosine c over the channels, "cosine" (published) takes ``sum over pairs of w_ij a_i + w_ji a_j``,
    ``w_ij = c`` where both see the voxel and 1 where only i does, divided by V (V - 1). For two views: c (a + b) / 2,
    a / 2, or 0. "similarity" has 1 + c instead of c and doubles what is seen once, so that the mean is a + b over 2
    weighted by 1 + c, a voxel seen once is a, and no evidence (c = 0) changes nothing.
    """
    views = values.shape[1]
    if views == 1:
        return values[:, 0]
    total: Tensor | None = None
    for i in range(views):
        for j in range(i + 1, views):
            a, b = values[:, i], values[:, j]
            both = (seen[:, i] & seen[:, j])[..., None]
            once_a, once_b = (seen[:, i] & ~seen[:, j])[..., None], (seen[:, j] & ~seen[:, i])[..., None]
            # In float32: the cosine of two long vectors is a small difference of large sums.
            cosine = torch.cosine_similarity(a.float(), b.float(), dim=-1)[..., None]
            if fusion == "similarity":
                shared = torch.where(both, 1 + cosine, 0.0)
                pair = a * (shared + 2 * once_a).to(a.dtype) + b * (shared + 2 * once_b).to(b.dtype)
            else:
                shared = torch.where(both, cosine, 0.0)
                pair = a * (shared + once_a).to(a.dtype) + b * (shared + once_b).to(b.dtype)
            total = pair if total is None else total + pair
    assert total is not None
    return total / (views * (views - 1))


def lift_features(
    maps: Mapping[int, Tensor],  # {stride: [B, V, C, h, w]}
    lookup: PixelLookup,
    fusion: Literal["similarity", "cosine"] = "similarity",
) -> Tensor:
    """The volume's features, summed over the scales: [B, N, C].

    Args:
        maps: of each scale.
        lookup: of `look_up`.
        fusion: see `fuse_views`.
    """
    seen = lookup.inside.any(-1)
    total: Tensor | None = None
    for stride, features in maps.items():
        part = fuse_views(read_map(features, lookup, stride), seen, fusion)
        total = part if total is None else total + part
    assert total is not None
    return total
