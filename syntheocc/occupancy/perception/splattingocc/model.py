"""SplattingOcc and its baseline RenderOcc (Pan et al., ICRA 2024): occupancy from cameras, taught by 2D labels."""

import torch.nn.functional as F
from torch import Tensor

from syntheocc.occupancy.perception.splattingocc.config import RenderOccConfig, SplattingOccConfig
from syntheocc.occupancy.perception.splattingocc.presets import RENDEROCC_PRESETS, SPLATTINGOCC_PRESETS
from syntheocc.occupancy.perception.volume_model import VolumeModel
from syntheocc.occupancy.rendering.compositing import shift_of


class SplattingOcc(VolumeModel):
    """Images of all cameras and frames to occupancy; each voxel is a Gaussian that lidar rays see in training."""

    config_class = SplattingOccConfig
    presets = SPLATTINGOCC_PRESETS
    config: SplattingOccConfig

    def density(self, raw: Tensor) -> Tensor:
        """Opacity of a voxel's Gaussian."""
        return raw.sigmoid()


class RenderOcc(VolumeModel):
    """Images of all cameras and frames to occupancy, taught by volume rendering in DVGO's form."""

    config_class = RenderOccConfig
    presets = RENDEROCC_PRESETS
    config: RenderOccConfig

    def density(self, raw: Tensor) -> Tensor:
        """The renderer's raw density: 13.8 stops 29 % of a ray every half voxel, half of it in a voxel."""
        return F.softplus(raw)

    def voxel_logits(self, raw: Tensor) -> Tensor:
        """Of the share of a ray that a voxel stops, two samples of DVGO's opacity at an interval of a half.

        ``1 - (1 - alpha)^2 = 1 - 1 / (1 + e^(d + shift))``: the raw density and the shift are its logit.
        """
        return self.density(raw) + shift_of(self.config.render.alpha_init)
