"""The depth network of OccDepth: a depth distribution of each cell of a feature map, knowing the focal length.

Legend: N images, C channels, D depth bins, h w feature map (specs/occdepth.md 2.3).
"""

import torch
from torch import Tensor, nn

from syntheocc.occupancy.perception.depth_net import BasicBlock, CameraGate, conv_norm_relu

__all__ = ["DepthNet", "pixel_size"]


def pixel_size(intrinsics: Tensor) -> Tensor:
    """A pixel's diagonal at 1000 m, in metres: ``1000 sqrt(1 / fx^2 + 1 / fy^2)`` of [..., 3, 3], float32 [..., 1].

    0 where a sample has no such camera.
    """
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], -1)
    exists = (focal > 0).all(-1, keepdim=True)
    size = 1000 * (1 / torch.where(exists, focal, 1.0)).square().sum(-1, keepdim=True).sqrt()
    return torch.where(exists, size, 0.0).float()


class DepthNet(nn.Module):
    """Features to depth logits.

    Args:
        in_channels: of the features.
        channels: inside.
        bins: D.
    """

    def __init__(self, in_channels: int, channels: int, bins: int):
        super().__init__()
        self.reduce = conv_norm_relu(in_channels, channels, 3, bias=True)
        self.gate = CameraGate(channels, numbers=1)
        self.blocks = nn.Sequential(*(BasicBlock(channels, channels) for _ in range(3)))
        self.depth = nn.Conv2d(channels, bins, 1)

    def forward(self, x: Tensor, intrinsics: Tensor) -> Tensor:
        """Features [N, in_channels, h, w] and their cameras' [N, 3, 3] to logits [N, D, h, w]."""
        size = pixel_size(intrinsics).to(self.depth.weight.dtype)
        return self.depth(self.blocks(self.gate(self.reduce(x), size)))
