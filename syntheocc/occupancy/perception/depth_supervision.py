"""Lidar points as labels of the depth network: the nearest point in each cell of the feature map.

Legend: B samples, V views, R points, D depth bins, h w feature map (specs/occflownet_splattingocc.md 2.2, V17).
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from syntheocc.occupancy.perception.view_transform import LiftCameras
from syntheocc.occupancy.rendering.rays import RayLabels

__all__ = ["LabelledBins", "depth_bin_loss", "nearest_depths", "ray_depths"]


def nearest_depths(
    pixels: Tensor,  # [R, 2]
    depth: Tensor,  # [R]
    images: Tensor,  # int64 [R]
    num_images: int,
    image_size: tuple[int, int],
    stride: int,
) -> Tensor:
    """The depth of the nearest point in each cell.

    Args:
        pixels: u, v in the network's input, integers are pixel centres; they are rounded.
        depth: camera z, metres; points that are not in front of the camera count for nothing.
        images: which image each point is in.
        num_images: how many there are.
        image_size: H and W of the network's input; points beyond it count for nothing.
        stride: edge of a cell in pixels.

    Returns:
        [num_images, h, w] metres, infinite in a cell without points.
    """
    height, width = image_size[0] // stride, image_size[1] // stride
    # What is not finite would be any number as an integer.
    column, row = (torch.where(torch.isfinite(p), p, -9.0).round().long() for p in pixels.unbind(-1))
    seen = (column >= 0) & (column < width * stride) & (row >= 0) & (row < height * stride) & (depth > 0)
    cell = (images * height + row // stride) * width + column // stride
    nowhere = num_images * height * width
    nearest = depth.new_full((nowhere + 1,), torch.inf)
    nearest.scatter_reduce_(0, torch.where(seen, cell, nowhere), depth, "amin")
    return nearest[:nowhere].view(num_images, height, width)


def ray_depths(rays: RayLabels, cameras: LiftCameras, image_size: tuple[int, int], stride: int) -> Tensor:
    """`nearest_depths` [B, V, h, w] of the lidar points that the current images see, from the rays of the key frame.

    Args:
        rays: labels in original pixels; those of other frames are passed over.
        cameras: whose image transforms take them to the network's input.
        image_size: H and W of it.
        stride: of the feature map.
    """
    batch, views = cameras.ego2img.shape[0], cameras.ego2img.shape[2]
    a = cameras.image_transforms[:, 0].to(rays.pixels.dtype)[rays.samples, rays.cameras]  # [R, 4, 4]
    moved = (a[:, :2, :2] * rays.pixels[:, None]).sum(-1) + a[:, :2, 2]
    depth = torch.where(rays.is_key, rays.depth, -1.0)
    images = rays.samples * views + rays.cameras
    return nearest_depths(moved, depth, images, batch * views, image_size, stride).unflatten(0, (batch, views))


class LabelledBins(Protocol):
    """Depth bins of any widths."""

    @property
    def number(self) -> int:
        """D."""
        ...

    def index(self, depth: Tensor) -> Tensor:
        """The bin of depths in metres, int64; -1 outside."""
        ...


def depth_bin_loss(logits: Tensor, depth: Tensor, bins: LabelledBins) -> Tensor:
    """Binary cross entropy of the depth distribution against the bin of the lidar's depth.

    The sum over bins and over cells with a depth inside the bins, divided by the number of these cells; in float32.

    Args:
        logits: [..., D, h, w].
        depth: [..., h, w] metres; outside the bins, and infinite: no label.
        bins: the D bins.

    Returns:
        a scalar; 0 without any label.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if logits.ndim < 3 or logits.shape[-3] != bins.number or logits[..., 0, :, :].shape != depth.shape:
        raise ValueError(
            f"logits must be [..., {bins.number}, h, w] for depths [..., h, w]; got {tuple(logits.shape)} and "
            f"{tuple(depth.shape)}"
        )
    index = bins.index(torch.where(torch.isfinite(depth), depth, -1.0))
    probability = logits.float().softmax(-3)
    target = F.one_hot(index.clamp_min(0), bins.number).movedim(-1, -3).to(probability.dtype)
    with torch.autocast(logits.device.type, enabled=False):
        # clamp: a saturated softmax has exact zeros and ones, whose logarithm's gradient is none.
        each = F.binary_cross_entropy(probability.clamp(1e-7, 1 - 1e-7), target, reduction="none").sum(-3)
    labelled = index >= 0
    return torch.where(labelled, each, 0.0).sum() / labelled.sum().clamp_min(1)
