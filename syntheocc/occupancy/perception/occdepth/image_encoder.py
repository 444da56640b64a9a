"""The 2D network of OccDepth: an EfficientNet, and a decoder that takes its maps back to the picture's size.

The EfficientNets are transformers' own; what is ours is their padding (TensorFlow's "same", computed from the input:
the extra row and column at the bottom and right) and their batch norms' momentum. The head of the classifier is left
out, and so is the norm behind the last convolution, which the published network carries without using it.

Legend: N images, C channels, F width of the decoder, H W picture, h w of a map. Source: specs/occdepth.md 2.1.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syntheocc.occupancy.perception.backbones import checkpointed

__all__ = ["ENCODERS", "STRIDES", "ImageDecoder", "ImageEncoder", "ImageNetwork", "SamePadding"]

# Name -> factors of width and depth (Tan and Le, ICML 2019).
ENCODERS: dict[str, tuple[float, float]] = {
    "efficientnet_b0": (1.0, 1.0),
    "efficientnet_b3": (1.2, 1.4),
    "efficientnet_b4": (1.4, 1.8),
    "efficientnet_b5": (1.6, 2.2),
    "efficientnet_b7": (2.0, 3.1),
    # Ours, for training from scratch, and one for tests.
    "small": (0.75, 1.0),
    "tiny": (0.25, 0.3),
}
STRIDES = (1, 2, 4, 8)
"""Of the decoder's maps."""
# Stages whose maps the decoder joins, at strides 2, 4, 8 and 16.
_TAPS = (0, 1, 2, 4)


class SamePadding(nn.Module):
    """Pads so that a convolution without padding gives ceil(size / stride); the odd one at the bottom and right.

    Args:
        kernel: its size.
        stride: its stride.
    """

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] to a larger map."""
        missing = [max(0, (-(-size // self.stride) - 1) * self.stride + self.kernel - size) for size in x.shape[-2:]]
        (top, bottom), (left, right) = ((m // 2, m - m // 2) for m in missing)
        return F.pad(x, (left, right, top, bottom))


class ImageEncoder(nn.Module):
    """An EfficientNet that returns its maps.

    Args:
        name: one of `ENCODERS`.

    Raises:
        ValueError: another name.

    Example:
        >>> [tuple(m.shape[1:]) for m in ImageEncoder("efficientnet_b7")(torch.zeros(1, 3, 370, 1220))]
        [(32, 185, 610), (48, 93, 305), (80, 47, 153), (224, 24, 77), (2560, 12, 39)]
    """

    def __init__(self, name: str):
        super().__init__()
        if name not in ENCODERS:
            raise ValueError(f"there is no image encoder {name!r}; there are {', '.join(ENCODERS)}")
        from transformers import EfficientNetConfig, EfficientNetModel

        width, depth = ENCODERS[name]
        config = EfficientNetConfig(
            width_coefficient=width,
            depth_coefficient=depth,
            drop_connect_rate=0.0,
            batch_norm_momentum=0.1,
        )
        network = EfficientNetModel(config)
        self.name = name
        self.embeddings = network.embeddings
        self.blocks = network.encoder.blocks
        self.top_conv = network.encoder.top_conv
        self.embeddings.padding = SamePadding(3, 2)
        for module in self.modules():
            if hasattr(module, "depthwise_conv_pad"):
                convolution = module.depthwise_conv
                if isinstance(convolution, nn.Conv2d) and convolution.stride != (1, 1):
                    module.depthwise_conv_pad = SamePadding(convolution.kernel_size[0], convolution.stride[0])
            if isinstance(module, nn.BatchNorm2d):
                module.momentum, module.eps = 0.1, 1e-3
        repeats = [-int(-depth * number // 1) for number in config.num_block_repeats]
        ends = [sum(repeats[: stage + 1]) - 1 for stage in range(len(repeats))]
        if ends[-1] + 1 != len(self.blocks):
            raise RuntimeError(f"{name} has {len(self.blocks)} blocks, its stages {repeats}")  # transformers changed
        self._taps = tuple(ends[stage] for stage in _TAPS)
        self.gradient_checkpointing = False

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps, those of `forward`."""
        outs = [self.blocks[index].projection.project_conv.out_channels for index in self._taps]
        return (*outs, self.top_conv.out_channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] to maps of strides 2, 4, 8, 16 and 32, each ceil(size / stride)."""
        return list(self._maps(images))

    def _maps(self, images: Tensor) -> Iterator[Tensor]:
        x = self.embeddings(images)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        for index, block in enumerate(self.blocks):
            x = checkpointed(block, x) if recompute else block(x)
            if index in self._taps:
                yield x
        yield self.top_conv(x)


class _UpBlock(nn.Module):
    """Enlarges a map to the size of a finer one, joins them, and convolves twice."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before in (in_channels, channels):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.LeakyReLU(inplace=True)]
        self.convs = nn.Sequential(*layers)
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        """[N, c, h, w] and [N, d, 2 h, 2 w] to [N, channels, 2 h, 2 w]."""
        x = F.interpolate(x, size=finer.shape[-2:], mode="bilinear", align_corners=True)
        joined = torch.cat([x, finer.to(x.dtype)], 1)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpointed(self.convs, joined)
        return self.convs(joined)


class ImageDecoder(nn.Module):
    """The maps of an encoder and the picture itself, joined coarse to fine, as in AdaBins (Bhat et al., CVPR 2021).

    Args:
        channels: of the encoder's maps, fine to coarse.
        width: F; the levels have F / 2, F / 4, ... channels.
        out_channels: C of the results.
        scales: strides of the results, some of `STRIDES`.
    """

    def __init__(self, channels: tuple[int, ...], width: int, out_channels: int, scales: tuple[int, ...]):
        super().__init__()
        # The published padding of a 1x1 convolution: a border of one cell, which the enlarging then squeezes in.
        self.bottleneck = nn.Conv2d(channels[-1], width, 1, padding=1)
        # Down to the finest result; finer levels would learn nothing.
        strides = tuple(stride for stride in (16, 8, 4, 2, 1) if stride >= min(scales))
        skips = (*reversed(channels[:-1]), 3)[: len(strides)]
        self.levels = nn.ModuleDict(
            {
                str(stride): _UpBlock(width // 2**level + skip, width // 2 ** (level + 1))
                for level, (stride, skip) in enumerate(zip(strides, skips, strict=True))
            }
        )
        self.outputs = nn.ModuleDict(
            {
                str(stride): nn.Conv2d(width // 2 ** (level + 1), out_channels, 1)
                for level, stride in enumerate(strides)
                if stride in scales
            }
        )

    def forward(self, images: Tensor, maps: list[Tensor]) -> dict[int, Tensor]:
        """The picture [N, 3, H, W] and the encoder's maps to {stride: [N, C, h, w]}."""
        x = self.bottleneck(maps[-1])
        results: dict[int, Tensor] = {}
        for (stride, level), finer in zip(self.levels.items(), (*reversed(maps[:-1]), images), strict=False):
            x = level(x, finer)
            if stride in self.outputs:
                results[int(stride)] = self.outputs[stride](x)
        return results


class ImageNetwork(nn.Module):
    """Encoder and decoder, in channels-last memory throughout.

    Args:
        backbone: one of `ENCODERS`.
        out_channels: C of the maps.
        scales: strides of the maps.
        width: F of the decoder; None: the channels of the encoder's last map, as published.

    Example:
        >>> network = ImageNetwork("tiny", 8, (1, 2, 4, 8))
        >>> {stride: tuple(m.shape) for stride, m in network(torch.zeros(2, 3, 64, 96)).items()}
        {8: (2, 8, 8, 12), 4: (2, 8, 16, 24), 2: (2, 8, 32, 48), 1: (2, 8, 64, 96)}
    """

    def __init__(self, backbone: str, out_channels: int, scales: tuple[int, ...], width: int | None = None):
        super().__init__()
        self.encoder = ImageEncoder(backbone)
        channels = self.encoder.channels
        self.decoder = ImageDecoder(channels, width or channels[-1], out_channels, scales)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Normalised images [N, 3, H, W] to {stride: [N, C, ceil(H / stride), ceil(W / stride)]}."""
        images = images.contiguous(memory_format=torch.channels_last)
        return self.decoder(images, self.encoder(images))

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.encoder.gradient_checkpointing = enable
        for level in self.decoder.levels.values():
            assert isinstance(level, _UpBlock)
            level.gradient_checkpointing = enable
