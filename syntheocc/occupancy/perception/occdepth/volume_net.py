"""The 3D network: a U-Net of bottlenecks with the relation prior at its bottom, and heads at the grid's full size.

Legend: B samples, C channels, K classes, X Y Z voxels of the grid, R M N as in `relation` (specs/occdepth.md 2.6).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syntheocc.occupancy.perception.backbones import checkpointed
from syntheocc.occupancy.perception.occdepth.relation import RelationPrior
from syntheocc.occupancy.perception.occdepth.volume_blocks import (
    ASPP3D,
    Blocks,
    Downsample3D,
    Upsample3D,
    process,
)

__all__ = ["VolumeHead", "VolumeLogits", "VolumeNet"]


class VolumeLogits(NamedTuple):
    """What the 3D network answers, at the grid's size."""

    classes: Tensor
    """[B, K, X, Y, Z]."""
    occupancy: Tensor | None
    """[B, 2, X, Y, Z] free and occupied, of a cascade."""
    occluded: Tensor | None
    """[B, 2, X, Y, Z] visible and occluded."""
    relations: Tensor | None
    """[B, R, M, N] of the relation prior."""


class VolumeHead(nn.Module):
    """Features to logits: a convolution, dilated branches, and a convolution for each answer.

    Args:
        channels: C.
        classes: K.
        cascade: decide occupied or free first and show the classes the answer.
        occluded: also say which voxels are occluded.
    """

    def __init__(self, channels: int, classes: int, cascade: bool = False, occluded: bool = False):
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, padding=1)
        self.aspp = ASPP3D(channels)
        self.occupancy = nn.Conv3d(channels, 2, 3, padding=1) if cascade else None
        self.classes = nn.Conv3d(channels + 2 * cascade, classes, 3, padding=1)
        self.occluded = nn.Conv3d(channels, 2, 3, padding=1) if occluded else None
        self.gradient_checkpointing = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """[B, C, X, Y, Z] to logits of the classes, of occupied or free, and of occluded or not."""
        x = F.relu(self.conv(x))
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        x = checkpointed(self.aspp, x) if recompute else self.aspp(x)
        occluded = None if self.occluded is None else self.occluded(x)
        occupancy = None
        if self.occupancy is not None:
            occupancy = self.occupancy(x)
            x = torch.cat([x, occupancy.float().softmax(1).to(x.dtype)], 1)
        return self.classes(x), occupancy, occluded


class VolumeNet(nn.Module):
    """A volume of features to logits of the full grid.

    Args:
        channels: C of the volume.
        shape: X, Y, Z of the volume, as the network sees the axes; multiples of 4.
        classes: K.
        upsample: the grid has twice as many voxels along each axis; the head has C / 2 channels then.
        relations: R of the relation prior at the bottom; 0: none.
        cascade, occluded: see `VolumeHead`.

    Raises:
        ValueError: a shape that cannot be halved twice, or channels that are no multiple of 4.
    """

    def __init__(
        self,
        channels: int,
        shape: tuple[int, int, int],
        classes: int,
        upsample: bool = True,
        relations: int = 4,
        cascade: bool = False,
        occluded: bool = False,
    ):
        super().__init__()
        if any(size % 4 for size in shape) or channels % 4:
            raise ValueError(
                f"a volume of {tuple(shape)} voxels and {channels} channels: both are multiples of 4, for the volume "
                "is halved twice and bottlenecks have a quarter of the channels"
            )
        self.level1 = Blocks(*process(channels), Downsample3D(channels))
        self.level2 = Blocks(*process(2 * channels), Downsample3D(2 * channels))
        bottom = (shape[0] // 4, shape[1] // 4, shape[2] // 4)
        self.relation = RelationPrior(4 * channels, bottom, relations) if relations else None
        self.up2 = Upsample3D(4 * channels, 2 * channels)
        self.up1 = Upsample3D(2 * channels, channels)
        self.up0 = Upsample3D(channels, channels // 2) if upsample else None
        self.head = VolumeHead(channels // 2 if upsample else channels, classes, cascade, occluded)
        self.gradient_checkpointing = False

    def forward(self, volume: Tensor) -> VolumeLogits:
        """[B, C, X, Y, Z] to logits."""
        half = self.level1(volume)
        quarter = self.level2(half)
        relations = None
        if self.relation is not None:
            quarter, relations = self.relation(quarter)
        half = self.up2(quarter) + half
        x = self.up1(half) + volume
        if self.up0 is not None:
            recompute = self.gradient_checkpointing and torch.is_grad_enabled()
            x = checkpointed(self.up0, x) if recompute else self.up0(x)
        classes, occupancy, occluded = self.head(x)
        return VolumeLogits(classes, occupancy, occluded, relations)

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations."""
        self.gradient_checkpointing = enable
        self.head.gradient_checkpointing = enable
        for level in (self.level1, self.level2):
            level.gradient_checkpointing = enable
