"""The network that OccFlowNet, RenderOcc and SplattingOcc share: images of several times to a volume of features.

BEVDet4D with BEVStereo's depth and no collapse of the height: each frame's features are lifted into the current
frame's grid, the volumes of all frames are joined, older first, and convolved in 3D
(specs/occflownet_splattingocc.md 2). Only the current frame trains; older ones run without gradients.

Legend: B samples, T frames (the current one first), V views, D depth bins, C channels, h w feature map, X Y Z voxels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from syntheocc.engine.dropout import Generators, Seeds, fold, seeds_of
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.backbones import checkpointed, forget_cast_weights
from syntheocc.occupancy.perception.depth_net import DepthNet
from syntheocc.occupancy.perception.image_encoders import StereoImageEncoder
from syntheocc.occupancy.perception.stereo import cost_volume, current2previous
from syntheocc.occupancy.perception.view_transform import DepthBins, LiftCameras, image_to_grid, lift_splat
from syntheocc.occupancy.perception.volume_encoder import BasicBlock3D, VolumeEncoder

__all__ = ["OccupancyTrunk", "TrunkConfig", "TrunkGeometry", "TrunkOutput"]


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """Everything that the trunk's shape depends on; defaults are the published ones.

    Raises:
        ValueError: values that do not fit together.
    """

    grid: GridSpec
    """The volume's grid."""
    image_size: tuple[int, int] = (512, 1408)
    """H and W of the network's input."""
    backbone: str = "swin_base"
    neck_stages: tuple[int, int] = (2, 3)
    """Stages of the backbone that the neck joins; the finer one's stride is that of the lifted features."""
    neck_channels: int = 512
    depth: DepthBins = DepthBins()
    depth_channels: int = 512
    """Inside the depth network."""
    aspp_channels: int = 96
    context_channels: int = 32
    """C of a frame's volume."""
    bev_frames: int = 2
    """Frames whose volumes are joined, the current one included."""
    stereo: bool = True
    """Compare each frame with the one before it; the oldest volume needs one more frame for it."""
    encoder_channels: tuple[int, ...] = (32, 64, 128)
    encoder_blocks: tuple[int, ...] = (1, 2, 4)
    out_channels: int = 32
    """C of the result."""
    legacy: bool = False
    """Published geometry: see `view_transform` and `stereo`."""

    def __post_init__(self):
        for name in ("image_size", "neck_stages", "encoder_channels", "encoder_blocks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("neck_channels", "depth_channels", "aspp_channels", "context_channels", "bev_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if any(size < 32 or size % 32 for size in self.image_size):
            raise ValueError(f"image_size must be multiples of 32, got {self.image_size}")
        if len(self.encoder_channels) != len(self.encoder_blocks) or not self.encoder_channels:
            raise ValueError(
                f"encoder_channels {self.encoder_channels} and encoder_blocks {self.encoder_blocks} need one number a "
                "level"
            )

    @property
    def num_frames(self) -> int:
        """T: images of a camera, the current one included."""
        return self.bev_frames + int(self.stereo)


class TrunkGeometry(NamedTuple):
    """What the trunk reads of cameras; made apart from it, for inverting matrices can wait for the device."""

    img2grid: Tensor
    """float32 [B, F, V, 4, 4] of the F = bev_frames newest frames, see `image_to_grid`."""
    to_previous: Tensor
    """float32 [B, F, V, 4, 4] from their pixels to those of the frame before each (`current2previous`); zeros without
    stereo."""
    vectors: Tensor
    """float32 [B, V, 27], see `LiftCameras.vectors`."""


class TrunkOutput(NamedTuple):
    """What the heads and the depth loss are made from."""

    volume: Tensor
    """[B, C, X, Y, Z]."""
    depth_logits: Tensor
    """[B, V, D, h, w] of the current frame, before the softmax."""


class OccupancyTrunk(nn.Module):
    """Images and cameras to a volume.

    Args:
        config: shapes.

    Example:
        >>> trunk = OccupancyTrunk(config)
        >>> trunk(images, LiftCameras.of_batch(batch)).volume.shape
        torch.Size([1, 32, 200, 200, 16])
    """

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.config = config
        self.image_encoder = StereoImageEncoder(
            config.backbone, config.image_size, config.neck_channels, config.neck_stages
        )
        self.depth_net = DepthNet(
            config.neck_channels,
            config.depth_channels,
            config.context_channels,
            config.depth.number,
            config.aspp_channels,
            self.image_encoder.stride if config.stereo else None,
        )
        self.pre_process = BasicBlock3D(config.context_channels, config.context_channels, project=True)
        self.volume_encoder = VolumeEncoder(
            config.context_channels * config.bev_frames,
            config.encoder_channels,
            config.encoder_blocks,
            config.out_channels,
        )
        self.gradient_checkpointing = False

    @property
    def stride(self) -> int:
        """Of the depth map."""
        return self.image_encoder.stride

    def geometry(self, cameras: LiftCameras) -> TrunkGeometry:
        """What the network reads of a batch's cameras.

        Raises:
            ValueError: cameras of another number of frames than the config's.
        """
        config, shape = self.config, tuple(cameras.ego2img.shape)
        if shape[1] != config.num_frames:
            raise ValueError(f"ego2img must be [B, {config.num_frames}, V, 4, 4], got {shape}")
        current = cameras.ego2img[:, : config.bev_frames]
        if config.stereo:
            to_previous = current2previous(current, cameras.ego2img[:, 1 : 1 + config.bev_frames])
        else:
            to_previous = torch.zeros_like(current, dtype=torch.float32)
        return TrunkGeometry(image_to_grid(current), to_previous, cameras.vectors())

    def forward(
        self, images: Tensor, cameras: LiftCameras | TrunkGeometry, generators: Generators = None
    ) -> TrunkOutput:
        """Encode a batch.

        Args:
            images: [B, T, V, 3, H, W], normalised.
            cameras: of all of them, or what `geometry` made of them.
            generators: one a sample, whose seeds the dropout of the depth network draws with; None: torch's own.

        Raises:
            ValueError: another number of frames or another size than the config's.
        """
        config, seeds = self.config, seeds_of(generators)
        geometry = cameras if isinstance(cameras, TrunkGeometry) else self.geometry(cameras)
        batch, views = geometry.vectors.shape[:2]
        wanted = (batch, config.num_frames, views, 3, *config.image_size)
        if tuple(images.shape) != wanted:
            raise ValueError(f"images of these cameras must be {list(wanted)}, got {list(images.shape)}")
        volumes: list[Tensor] = []
        reference: Tensor | None = None
        if config.stereo:
            with torch.no_grad():
                reference = self.image_encoder.stereo_map(images[:, config.bev_frames].flatten(0, 1))
        logits = None
        for t in range(config.bev_frames - 1, -1, -1):
            if t == 0:
                forget_cast_weights()
            with torch.set_grad_enabled(torch.is_grad_enabled() and t == 0):
                volume, logits, reference = self._frame(images[:, t], geometry, t, reference, fold(seeds, t))
            volumes.append(volume)
        assert logits is not None
        return TrunkOutput(self.volume_encoder(torch.cat(volumes, 1)), logits)

    def _frame(
        self,
        images: Tensor,
        geometry: TrunkGeometry,
        t: int,
        reference: Tensor | None,
        seeds: Seeds = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One frame's volume [B, C, X, Y, Z] in the current grid, its depth logits, and its stereo map."""
        config, (batch, views) = self.config, images.shape[:2]
        features, stereo = self.image_encoder(images.flatten(0, 1))
        cost = None
        if reference is not None:
            matrix = geometry.to_previous[:, t].flatten(0, 1)
            cost = cost_volume(stereo, reference, matrix, config.depth, config.image_size, config.legacy)
        context, logits = self.depth_net(features, geometry.vectors.flatten(0, 1), cost, seeds)
        logits = logits.unflatten(0, (batch, views))
        depth = logits.float().softmax(2)
        volume = lift_splat(
            depth,
            context.unflatten(0, (batch, views)).to(depth.dtype),
            geometry.img2grid[:, t],
            config.depth,
            config.grid,
            config.image_size,
            config.legacy,
        )
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpointed(self.pre_process, volume), logits, stereo.detach()
        return self.pre_process(volume), logits, stereo.detach()

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Recompute the image network's and the volumes' blocks in the backward pass."""
        self.gradient_checkpointing = enable
        self.volume_encoder.gradient_checkpointing = enable
        self.image_encoder.gradient_checkpointing_enable(enable)
