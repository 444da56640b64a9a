"""OccDepth (Miao et al., 2023): semantic scene completion from a stereo pair, in plain PyTorch.

Legend: B samples, I pictures, V views, C channels, K classes, N voxels of the lifted volume, X Y Z voxels of the grid,
D depth bins, H W picture, h w feature map.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from syntheocc.occupancy.perception.backbones import forget_cast_weights
from syntheocc.occupancy.perception.occdepth.batch import StereoBatch
from syntheocc.occupancy.perception.occdepth.config import OccDepthConfig
from syntheocc.occupancy.perception.occdepth.depth_bins import expected_depth
from syntheocc.occupancy.perception.occdepth.depth_lifting import (
    PUBLISHED_GAIN,
    DepthFusion,
    depth_evidence,
    depth_half_extent,
    published_depth,
)
from syntheocc.occupancy.perception.occdepth.depth_net import DepthNet
from syntheocc.occupancy.perception.occdepth.geometry import Projection, StereoCameras, project_voxels
from syntheocc.occupancy.perception.occdepth.image_encoder import ImageNetwork
from syntheocc.occupancy.perception.occdepth.lifting import PixelLookup, lift_features, look_up
from syntheocc.occupancy.perception.occdepth.losses import DEPTH_STRIDE, occdepth_losses
from syntheocc.occupancy.perception.occdepth.virtual_view import second_view
from syntheocc.occupancy.perception.occdepth.volume_net import VolumeNet
from syntheocc.occupancy.perception.prediction import OccupancyPrediction
from syntheocc.occupancy.perception.recipes import TrainingRecipe
from syntheocc.occupancy.perception.storage import load_weights, read_folder, write_folder

__all__ = ["Lookup", "OccDepth", "OccDepthOutput"]


class OccDepthOutput(NamedTuple):
    """Everything that the losses and the prediction are made from."""

    logits: Tensor
    """[B, K, X, Y, Z] of the classes."""
    occupancy_logits: Tensor | None = None
    """[B, 2, X, Y, Z] of free and occupied, of a cascade."""
    occluded_logits: Tensor | None = None
    """[B, 2, X, Y, Z] of visible and occluded."""
    relation_logits: Tensor | None = None
    """[B, R, M, n] of the relation prior, voxels in the order of `OccDepthConfig.axes`."""
    depth_logits: Tensor | None = None
    """[B, I, D, h, w] of the pictures' depth."""


class Lookup(NamedTuple):
    """Where the voxels are in the pictures; fixed for a rig that does not move."""

    pixels: PixelLookup
    projection: Projection
    half_extent: Tensor
    """[B, V] of the voxels along the optical axes, metres."""
    intrinsics: Tensor
    """[B, V, 3, 3]."""
    shift: Tensor | None
    """[B] pixels that a point at 1 m moves by between the views, of a virtual second view."""


class OccDepth(nn.Module):
    """A stereo pair, or one picture, to the class of every voxel before it.

    Args:
        config: the network and its losses.

    Example:
        >>> model = OccDepth.from_preset("tiny").eval()
        >>> model.predict(batch.images, StereoCameras.of_batch(batch)).semantics.shape
        torch.Size([1, 64, 64, 8])
    """

    _image_mean: Tensor
    _image_std: Tensor

    def __init__(self, config: OccDepthConfig):
        super().__init__()
        self.config = config
        channels, shape = config.channels, config.volume_grid.shape
        scales = config.scales if config.lift == "flosp" else (*config.scales, DEPTH_STRIDE)
        self.image_network = ImageNetwork(config.backbone, channels, scales, config.decoder_channels)
        with_depth = config.lift == "flosp_depth"
        self.depth_net = DepthNet(channels, config.depth_channels, config.depth.number) if with_depth else None
        self.depth_fusion = DepthFusion(channels) if with_depth and config.depth_fusion == "residual" else None
        self.volume_net = VolumeNet(
            channels,
            (shape[config.axes[0]], shape[config.axes[1]], shape[config.axes[2]]),
            config.taxonomy.num_classes,
            upsample=config.project_scale == 2,
            relations=config.num_relations if config.relation_prior else 0,
            cascade=config.cascade,
            occluded=config.occluded_head,
        )
        self.volume_net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        for name in ("image_mean", "image_std"):
            values = torch.tensor(getattr(config, name)).view(3, 1, 1)
            self.register_buffer(f"_{name}", values, persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """RGB images [..., 3, H, W] on the scale 0..255, bytes or floats, as the network wants them."""
        return (images - self._image_mean) / self._image_std

    def lookup(self, cameras: StereoCameras) -> Lookup:
        """Where the voxels are in the pictures, for `forward`; make it once for a rig that does not move.

        Raises:
            ValueError: fewer cameras than the config has views.
        """
        config = self.config
        if cameras.velo2img.shape[1] < config.num_views:
            raise ValueError(f"the model has {config.num_views} views, the sample {cameras.velo2img.shape[1]} cameras")
        cameras = cameras.first(config.num_views)
        projection = project_voxels(cameras, config.volume_grid)
        return Lookup(
            look_up(projection, config.image_size, config.sampling, config.pattern),
            projection,
            depth_half_extent(cameras, config.volume_grid),
            cameras.intrinsics,
            cameras.ray_shift() if config.virtual_view else None,
        )

    def forward(self, images: Tensor, cameras: StereoCameras | Lookup, depth: Tensor | None = None) -> OccDepthOutput:
        """Images to logits.

        Args:
            images: [B, I, 3, H, W] RGB: uint8, or float already normalised (`normalise`). A model of one view takes
                the first.
            cameras: of the pictures, or what `lookup` made of them.
            depth: [B, D, H, W] metres, 0 none; read for a virtual second view by a sensor's depth only.

        Raises:
            ValueError: images of another size, too few of them, or no depth for a virtual view.
        """
        lookup = cameras if isinstance(cameras, Lookup) else self.lookup(cameras)
        maps = self.encode(images)
        features, logits = self.lift(maps, lookup, depth)
        answer = self.volume_net(features)
        back = [self.config.axes.index(axis) for axis in range(3)]

        def grid(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.permute(0, 1, *(axis + 2 for axis in back))

        classes = grid(answer.classes)
        assert classes is not None
        return OccDepthOutput(classes, grid(answer.occupancy), grid(answer.occluded), answer.relations, logits)

    def encode(self, images: Tensor) -> dict[int, Tensor]:
        """Feature maps {stride: [B, I, C, h, w]} of images; see `forward`."""
        config = self.config
        pictures = 1 if config.virtual_view else config.num_views
        if tuple(images.shape[2:]) != (3, *config.image_size) or images.shape[1] < pictures:
            raise ValueError(
                f"images must be [B, {pictures}, 3, {config.image_size[0]}, {config.image_size[1]}], got "
                f"{list(images.shape)}"
            )
        images = images[:, :pictures]
        if images.dtype == torch.uint8:
            images = self.normalise(images)
        images = images.to(next(self.image_network.parameters()).dtype)
        if config.detach_second_view and pictures == 2 and torch.is_grad_enabled():
            with torch.no_grad():
                second = self.image_network(images[:, 1])
            forget_cast_weights()
            first = self.image_network(images[:, 0])
            return {stride: torch.stack([first[stride], second[stride]], 1) for stride in first}
        # Both views at once: batch norms see them together, and one pass is faster than two.
        maps = self.image_network(images.flatten(0, 1))
        return {stride: features.unflatten(0, images.shape[:2]) for stride, features in maps.items()}

    def lift(
        self, maps: dict[int, Tensor], lookup: Lookup, depth: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The volume [B, C, X, Y, Z] (axes as the 3D network has them) of feature maps, and the depth's logits."""
        config, logits = self.config, None
        if self.depth_net is not None:
            features = maps[DEPTH_STRIDE]
            intrinsics = lookup.intrinsics[:, : features.shape[1]].flatten(0, 1)
            logits = self.depth_net(features.flatten(0, 1), intrinsics).unflatten(0, features.shape[:2])
        wanted = {stride: maps[stride] for stride in config.scales}
        if config.virtual_view:
            if config.virtual_depth == "predicted" and logits is not None:
                depth = expected_depth(logits[:, :1], config.depth, config.depth_spacing)
            if depth is None or lookup.shift is None:
                raise ValueError("a virtual second view needs the depth pictures of the first: depth [B, 1, H, W]")
            for stride, features in wanted.items():
                moved = second_view(
                    features[:, 0], depth[:, 0], lookup.shift, stride, config.virtual_warp == "published"
                )
                wanted[stride] = torch.stack([features[:, 0], moved], 1)
        volume = lift_features(wanted, lookup.pixels, config.view_fusion)  # [B, N, C]
        if logits is not None:
            volume = self._with_depth(volume, logits, lookup)
        volume = volume.unflatten(1, config.volume_grid.shape)
        return volume.permute(0, 4, *(axis + 1 for axis in config.axes)), logits

    def _with_depth(self, volume: Tensor, logits: Tensor, lookup: Lookup) -> Tensor:
        """Features [B, N, C] that the depth distributions of the pictures weigh."""
        config, pictures = self.config, logits.shape[1]
        projection = Projection(lookup.projection.pixels[:, :pictures], lookup.projection.depth[:, :pictures])
        probability = logits.float().softmax(2)
        how = (config.depth, config.depth_spacing)
        if self.depth_fusion is None:
            found = published_depth(probability, projection, *how, DEPTH_STRIDE, config.image_size)
            return volume * (PUBLISHED_GAIN * found)[..., None].to(volume.dtype)
        extent = lookup.half_extent[:, :pictures]
        evidence = depth_evidence(probability, projection, extent, *how, DEPTH_STRIDE, config.image_size)
        return self.depth_fusion(volume, evidence)

    def losses(self, output: OccDepthOutput, batch: StereoBatch) -> dict[str, Tensor]:
        """All loss terms and their sum under "loss"; see `occdepth_losses`."""
        return occdepth_losses(output, batch, self.config)

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        cameras: StereoCameras | Lookup,
        depth: Tensor | None = None,
        mirrored: bool = False,
    ) -> OccupancyPrediction:
        """The grids of a batch; see `forward`.

        Args:
            images: see `forward`.
            cameras: see `forward`; a `Lookup` cannot be mirrored.
            depth: see `forward`.
            mirrored: ask again with the pictures mirrored and take the mean of both answers, in twice the time.

        Raises:
            ValueError: the model is in training mode, where batch norms would use the batch; or a `Lookup` that is
                to be mirrored.
        """
        if self.training:
            raise ValueError("predictions need model.eval()")
        answer = self(images, cameras, depth).logits
        if mirrored:
            if isinstance(cameras, Lookup):
                raise ValueError("mirrored pictures need the cameras, not a lookup of them")
            turned = cameras.mirrored(self.config.image_size[1])
            again = self(images.flip(-1), turned, None if depth is None else depth.flip(-1)).logits
            answer = answer.float().softmax(1) + again.float().softmax(1)
        labels = answer.argmax(1).to(torch.uint8)
        return OccupancyPrediction(self.config.grid, self.config.taxonomy, labels)

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Recompute the blocks of pictures and volumes in the backward pass instead of keeping their activations."""
        self.image_network.gradient_checkpointing_enable(enable)
        self.volume_net.gradient_checkpointing_enable(enable)

    def parameter_groups(self, recipe: TrainingRecipe, learning_rate: float) -> list[dict[str, Any]]:
        """Trainable parameters for AdamW: the encoder at the recipe's `backbone_rate`, then the rest."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                rate = recipe.backbone_rate if name.startswith("image_network.encoder.") else 1.0
                groups.setdefault(rate, []).append(parameter)
        return [{"params": group, "lr": learning_rate * rate} for rate, group in groups.items()]

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> "OccDepth":
        """A new model with random weights.

        Args:
            name: a function of `presets`, e.g. ``"kitti_b7"``.
            changes: fields of the preset's `OccDepthConfig` to replace.
        """
        from syntheocc.occupancy.perception.occdepth.presets import preset

        return cls(preset(name, **changes).model)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: torch.device | str = "cpu") -> "OccDepth":
        """The model that `save_pretrained` wrote, in evaluation mode.

        Args:
            path: its folder, or a hub id ``owner/name``.
            device: where the weights go.

        Raises:
            ValueError: no such folder, another kind of model, or weights that are incomplete or of another shape.
        """
        config, weights = read_folder(path, cls.__name__, OccDepthConfig.from_dict, device)
        model = cls(config)
        load_weights(model, weights, str(path))
        return model.to(device).eval()

    @classmethod
    def from_original(cls, path: str | Path, name: str = "kitti_b3_legacy", **changes: Any) -> "OccDepth":
        """Released weights, in evaluation mode.

        Args:
            path: the released ``.ckpt`` file.
            name: the preset it was trained as; one that computes as published.
            changes: fields of the preset's config to replace.

        Raises:
            ValueError: no such file, its tensors are not those of the preset, or a preset that computes otherwise
                than the weights were trained; to do that on purpose, name its fields in `changes`.
        """
        from syntheocc.occupancy.perception.occdepth.convert import read_released
        from syntheocc.occupancy.perception.occdepth.presets import PRESETS, preset

        if f"{name}_legacy" in PRESETS:
            # Some have the same tensors: they would load and quietly predict something else.
            raise ValueError(
                f"{path}: released weights were trained as {name}_legacy computes, {name} is corrected; give the "
                f"preset {name}_legacy"
            )
        config = preset(name, **changes).model
        model = cls(config)
        load_weights(model, read_released(path, config), str(path))
        return model.eval()

    def save_pretrained(self, path: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder."""
        write_folder(path, type(self).__name__, self.config.to_dict(), self.state_dict())
