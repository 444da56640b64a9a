"""SparseOcc (Liu et al., ECCV 2024): fully sparse occupancy and panoptic occupancy from cameras, in plain PyTorch.

Legend: B samples, T frames (the current one first), V views, D channels, h w of a feature map, X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syntheocc.engine.dropout import Generators, seeds_of
from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.perception.backbone_weights import BackboneReport, load_backbone_weights
from syntheocc.occupancy.perception.backbones import ImageEncoder
from syntheocc.occupancy.perception.prediction import OccupancyPrediction
from syntheocc.occupancy.perception.sparseocc import presets
from syntheocc.occupancy.perception.sparseocc.config import SparseOccConfig
from syntheocc.occupancy.perception.sparseocc.convert import read_released
from syntheocc.occupancy.perception.sparseocc.criterion import SparseOccCriterion
from syntheocc.occupancy.perception.sparseocc.inference import predict_grids
from syntheocc.occupancy.perception.sparseocc.mask_decoder import MaskDecoder, MaskPrediction
from syntheocc.occupancy.perception.sparseocc.presets import SparseOccRecipe
from syntheocc.occupancy.perception.sparseocc.sampling import ImageFeatures
from syntheocc.occupancy.perception.sparseocc.voxel_decoder import SparseVoxelDecoder, StageOutput
from syntheocc.occupancy.perception.storage import load_weights, read_folder, write_folder
from syntheocc.occupancy.taxonomy import UNKNOWN


@dataclass
class SparseOccOutput:
    """Everything that the losses and the prediction are made from."""

    stages: list[StageOutput]
    """The kept voxels of each stage, coarse to fine."""
    predictions: list[MaskPrediction]
    """Classes and masks over the last stage's voxels; the last prediction is the answer."""


class SparseOccHead(nn.Module):
    """What follows the image network: voxel decoder and mask decoder."""

    def __init__(self, config: SparseOccConfig):
        super().__init__()
        self.voxel_decoder = SparseVoxelDecoder(config)
        self.mask_decoder = MaskDecoder(config)

    def forward(self, images: ImageFeatures, generator: Generators = None) -> SparseOccOutput:
        """Decode a batch's feature maps."""
        stages = self.voxel_decoder(images, seeds_of(generator))
        return SparseOccOutput(stages, self.mask_decoder(stages[-1], images, generator))


class SparseOcc(nn.Module):
    """Images of all cameras and frames to an occupancy grid.

    Args:
        config: the network and its losses.
        image_encoder: from images [N, 3, H, W] to `config.num_levels` maps [N, D, h, w]; None builds
            `config.backbone` with a feature pyramid, with random weights.

    Example:
        >>> model = SparseOcc.from_preset("tiny").eval()
        >>> model.predict(images, ego2img).semantics.shape
        torch.Size([1, 40, 40, 8])
    """

    def __init__(self, config: SparseOccConfig, image_encoder: ImageEncoder | None = None):
        super().__init__()
        self.config = config
        self.image_encoder = image_encoder or ImageEncoder(config.backbone, config.embed_dims, config.num_levels)
        self.head = SparseOccHead(config)
        self.criterion = SparseOccCriterion(config)
        if config.frozen_stages is not None:
            self.image_encoder.freeze(config.frozen_stages)

    def normalise(self, images: Tensor) -> Tensor:
        """RGB images [..., 3, H, W] on the scale 0..255, bytes or floats, as the network wants them."""
        mean, std = (constant(v, images.device) for v in (self.config.image_mean, self.config.image_std))
        return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Feature maps of images.

        Args:
            images: [..., 3, H, W] RGB: uint8, or float already normalised (`normalise`).

        Returns:
            L tensors [..., h, w, D], channels last, the form that sampling reads and that is cached over time.

        Raises:
            ValueError: images of another size.
        """
        if tuple(images.shape[-3:]) != (3, *self.config.image_size):
            raise ValueError(f"images must be [..., 3, {self.config.image_size}], got {tuple(images.shape)}")
        if images.dtype == torch.uint8:
            images = self.normalise(images)
        dtype = next(self.image_encoder.parameters()).dtype
        maps = self.image_encoder(images.flatten(0, -4).to(dtype))
        return [level.permute(0, 2, 3, 1).unflatten(0, images.shape[:-3]) for level in maps]

    def decode(
        self,
        maps: Sequence[Tensor],  # L x [B, T, V, h, w, D]
        ego2img: Tensor,  # [B, T, V, 4, 4]
        generator: Generators = None,
    ) -> SparseOccOutput:
        """Run the head on feature maps, made by `encode` at any time.

        Args:
            maps: from `encode`, the current frame first.
            ego2img: from the current frame's grid frame (the ego frame, or the one of ``config.grid``) to
                (u*z, v*z, z, 1) pixels of the network's input at each image's own time and pose. An all-zero matrix
                says that the camera is missing.
            generator: draws points in the masks while training; one for the batch, or one a sample, which also fixes
                the dropout of each sample.

        Raises:
            ValueError: another number of frames than the config's, or shapes that do not belong together.
        """
        if ego2img.ndim != 5 or ego2img.shape[-2:] != (4, 4) or ego2img.shape[1] != self.config.num_frames:
            raise ValueError(
                f"ego2img must be [B, {self.config.num_frames}, V, 4, 4] (this model reads {self.config.num_frames} "
                f"frames; repeat the last where history is short), got {tuple(ego2img.shape)}"
            )
        images = ImageFeatures(maps, ego2img, self.config.image_size, legacy=self.config.legacy)
        return self.head(images, generator)

    def forward(
        self,
        images: Tensor,  # [B, T, V, 3, H, W]
        ego2img: Tensor,  # [B, T, V, 4, 4]
        generator: Generators = None,
    ) -> SparseOccOutput:
        """`encode` and `decode`; see there."""
        return self.decode(self.encode(images), ego2img, generator)

    def losses(self, output: SparseOccOutput, semantics: Tensor, instances: Tensor | None = None) -> dict[str, Tensor]:
        """All loss terms and their sum under "loss".

        Args:
            output: of `forward`.
            semantics: uint8 labels [B, X, Y, Z]; 255 unknown.
            instances: integer object ids [B, X, Y, Z], for a panoptic config; 0 none.

        Raises:
            ValueError: another grid or another taxonomy's labels, or a panoptic config without instances.
        """
        if tuple(semantics.shape[1:]) != self.config.grid.shape:
            raise ValueError(f"labels are {tuple(semantics.shape)}, the model's grid is {self.config.grid.shape}")
        taxonomy = self.config.taxonomy
        highest = int(semantics.masked_fill(semantics == UNKNOWN, 0).max())
        if highest >= taxonomy.num_classes:
            raise ValueError(
                f"the labels hold class {highest}, but taxonomy {taxonomy.name!r} ends at {taxonomy.num_classes - 1}; "
                "are they another dataset's numbering?"
            )
        return self.criterion(output.stages, output.predictions, semantics, instances)

    def grids(self, output: SparseOccOutput) -> OccupancyPrediction:
        """The predicted grids of a batch."""
        last = output.predictions[-1]
        return predict_grids(last.class_logits, last.mask_logits, output.stages[-1].corners, self.config)

    @torch.no_grad()
    def predict(self, images: Tensor, ego2img: Tensor) -> OccupancyPrediction:
        """Grids from all images at once (offline); `temporal.OnlinePredictor` gives the same from cached history.

        Raises:
            ValueError: the model is in training mode, where it would answer at random.
        """
        if self.training:
            raise ValueError("predictions need model.eval(): while training, voxels and points are drawn at random")
        return self.grids(self(images, ego2img))

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Recompute residual blocks and voxel stages in the backward pass instead of keeping their activations."""
        self.image_encoder.gradient_checkpointing_enable(enable)
        self.head.voxel_decoder.gradient_checkpointing = enable

    def load_backbone(self, path: str | Path) -> BackboneReport:
        """Start from a detector's ResNet, and freeze its stem, first stage and batch statistics as published.

        Args:
            path: a file that `load_backbone_weights` reads.

        Returns:
            what in the file was used and what was not; print it.
        """
        report = load_backbone_weights(self.image_encoder, path)
        self.config = replace(self.config, frozen_stages=1)
        return report

    def parameter_groups(self, recipe: SparseOccRecipe) -> list[dict[str, Any]]:
        """Trainable parameters for an optimizer, by learning rate: the rest, the backbone, the sampling offsets."""
        rates = {"image_encoder.backbone.": recipe.backbone_rate, ".sampling_offset.": recipe.offset_rate}
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                rate = next((rate for part, rate in rates.items() if part in name), 1.0)
                groups.setdefault(rate, []).append(parameter)
        return [{"params": group, "lr": recipe.learning_rate * rate} for rate, group in groups.items()]

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> "SparseOcc":
        """A new model with random weights.

        Args:
            name: a function of `presets`, e.g. ``"r50_704x256_8f"``.
            changes: fields of the preset's `SparseOccConfig` to replace.
        """
        return cls(presets.preset(name, **changes).model)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: torch.device | str = "cpu") -> "SparseOcc":
        """The model that `save_pretrained` wrote, in evaluation mode.

        Args:
            path: its folder, or a hub id ``owner/name``.
            device: where the weights go.

        Raises:
            ValueError: no such folder, another kind of model, or weights that are incomplete or of another shape.
        """
        config, weights = read_folder(path, cls.__name__, SparseOccConfig.from_dict, device)
        model = cls(config)
        load_weights(model, weights, str(path))
        return model.to(device).eval()

    @classmethod
    def from_original(cls, path: str | Path, name: str = "r50_704x256_8f", **changes: Any) -> "SparseOcc":
        """Released weights, in evaluation mode; `legacy` unless said otherwise.

        Args:
            path: the released ``.pth`` file.
            name: the preset it was trained as.
            changes: fields of the preset's config to replace.

        Raises:
            ValueError: no such file, or its tensors are not those of the preset.
        """
        config = presets.preset(name, **{"legacy": True, "frozen_stages": 1, **changes}).model
        model = cls(config)
        load_weights(model, read_released(path, config), str(path))
        return model.eval()

    def save_pretrained(self, path: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder."""
        write_folder(path, type(self).__name__, self.config.to_dict(), self.state_dict())
