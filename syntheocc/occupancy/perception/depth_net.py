"""The depth network of BEVDepth and BEVStereo: features and a depth distribution of each cell, knowing its camera.

Legend: N images, C channels, D depth bins, h w feature map (specs/occflownet_splattingocc.md 2.2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syntheocc.engine.dropout import Seeds, dropout
from syntheocc.occupancy.perception.view_transform import CAMERA_NUMBERS

__all__ = ["ASPP", "BasicBlock", "CameraGate", "DepthNet", "StereoReducer", "conv_norm_relu"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norms and a shortcut, a plain 1x1 convolution where channels change."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, h, w] to [N, channels, h, w]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (DeepLab v3): convolutions of several reaches, and the whole image's mean.

    Args:
        channels: of input and output.
        mid_channels: of each branch.
        dilations: one branch each; the branch of 1 is a 1x1 convolution.
        dropout: of the output.
    """

    def __init__(
        self,
        channels: int,
        mid_channels: int,
        dilations: tuple[int, ...] = (1, 6, 12, 18),
        dropout: float = 0.5,
    ):
        super().__init__()
        self.branches = nn.ModuleList(
            conv_norm_relu(channels, mid_channels, 1 if dilation == 1 else 3, dilation) for dilation in dilations
        )
        self.pooled = conv_norm_relu(channels, mid_channels, 1)
        self.merge = conv_norm_relu(mid_channels * (len(dilations) + 1), channels, 1)
        self.dropout = dropout

    def forward(self, x: Tensor, seeds: Seeds = None) -> Tensor:
        """[N, channels, h, w] to the same shape; the N images are those of `seeds`' samples, in order."""
        mean = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        merged = self.merge(torch.cat([*(branch(x) for branch in self.branches), mean], 1))
        if seeds is None:
            return F.dropout(merged, self.dropout, self.training)
        samples = merged.unflatten(0, (len(seeds), -1))
        return dropout(samples, self.dropout, self.training, seeds).flatten(0, 1)


class CameraGate(nn.Module):
    """Channels opened and closed by what is known of the camera: an MLP, then squeeze-and-excitation.

    Args:
        channels: of the features.
        numbers: how many numbers describe a camera.
    """

    def __init__(self, channels: int, numbers: int = CAMERA_NUMBERS):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(numbers, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.reduce = nn.Conv2d(channels, channels, 1)
        self.expand = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, cameras: Tensor) -> Tensor:
        """Features [N, C, h, w] and cameras [N, numbers] to gated features."""
        gate = self.expand(F.relu(self.reduce(self.mlp(cameras)[..., None, None])))
        return x * gate.sigmoid()


class StereoReducer(nn.Module):
    """A cost volume of stride 4 brought to the stride of the features: 3x3 convolutions of stride 2, each with a norm.

    Args:
        bins: D.
        stride: of the features; 8, 16 or 32.

    Raises:
        ValueError: another stride.
    """

    def __init__(self, bins: int, stride: int):
        super().__init__()
        if stride not in (8, 16, 32):
            raise ValueError(f"a cost volume of stride 4 is brought to stride 8, 16 or 32, not {stride}")
        layers: list[nn.Module] = []
        while stride > 4:
            layers += [nn.Conv2d(bins, bins, 3, stride=2, padding=1), nn.BatchNorm2d(bins)]
            stride //= 2
        self.layers = nn.Sequential(*layers)

    def forward(self, cost: Tensor) -> Tensor:
        """Costs [N, D, 4 h, 4 w] (of a stride of 16) to features [N, D, h, w] of softmax(-cost)."""
        likely = torch.softmax(-cost.float(), 1)
        return self.layers(likely)


class DepthNet(nn.Module):
    """Context and depth of each cell.

    Args:
        in_channels: of the image features.
        mid_channels: inside.
        context_channels: C of the lifted features.
        bins: D.
        aspp_channels: of each branch of the pyramid pooling.
        stride: of the features, for the cost volume; None: no stereo.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        context_channels: int,
        bins: int,
        aspp_channels: int,
        stride: int | None,
    ):
        super().__init__()
        self.bins = bins
        self.reduce = conv_norm_relu(in_channels, mid_channels, 3, bias=True)
        self.camera_norm = nn.BatchNorm1d(CAMERA_NUMBERS)
        self.context_gate = CameraGate(mid_channels)
        self.depth_gate = CameraGate(mid_channels)
        self.context = nn.Conv2d(mid_channels, context_channels, 1)
        self.stereo = None if stride is None else StereoReducer(bins, stride)
        self.depth_blocks = nn.Sequential(
            BasicBlock(mid_channels + (0 if stride is None else bins), mid_channels),
            BasicBlock(mid_channels, mid_channels),
            BasicBlock(mid_channels, mid_channels),
        )
        self.aspp = ASPP(mid_channels, aspp_channels)
        self.depth = nn.Conv2d(mid_channels, bins, 1)

    def forward(self, x: Tensor, cameras: Tensor, cost: Tensor | None, seeds: Seeds = None) -> tuple[Tensor, Tensor]:
        """Image features to what is lifted.

        Args:
            x: features [N, in_channels, h, w].
            cameras: [N, 27] of `LiftCameras.vectors`.
            cost: [N, D, 4 h, 4 w] of `cost_volume` (at a stride of 16); None where there is no earlier image.
            seeds: of the dropout, one a sample; its images follow one another.

        Returns:
            context [N, C, h, w] and depth logits [N, D, h, w].
        """
        cameras = self.camera_norm(cameras.to(self.camera_norm.weight.dtype))
        x = self.reduce(x)
        context = self.context(self.context_gate(x, cameras))
        depth = self.depth_gate(x, cameras)
        if self.stereo is not None:
            matched = depth.new_zeros(len(x), self.bins, *x.shape[2:]) if cost is None else self.stereo(cost)
            depth = torch.cat([depth, matched.to(depth.dtype)], 1)
        return context, self.depth(self.aspp(self.depth_blocks(depth), seeds))


def conv_norm_relu(
    in_channels: int, channels: int, kernel: int, dilation: int = 1, bias: bool = False
) -> nn.Sequential:
    """A convolution that keeps the size, a batch norm and a ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(in_channels, channels, kernel, padding=padding, dilation=dilation, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())
