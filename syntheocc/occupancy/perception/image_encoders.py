"""Image networks of the view transform: a backbone, the map that is lifted, and the map that stereo compares.

`StereoImageEncoder` walks the residual networks of `backbones` or a Swin transformer (transformers' AutoBackbone) and
puts BEVDet's neck on two of its four stages: the coarser map is enlarged, joined with the finer one and convolved
twice (specs/occflownet_splattingocc.md 2.1). The first stage's map, of stride 4 and before any norm, is for stereo.

Legend: N images, H W pixels, h w of a map.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syntheocc.occupancy.perception.backbones import RESNETS, STRIDES, ResNet, checkpointed

__all__ = ["SWINS", "LSSNeck", "StereoImageEncoder", "Swin"]

# (channels of the first stage, blocks of the stages, heads, window)
SWINS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int]] = {
    "swin_base": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "swin_nano": (8, (1, 1, 2, 1), (1, 2, 4, 8), 4),  # for tests
}


class Swin(nn.Module):
    """A Swin transformer (Liu et al. 2021) that returns the maps of its four stages; the last two are normed.

    Args:
        name: one of `SWINS`.
        image_size: H and W.
        drop_path: stochastic depth of the last block; blocks before it have less.

    Raises:
        ValueError: another name.
    """

    def __init__(self, name: str, image_size: tuple[int, int], drop_path: float = 0.1):
        super().__init__()
        if name not in SWINS:
            raise ValueError(f"there is no backbone {name!r}; there are {', '.join([*SWINS, *RESNETS])}")
        from transformers import AutoBackbone, SwinConfig

        channels, depths, heads, window = SWINS[name]
        config = SwinConfig(
            image_size=image_size, embed_dim=channels, depths=list(depths), num_heads=list(heads), window_size=window,
            drop_path_rate=drop_path, out_features=["stage3", "stage4"],
        )  # fmt: skip
        network = AutoBackbone.from_config(config)
        self.name, self.channels = name, tuple(channels * 2**i for i in range(4))
        self.embeddings, self.encoder = network.swin.embeddings, network.swin.encoder
        self.norms = network.hidden_states_norms
        self.gradient_checkpointing = False

    @property
    def stages(self) -> Any:
        """The four stages; each has its blocks in `blocks`."""
        return self.encoder.layers

    def forward(self, images: Tensor, num_stages: int = 4) -> list[Tensor]:
        """Images [N, 3, H, W] to maps of strides 4, 8, 16 and 32, the first `num_stages` of them."""
        x, size = self.embeddings(images)
        maps = []
        for index, stage in enumerate(self.stages[:num_stages]):
            for block in stage.blocks:
                # Inside, the window must not shrink to small maps: its table of positions has one size.
                run = _Partitioned(block, size)
                if self.gradient_checkpointing and torch.is_grad_enabled():
                    x = checkpointed(run, x)
                else:
                    x = run(x)
            name = f"stage{index + 1}"
            out = self.norms[name](x) if name in self.norms else x
            maps.append(out.transpose(1, 2).unflatten(2, size))
            if stage.downsample is not None and index + 1 < num_stages:
                x = stage.downsample(x, size)
                size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        return maps


class _Partitioned(nn.Module):
    """A block with its map's size, as a module of one input."""

    def __init__(self, block: nn.Module, size: tuple[int, int]):
        super().__init__()
        self.block, self.size = block, size

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, self.size, always_partition=True)[0]


class LSSNeck(nn.Module):
    """Two maps to one of the finer one's size: enlarge, join, and two 3x3 convolutions with batch norms.

    Args:
        channels: of the finer and of the coarser map.
        out_channels: of the result.
    """

    def __init__(self, channels: tuple[int, int], out_channels: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before in (sum(channels), out_channels):
            conv = nn.Conv2d(before, out_channels, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Maps [N, c, h, w] and [N, c', h / 2, w / 2] (or smaller) to [N, out_channels, h, w]."""
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=True)
        return self.layers(torch.cat([fine, coarse], 1))


class StereoImageEncoder(nn.Module):
    """Images to the map that is lifted and the map that stereo compares.

    Args:
        backbone: one of `SWINS` or `RESNETS`.
        image_size: H and W.
        channels: of the lifted map.
        stages: which two of the backbone's stages (0..3) the neck joins; the finer one's stride is the result's.

    Raises:
        ValueError: an unknown backbone, or stages that are not two in rising order.

    Example:
        >>> encoder = StereoImageEncoder("tiny", (64, 96), channels=32, stages=(2, 3))
        >>> [tuple(m.shape) for m in encoder(torch.zeros(2, 3, 64, 96))]
        [(2, 32, 4, 6), (2, 8, 16, 24)]
    """

    def __init__(self, backbone: str, image_size: tuple[int, int], channels: int, stages: tuple[int, int] = (2, 3)):
        super().__init__()
        if len(stages) != 2 or not 0 <= stages[0] < stages[1] <= 3:
            raise ValueError(f"the neck joins two of the stages 0 to 3, the finer one first; got {stages}")
        self.backbone = Swin(backbone, image_size) if backbone in SWINS else ResNet(backbone)
        self.stages = tuple(stages)
        widths = self.backbone.channels
        self.neck = LSSNeck((widths[stages[0]], widths[stages[1]]), channels)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def stride(self) -> int:
        """Of the lifted map."""
        return STRIDES[self.stages[0]]

    @property
    def stereo_channels(self) -> int:
        """Of the map that stereo compares; its stride is 4."""
        return self.backbone.channels[0]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [N, 3, H, W] to the lifted map [N, channels, h, w] and the stereo map of stride 4."""
        maps = self.backbone(images.contiguous(memory_format=torch.channels_last), self.stages[1] + 1)
        return self.neck(maps[self.stages[0]], maps[self.stages[1]]), maps[0]

    def stereo_map(self, images: Tensor) -> Tensor:
        """The stereo map alone, without the work of the other stages."""
        return self.backbone(images.contiguous(memory_format=torch.channels_last), 1)[0]

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.backbone.gradient_checkpointing = enable
