"""What the trunk's volume is turned into: a raw density and class logits of every voxel.

OccFlowNet's heads are multilayer perceptrons behind a 3x3x3 convolution; RenderOcc's and SplattingOcc's are two linear
layers with a softplus between (specs/occflownet_splattingocc.md 2.3).

Legend: B samples, C channels, K classes without free, X Y Z voxels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syntheocc.occupancy.perception.backbones import checkpointed

__all__ = ["HeadConfig", "VolumeHeads"]


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The heads' shape; the defaults are OccFlowNet's.

    Raises:
        ValueError: a size that is not positive, or an unknown activation.
    """

    channels: int = 64
    """Of the convolution in front of both heads."""
    hidden: tuple[int, ...] = (256, 256, 256)
    activation: Literal["relu", "softplus"] = "relu"
    density_outputs: int = 1
    """The published RenderOcc has two, of which it uses the first."""
    density_bias: float = 0.0
    """First bias of the density: -2 makes a new model's opacities 0.12, so that rays reach beyond the first voxels."""
    extras: int = 0
    """More numbers a voxel, from a linear layer that begins at zero (SplattingOcc's learnt scales and offsets)."""

    def __post_init__(self):
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.channels < 1 or self.density_outputs < 1 or self.extras < 0 or any(width < 1 for width in self.hidden):
            raise ValueError(f"sizes of the heads must be positive, got {self}")
        if self.activation not in ("relu", "softplus"):
            raise ValueError(f"activation must be 'relu' or 'softplus', got {self.activation!r}")


class VolumeHeads(nn.Module):
    """Convolution, density head and semantic head.

    Args:
        in_channels: of the volume.
        classes: K.
        config: shape.
    """

    def __init__(self, in_channels: int, classes: int, config: HeadConfig):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, config.channels, 3, padding=1)
        self.density = _perceptron(config.channels, config.hidden, config.density_outputs, config.activation)
        self.semantics = _perceptron(config.channels, config.hidden, classes, config.activation)
        self.extras = nn.Linear(config.channels, config.extras) if config.extras else None
        if self.extras is not None:
            nn.init.zeros_(self.extras.weight)
            nn.init.zeros_(self.extras.bias)
        if config.activation == "relu":
            for layer in (*self.density, *self.semantics):
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)
        if config.density_bias:
            last = self.density[-1]
            assert isinstance(last, nn.Linear)
            nn.init.constant_(last.bias, config.density_bias)
        self.gradient_checkpointing = False

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """[B, C, X, Y, Z] to the raw density [B, X, Y, Z], the logits [B, X, Y, Z, K], and extras [B, X, Y, Z, E]."""
        features = F.relu(self.conv(volume)).permute(0, 2, 3, 4, 1)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            density, logits = checkpointed(self.density, features), checkpointed(self.semantics, features)
        else:
            density, logits = self.density(features), self.semantics(features)
        return density[..., 0], logits, None if self.extras is None else self.extras(features)


def _perceptron(before: int, hidden: tuple[int, ...], out: int, activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(before, width), nn.ReLU() if activation == "relu" else nn.Softplus()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, out))
