"""Occupancy-aware depth: what a depth distribution in the pictures says about each voxel (specs/occdepth.md 2.3).

Published, the distribution is sampled at the voxel's centre and multiplies its features. A bin may be narrower than a
voxel, so that a sure answer falls between two centres and is lost, and whatever lies behind a surface loses its
features. Here the distribution is integrated over the voxel's extent along the optical axis, which gives how likely
the surface is in the voxel, in front of it (the voxel is hidden) or behind it (free), and these three numbers steer
the features (`DepthFusion`).

Legend: B samples, V views, N voxels, D depth bins, C channels, h w feature map, H W network input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.occdepth.depth_bins import edge_places, linear_places
from syntheocc.occupancy.perception.occdepth.geometry import Projection, StereoCameras
from syntheocc.occupancy.perception.view_transform import DepthBins

__all__ = ["DepthFusion", "depth_evidence", "depth_half_extent", "published_depth", "published_places"]

# What the published network multiplies the probability by; 100 / 104 bins is about 1.
PUBLISHED_GAIN = 100.0


def depth_half_extent(cameras: StereoCameras, spec: GridSpec) -> Tensor:
    """Half of a voxel's extent along each camera's optical axis, metres: float64 [B, V]."""
    axis = cameras.velo2img.double()[..., 2, :3].abs()
    return 0.5 * (axis * constant(spec.voxel_size, axis)).sum(-1)


def depth_evidence(
    probability: Tensor,  # [B, V, D, h, w]
    projection: Projection,
    half_extent: Tensor,  # [B, V]
    bins: DepthBins,
    spacing: str,
    stride: int,
    image_size: tuple[int, int],
) -> Tensor:
    """How likely the surface that a view sees is in the voxel, before it, and behind it.

    Args:
        probability: depth distributions.
        projection: of the voxels' centres.
        half_extent: of `depth_half_extent`.
        bins: range and number of the bins.
        spacing: "uniform" or "linear".
        stride: of the map, pixels.
        image_size: H and W; voxels whose centre is outside say nothing.

    Returns:
        float32 [B, V, 3, N], three shares of 1; zeros where the view does not show the voxel.
    """
    height, width = probability.shape[-2:]
    cumulative = F.pad(probability.float().cumsum(2), (0, 0, 0, 0, 1, 0))  # [B, V, D + 1, h, w], at the edges
    near = edge_places(projection.depth - half_extent[..., None], bins, spacing)
    far = edge_places(projection.depth + half_extent[..., None], bins, spacing)
    cell = (projection.pixels + 0.5) / stride - 0.5
    scale = [2 / max(1, size - 1) for size in (width, height, bins.number + 1)]
    x, y = cell[..., 0] * scale[0] - 1, cell[..., 1] * scale[1] - 1
    grid = torch.stack([torch.stack([x, y, z * scale[2] - 1], -1) for z in (near, far)], 2)  # [B, V, 2, N, 3]
    # The corners of the volume are the outermost centres and edges; beyond them the border's values hold.
    grid = grid.float().flatten(0, 1)[:, None].clamp(-2, 2)
    volume = cumulative.flatten(0, 1)[:, None]
    before = F.grid_sample(volume, grid, mode="bilinear", padding_mode="border", align_corners=True)
    front, end = before[:, 0, 0].unflatten(0, probability.shape[:2]).unbind(2)  # [B, V, N] each
    shares = torch.stack([end - front, front, 1 - end], 2)
    return torch.where(projection.inside(image_size)[:, :, None], shares, 0.0)


def published_places(
    projection: Projection, bins: DepthBins, image_size: tuple[int, int], spacing: str = "mismatched"
) -> Tensor:
    """Where the published code samples the frustum, x, y and bin scaled to -1..1: float64 [B, V, N, 3]; -2 is outside.

    With `spacing` "uniform" or "linear" the bin is the one that the loss means and the pixels are cells' centres;
    "mismatched" has linear bins and scales by the last pixel.
    """
    height, width = image_size
    depth = projection.depth
    if spacing == "mismatched":
        place = linear_places(depth, bins)
        values = [
            2 * projection.pixels[..., 0] / (width - 1) - 1,
            2 * projection.pixels[..., 1] / (height - 1) - 1,
            2 * place / (bins.number - 1) - 1,
        ]
    else:
        place = linear_places(depth, bins) if spacing == "linear" else (depth - bins.near) / bins.step
        values = [
            2 * (projection.pixels[..., 0] + 0.5) / width - 1,
            2 * (projection.pixels[..., 1] + 0.5) / height - 1,
            2 * place / bins.number - 1,
        ]
    grid = torch.stack(values, -1)
    fine = torch.isfinite(grid).all(-1, keepdim=True) & (depth > 0)[..., None]
    return torch.where(fine, grid, -2.0)


def published_depth(
    probability: Tensor,  # [B, V, D, h, w]
    projection: Projection,
    bins: DepthBins,
    spacing: str,
    stride: int,
    image_size: tuple[int, int],
) -> Tensor:
    """The probability sampled at each voxel's centre, averaged over the views that show it: float32 [B, N]."""
    if spacing != "mismatched":
        # A map of ceil(W / stride) cells reaches beyond the picture.
        image_size = (probability.shape[-2] * stride, probability.shape[-1] * stride)
    grid = published_places(projection, bins, image_size, spacing)
    grid = grid.clamp(-2, 2).float().flatten(0, 1)[:, None, None]  # [B V, 1, 1, N, 3]
    volume = probability.float().flatten(0, 1)[:, None]

    def sample(values: Tensor) -> Tensor:
        sampled = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return sampled[:, 0, 0, 0].unflatten(0, probability.shape[:2]).sum(1)

    value, weight = sample(volume), sample(torch.ones_like(volume))
    return torch.where(weight > 0, value / torch.where(weight > 0, weight, 1.0), 0.0)


class DepthFusion(nn.Module):
    """Features and evidence to features: ``x (1 + G e) + S e``, with e the three shares of `depth_evidence`.

    A new one doubles the features where the surface is, keeps what is hidden and halves what is in front of it.

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Linear(3, channels, bias=False)
        self.shift = nn.Linear(3, channels, bias=False)
        with torch.no_grad():
            self.gain.weight.copy_(torch.tensor([1.0, 0.0, -0.5]).expand(channels, 3))

    def forward(self, x: Tensor, evidence: Tensor) -> Tensor:
        """Features [B, N, C] and evidence [B, V, 3, N] to features; views that show nothing have no say."""
        seen = (evidence.sum(2) > 0.5).sum(1).clamp_min(1)  # [B, N]
        mean = (evidence.sum(1) / seen[:, None]).mT.to(x.dtype)
        return x * (1 + self.gain(mean)) + self.shift(mean)
