"""The models that are taught by rendering, apart from how they are taught: trunk, heads, answers, files.

Legend: B samples, T frames (the current one first), V views, K classes without free, X Y Z voxels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from syntheocc.engine.dropout import Generators
from syntheocc.occupancy.data.prediction_files import free_space
from syntheocc.occupancy.perception.backbone_weights import BackboneReport
from syntheocc.occupancy.perception.prediction import OccupancyPrediction
from syntheocc.occupancy.perception.recipes import TrainingRecipe
from syntheocc.occupancy.perception.storage import load_weights, read_folder, write_folder
from syntheocc.occupancy.perception.trunk import OccupancyTrunk, TrunkGeometry
from syntheocc.occupancy.perception.view_transform import LiftCameras
from syntheocc.occupancy.perception.volume_config import VolumeConfig
from syntheocc.occupancy.perception.volume_heads import VolumeHeads
from syntheocc.occupancy.rendering.gaussian import decide

__all__ = ["VolumeModel", "VolumeOutput"]


class VolumeOutput(NamedTuple):
    """What losses and answers are made from; in the frame of the (augmented) grid."""

    raw: Tensor
    """[B, X, Y, Z] of the density head, before any activation."""
    logits: Tensor
    """[B, X, Y, Z, K] of the occupied classes."""
    depth_logits: Tensor
    """[B, V, D, h, w] of the trunk's depth."""
    extras: Tensor | None = None
    """[B, X, Y, Z, E] of heads that have more to say."""


class VolumeModel(nn.Module, ABC):
    """Images of all cameras and frames to the density and the classes of every voxel.

    A subclass says what its density is (`density`), which presets it has, and how released weights are read.

    Args:
        config: the network.

    Example:
        >>> model = OccFlowNet.from_preset("tiny").eval()
        >>> model.predict(images, cameras).semantics.shape
        torch.Size([1, 40, 40, 8])
    """

    config_class: ClassVar[type[VolumeConfig]]
    presets: ClassVar[Mapping[str, Callable[[], tuple[Any, TrainingRecipe]]]]
    _image_mean: Tensor
    _image_std: Tensor

    def __init__(self, config: VolumeConfig):
        super().__init__()
        self.config = config
        self.trunk = OccupancyTrunk(config.trunk)
        self.heads = VolumeHeads(config.trunk.out_channels, config.occupied_classes, config.heads)
        # Buffers: they move with the model, and none is copied to the device in every step.
        for name in ("image_mean", "image_std"):
            values = torch.tensor(getattr(config, name)).view(3, 1, 1)
            self.register_buffer(f"_{name}", values, persistent=False)

    @abstractmethod
    def density(self, raw: Tensor) -> Tensor:
        """What the renderer takes and `config.threshold` decides on, of a head's raw output of any shape."""

    def voxel_logits(self, raw: Tensor) -> Tensor:
        """The logit that a voxel is occupied, of a head's raw output; for losses on labelled voxels."""
        return raw

    def normalise(self, images: Tensor) -> Tensor:
        """RGB images [..., 3, H, W] on the scale 0..255, bytes or floats, as the network wants them."""
        if self.config.bgr:
            images = images.flip(-3)
        return (images - self._image_mean) / self._image_std

    def forward(
        self, images: Tensor, cameras: LiftCameras | TrunkGeometry, generators: Generators = None
    ) -> VolumeOutput:
        """Encode a batch.

        Args:
            images: [B, T, V, 3, H, W] RGB: uint8, or float already normalised (`normalise`).
            cameras: of all of them, or what the trunk's `geometry` made of them.
            generators: of the dropout while training, one a sample; None draws from torch's own state.

        Raises:
            ValueError: another number of frames or another size than the config's.
        """
        if images.dtype == torch.uint8:
            images = self.normalise(images)
        encoded = self.trunk(images, cameras, generators)
        raw, logits, extras = self.heads(encoded.volume)
        # Densities are exponentiated and summed up along rays: not in half precision.
        extras = None if extras is None else extras.float()
        return VolumeOutput(raw.float(), logits.float(), encoded.depth_logits, extras)

    def labels(self, output: VolumeOutput, threshold: float | None = None) -> Tensor:
        """The class of each voxel, free included: uint8 [B, X, Y, Z].

        Args:
            output: of `forward`.
            threshold: instead of the one that is stored with the weights.
        """
        limit = self.config.threshold if threshold is None else threshold
        return decide(self.density(output.raw), output.logits, limit, self.config.taxonomy.free)

    @torch.no_grad()
    def predict(self, images: Tensor, cameras: LiftCameras, thresholds: Sequence[float] = ()) -> OccupancyPrediction:
        """The grids of a batch, decided by `config.threshold`.

        Args:
            images: see `forward`.
            cameras: see `forward`.
            thresholds: for a sweep; the prediction then also says which voxels are free at each of them.

        Raises:
            ValueError: the model is in training mode, where batch norms would use the batch.
        """
        if self.training:
            raise ValueError("predictions need model.eval()")
        output = self(images, cameras)
        prediction = OccupancyPrediction(self.config.grid, self.config.taxonomy, self.labels(output))
        if len(thresholds):
            prediction.occupancy = output.logits.argmax(-1).to(torch.uint8)
            prediction.free_space = free_space(self.density(output.raw), thresholds).transpose(0, 1)
        return prediction

    def with_threshold(self, threshold: float) -> Self:
        """Store another decision threshold; the model itself."""
        self.config = replace(self.config, threshold=threshold)
        return self

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Recompute the blocks of images and volumes in the backward pass instead of keeping their activations."""
        self.trunk.gradient_checkpointing_enable(enable)
        self.heads.gradient_checkpointing = enable

    def parameter_groups(self, recipe: TrainingRecipe, learning_rate: float) -> list[dict[str, Any]]:
        """Trainable parameters for AdamW: the backbone at its own rate, then the rest; empty groups are left out."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                rate = recipe.backbone_rate if name.startswith("trunk.image_encoder.backbone.") else 1.0
                groups.setdefault(rate, []).append(parameter)
        return [{"params": group, "lr": learning_rate * rate} for rate, group in groups.items()]

    def load_backbone(self, path: str | Path) -> BackboneReport:
        """Start from pretrained image and view-transform weights, e.g. ``bevdet-stbase-4d-stereo-512x1408-cbgs.pth``.

        Args:
            path: a released detector's file; what of it has no place here (its detection heads) is left out.

        Returns:
            what in the file was used and what was not; print it.

        Raises:
            ValueError: no such file, or its backbone is another one.
        """
        from syntheocc.occupancy.perception.volume_weights import load_pretrained

        report = load_pretrained(self, path)
        self.config = replace(self.config, bgr=True)
        return report

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> Self:
        """A new model with random weights.

        Args:
            name: one of `presets`.
            changes: fields of the preset's config to replace.

        Raises:
            ValueError: no such preset.
        """
        if name not in cls.presets:
            raise ValueError(f"{cls.__name__} has no preset {name!r}; it has {', '.join(cls.presets)}")
        return cls(replace(cls.presets[name]()[0], **changes))

    @classmethod
    def from_pretrained(cls, path: str | Path, device: torch.device | str = "cpu") -> Self:
        """The model that `save_pretrained` wrote, in evaluation mode.

        Args:
            path: its folder, or a hub id ``owner/name``.
            device: where the weights go.

        Raises:
            ValueError: no such folder, another kind of model, or weights that are incomplete or of another shape.
        """
        config, weights = read_folder(path, cls.__name__, cls.config_class.from_dict, device)
        model = cls(config)
        load_weights(model, weights, str(path))
        return model.to(device).eval()

    @classmethod
    def from_original(cls, path: str | Path, name: str, **changes: Any) -> Self:
        """Released weights, in evaluation mode; the published geometry unless said otherwise.

        Args:
            path: the released ``.pth`` file.
            name: the preset it was trained as.
            changes: fields of the preset's config to replace.

        Raises:
            ValueError: no such file, or its tensors are not those of the preset.
        """
        from syntheocc.occupancy.perception.volume_weights import read_released

        config = replace(cls.presets[name]()[0], **{"bgr": True, **changes})
        model = cls(config)
        load_weights(model, read_released(path, model), str(path))
        return model.eval()

    def save_pretrained(self, path: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder."""
        write_folder(path, type(self).__name__, self.config.to_dict(), self.state_dict())
