"""3D convolutions over the volume: the residual network and neck that follow the view transform.

Volumes are [B, C, X, Y, Z] and channels last in memory, as lift-splat pooling makes them
(specs/occflownet_splattingocc.md 2.2; the published network's axes are [Z, Y, X]).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syntheocc.occupancy.perception.backbones import checkpointed

__all__ = ["BasicBlock3D", "VolumeEncoder"]


class BasicBlock3D(nn.Module):
    """Two 3x3x3 convolutions with batch norms and a shortcut.

    Args:
        in_channels: of the input.
        channels: of the output.
        stride: of the first convolution, along all axes.
        project: a 3x3x3 convolution with a norm as shortcut; otherwise the input itself.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1, project: bool = False):
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if project:
            conv = nn.Conv3d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm3d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, X, Y, Z] to [B, channels, X / stride, ...]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class VolumeEncoder(nn.Module):
    """A residual network of 3D blocks whose levels are enlarged, put together and reduced.

    Args:
        in_channels: of the volume.
        channels: of the levels; the first has the volume's size, each further one half of it.
        blocks: of each level.
        out_channels: of the result.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], blocks: Sequence[int], out_channels: int):
        super().__init__()
        levels, before = [], in_channels
        for level, (width, number) in enumerate(zip(channels, blocks, strict=True)):
            first = BasicBlock3D(before, width, stride=1 if level == 0 else 2, project=True)
            levels.append(nn.Sequential(first, *(BasicBlock3D(width, width) for _ in range(number - 1))))
            before = width
        self.levels = nn.ModuleList(levels)
        self.merge = nn.Conv3d(sum(channels), out_channels, 1, bias=False)
        self.merge_norm = nn.BatchNorm3d(out_channels)
        self.channels = tuple(channels)
        self.gradient_checkpointing = False

    def forward(self, volume: Tensor) -> Tensor:
        """[B, in_channels, X, Y, Z] to [B, out_channels, X, Y, Z]."""
        x, merged = volume, None
        # A 1x1x1 convolution of enlarged and joined levels is the sum of enlarged convolved ones, at a fifth of the
        # memory: nothing of all their channels is made at the volume's size.
        for level, weight in zip(self.levels, self.merge.weight.split(self.channels, 1), strict=True):
            x = checkpointed(level, x) if self.gradient_checkpointing and torch.is_grad_enabled() else level(x)
            part = F.conv3d(x, weight)
            if merged is None:
                merged = part
            else:
                merged = merged + F.interpolate(part, size=volume.shape[2:], mode="trilinear", align_corners=True)
        return F.relu(self.merge_norm(merged))
