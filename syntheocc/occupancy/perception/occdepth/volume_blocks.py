"""Building blocks of the 3D network: bottlenecks of one-dimensional convolutions, and what is around them.

The dimensional-decomposition residual block is DDRNet's (Li et al., CVPR 2019): three convolutions, one an axis, with
shortcuts between them. Published blocks of stride 1 also carry pooling layers that they never use; these are left
out (specs/occdepth.md 2.5).

Legend: B samples, C channels, X Y Z voxels. Volumes are channels last in memory.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syntheocc.occupancy.perception.backbones import checkpointed

__all__ = ["ASPP3D", "Bottleneck3D", "Blocks", "Downsample3D", "Upsample3D", "process"]


class Bottleneck3D(nn.Module):
    """1x1x1, then 3 along z, y and x with shortcuts, then 1x1x1, around all of which a shortcut leads.

    Args:
        in_channels: of the input.
        planes: inside.
        out_channels: of the output.
        stride: 1 or 2 along all axes.
        dilation: along all axes.
    """

    def __init__(self, in_channels: int, planes: int, out_channels: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2, self.bn2 = _along(2, planes, stride, dilation), nn.BatchNorm3d(planes)
        self.conv3, self.bn3 = _along(1, planes, stride, dilation), nn.BatchNorm3d(planes)
        self.conv4, self.bn4 = _along(0, planes, stride, dilation), nn.BatchNorm3d(planes)
        self.conv5 = nn.Conv3d(planes, out_channels, 1, bias=False)
        self.bn5 = nn.BatchNorm3d(out_channels)
        same = stride == 1
        self.down2 = nn.Identity() if same else _pooled(planes, planes, (1, stride, 1))
        self.down3 = nn.Identity() if same else _pooled(planes, planes, (stride, 1, 1))
        self.down4 = nn.Identity() if same else _pooled(planes, planes, (stride, 1, 1))
        self.shortcut = (
            nn.Identity()
            if same and in_channels == out_channels
            else _pooled(in_channels, out_channels, (stride, stride, stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, X, Y, Z] to [B, out_channels, X / stride, ...]."""
        out1 = F.relu(self.bn1(self.conv1(x)))
        out2 = self.bn2(self.conv2(out1))
        carried2 = self.down2(out2)
        out3 = self.bn3(self.conv3(F.relu(out2))) + carried2
        out4 = self.bn4(self.conv4(F.relu(out3))) + self.down3(carried2) + self.down4(out3)
        return F.relu(self.bn5(self.conv5(F.relu(out4))) + self.shortcut(x))


def process(channels: int, dilations: Sequence[int] = (1, 2, 3)) -> list[nn.Module]:
    """Bottlenecks that keep the size, one a dilation."""
    return [Bottleneck3D(channels, channels // 4, channels, dilation=dilation) for dilation in dilations]


class Downsample3D(Bottleneck3D):
    """A bottleneck that halves the size and doubles the channels."""

    def __init__(self, channels: int):
        super().__init__(channels, channels // 4, 2 * channels, stride=2)


class Upsample3D(nn.Sequential):
    """A transposed convolution with a batch norm and a ReLU; doubles the size, or keeps it with a stride of 1."""

    def __init__(self, in_channels: int, channels: int, stride: int = 2):
        conv = nn.ConvTranspose3d(in_channels, channels, 3, stride, padding=1, output_padding=stride - 1)
        super().__init__(conv, nn.BatchNorm3d(channels), nn.ReLU())


class ASPP3D(nn.Module):
    """``relu(x + sum over dilations of two dilated 3x3x3 convolutions of x)``.

    Args:
        channels: of input and output.
        dilations: one branch each.
    """

    def __init__(self, channels: int, dilations: Sequence[int] = (1, 2, 3)):
        super().__init__()

        def layers() -> list[nn.Module]:
            return [
                nn.Conv3d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
                for dilation in dilations
            ]

        self.conv1, self.conv2 = nn.ModuleList(layers()), nn.ModuleList(layers())
        self.bn1 = nn.ModuleList(nn.BatchNorm3d(channels) for _ in dilations)
        self.bn2 = nn.ModuleList(nn.BatchNorm3d(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, X, Y, Z] to the same shape."""
        total = x
        for conv1, bn1, conv2, bn2 in zip(self.conv1, self.bn1, self.conv2, self.bn2, strict=True):
            total = total + bn2(conv2(F.relu(bn1(conv1(x)))))
        return F.relu(total)


class Blocks(nn.Sequential):
    """Modules one after another; each is recomputed in the backward pass where that is switched on."""

    gradient_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Through all of them."""
        for block in self:
            x = checkpointed(block, x) if self.gradient_checkpointing and torch.is_grad_enabled() else block(x)
        return x


def _along(axis: int, channels: int, stride: int, dilation: int) -> nn.Conv3d:
    """A convolution of three voxels along one axis."""
    x, y, z = (axis == 0, axis == 1, axis == 2)
    return nn.Conv3d(
        channels,
        channels,
        kernel_size=(3 if x else 1, 3 if y else 1, 3 if z else 1),
        stride=(stride if x else 1, stride if y else 1, stride if z else 1),
        padding=(dilation * x, dilation * y, dilation * z),
        dilation=dilation,
        bias=False,
    )


def _pooled(in_channels: int, channels: int, stride: tuple[int, int, int]) -> nn.Sequential:
    """Average pooling where there is a stride, a 1x1x1 convolution and a norm."""
    conv = nn.Conv3d(in_channels, channels, 1, bias=False)
    pool: list[nn.Module] = [] if stride == (1, 1, 1) else [_Mean(stride)]
    return nn.Sequential(*pool, conv, nn.BatchNorm3d(channels))


class _Mean(nn.Module):
    """Average pooling of blocks side by side, in any precision and memory format (torch's has neither everywhere)."""

    def __init__(self, stride: tuple[int, int, int]):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, X, Y, Z] to [B, C, X / stride, ...]."""
        for axis, stride in enumerate(self.stride, start=2):
            if stride > 1:
                x = x.unflatten(axis, (-1, stride)).mean(axis + 1)
        return x
