"""Image networks of the perception models: a backbone and a feature pyramid.

The residual networks are transformers' own (stride in the 3x3 convolution, as torchvision and mmdetection's "pytorch"
style), walked block by block here so that they can be checkpointed and compiled without its output machinery. The
pyramid is that of Lin et al. 2017 as mmdetection builds it. `backbone_weights` loads published weights.

Legend: N images, D channels of the pyramid, h w of a map.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = [
    "RESNETS",
    "STRIDES",
    "FeaturePyramid",
    "ImageEncoder",
    "ResNet",
    "checkpointed",
    "fold_batch_norms",
    "frozen_statistics",
]

# (channels of the stem, channels of the stages, blocks of the stages, kind of block)
RESNETS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], str]] = {
    "resnet18": (64, (64, 128, 256, 512), (2, 2, 2, 2), "basic"),
    "resnet34": (64, (64, 128, 256, 512), (3, 4, 6, 3), "basic"),
    "resnet50": (64, (256, 512, 1024, 2048), (3, 4, 6, 3), "bottleneck"),
    "resnet101": (64, (256, 512, 1024, 2048), (3, 4, 23, 3), "bottleneck"),
    # Ours, for training from scratch: 6.3 million parameters, 0.5 million, and one for tests.
    "small": (32, (48, 96, 192, 384), (2, 2, 2, 2), "basic"),
    "nano": (16, (24, 48, 72, 96), (2, 2, 2, 2), "basic"),
    "tiny": (8, (8, 16, 24, 32), (1, 1, 1, 1), "basic"),
}
STRIDES = (4, 8, 16, 32)


class ResNet(nn.Module):
    """A residual network that returns the maps of its four stages.

    Args:
        name: one of `RESNETS`.

    Raises:
        ValueError: another name.
    """

    def __init__(self, name: str):
        super().__init__()
        if name not in RESNETS:
            raise ValueError(f"there is no backbone {name!r}; there are {', '.join(RESNETS)}")
        from transformers import AutoBackbone, ResNetConfig

        stem, channels, depths, kind = RESNETS[name]
        config = ResNetConfig(
            embedding_size=stem, hidden_sizes=list(channels), depths=list(depths), layer_type=kind, hidden_act="relu"
        )
        network = AutoBackbone.from_config(config)
        self.name, self.channels = name, channels
        self.embedder, self.encoder = network.embedder, network.encoder
        self.gradient_checkpointing = False

    @property
    def stages(self) -> Any:
        """The four stages; each has its blocks in `layers`."""
        return self.encoder.stages

    def forward(self, images: Tensor, num_stages: int = 4) -> list[Tensor]:
        """Images [N, 3, H, W] to maps of strides 4, 8, 16 and 32, the first `num_stages` of them."""
        x = self.embedder(images)
        maps = []
        for stage in self.stages[:num_stages]:
            for block in stage.layers:
                if self.gradient_checkpointing and torch.is_grad_enabled():
                    x = checkpointed(block, x)
                else:
                    x = block(x)
            maps.append(x)
        return maps


class FeaturePyramid(nn.Module):
    """Top-down feature pyramid: 1x1 lateral convolutions, nearest upsampling, 3x3 output convolutions.

    Args:
        channels: of the incoming maps, fine to coarse.
        dims: D of the outgoing ones.
        num_levels: how many maps go out, from the finest on.

    Raises:
        ValueError: more levels than maps.
    """

    def __init__(self, channels: Sequence[int], dims: int, num_levels: int | None = None):
        super().__init__()
        num_levels = len(channels) if num_levels is None else num_levels
        if not 1 <= num_levels <= len(channels):
            raise ValueError(f"a pyramid of {len(channels)} maps has 1 to {len(channels)} levels, not {num_levels}")
        self.lateral_convs = nn.ModuleList(nn.Conv2d(c, dims, 1) for c in channels)
        self.fpn_convs = nn.ModuleList(nn.Conv2d(dims, dims, 3, padding=1) for _ in range(num_levels))
        for conv in (*self.lateral_convs, *self.fpn_convs):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [N, c, h, w] to maps [N, D, h, w] of the same sizes."""
        merged = [conv(level) for conv, level in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            # By size, not by factor: an odd map is half of its finer one, rounded up.
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        return [conv(level) for conv, level in zip(self.fpn_convs, merged, strict=False)]


class ImageEncoder(nn.Module):
    """Backbone and feature pyramid, in channels-last memory throughout.

    New ones have random weights: everything trains, batch normalisation too. Published weights
    (`backbone_weights.load_backbone_weights`) bring the published recipe with them (`freeze`).

    Args:
        backbone: one of `RESNETS`.
        dims: D, channels of the maps.
        num_levels: how many maps (strides 4, 8, 16, 32), from the finest on.

    Raises:
        ValueError: an unknown backbone or number of levels.

    Example:
        >>> [tuple(m.shape) for m in ImageEncoder("tiny", dims=32)(torch.zeros(2, 3, 64, 96))]
        [(2, 32, 16, 24), (2, 32, 8, 12), (2, 32, 4, 6), (2, 32, 2, 3)]
    """

    def __init__(self, backbone: str, dims: int = 256, num_levels: int = 4):
        super().__init__()
        self.backbone = ResNet(backbone)
        self.neck = FeaturePyramid(self.backbone.channels, dims, num_levels)
        self.norm_eval = False
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] to `num_levels` maps [N, D, h, w], channels last."""
        return self.neck(self.backbone(images.contiguous(memory_format=torch.channels_last)))

    def freeze(self, stages: int = 1, norm_eval: bool = True) -> None:
        """Keep the stem and the first `stages` stages as they are, and all running statistics of batch norms.

        With pretrained weights and few images a step, statistics of the batch are worse than the ones that came along.
        The affine parameters of the other stages' norms still train. This stays so in `train()`.

        Raises:
            ValueError: more stages than there are.
        """
        if not 0 <= stages <= len(self.backbone.stages):
            raise ValueError(f"{stages} stages cannot be frozen; the backbone has {len(self.backbone.stages)}")
        for module in (self.backbone.embedder, *self.backbone.stages[:stages]):
            module.requires_grad_(False)
        self.norm_eval = norm_eval
        self.train(self.training)

    def train(self, mode: bool = True) -> "ImageEncoder":
        """Switch to training; batch norms stay in evaluation mode after `freeze`."""
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Recompute each residual block in the backward pass instead of keeping its activations."""
        self.backbone.gradient_checkpointing = enable


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms inside normalise by the batch, but leave their running statistics and counters as they are."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def forget_cast_weights() -> None:
    """To be called between a pass without gradients and one with them, where one autocast holds both.

    Autocast remembers the weights that it has cast. Before pytorch/pytorch#165068 those of a pass without gradients
    served the next one too, whose weights then got none (pytorch/pytorch#112583).
    """
    if not torch.compiler.is_compiling():
        torch.clear_autocast_cache()


def checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """The block's output; its activations are computed again in the backward pass, without counting a batch twice."""
    if not any(isinstance(m, _BatchNorm) and m.training for m in block.modules()):
        return checkpoint(block, x, use_reentrant=False)

    def contexts() -> tuple[Any, Any]:  # of the first pass and of the second, which must not count the batch again
        return nullcontext(), frozen_statistics(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Merge every batch norm of a network of this file into the convolution before it, in place, for inference.

    Returns:
        The module.

    Raises:
        ValueError: it is in training mode, where the norms would use the batch.
    """
    if module.training:
        raise ValueError("batch norms can be folded after model.eval() only")
    for child in module.modules():
        conv, norm = getattr(child, "convolution", None), getattr(child, "normalization", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            child.convolution = nn.utils.fuse_conv_bn_eval(conv, norm)
            child.normalization = nn.Identity()
    return module
