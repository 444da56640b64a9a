"""OccFlowNet (Boeder et al., WACV 2025): occupancy from cameras, taught by rendering lidar points."""

import torch
from torch import Tensor

from syntheocc.occupancy.perception.occflownet.config import OccFlowNetConfig
from syntheocc.occupancy.perception.occflownet.presets import PRESETS
from syntheocc.occupancy.perception.volume_model import VolumeModel
from syntheocc.occupancy.rendering.compositing import activate_density


class OccFlowNet(VolumeModel):
    """Images of all cameras and frames to occupancy; the motion of objects matters to its training alone."""

    config_class = OccFlowNetConfig
    presets = PRESETS
    config: OccFlowNetConfig

    def density(self, raw: Tensor) -> Tensor:
        """Opacity of a voxel, or density per metre, as `config.density` says."""
        return activate_density(raw, self.config.density)

    def voxel_logits(self, raw: Tensor) -> Tensor:
        """Sigmoids are their own logits; a density per metre stops a share of a ray in a voxel, which is one."""
        if self.config.density != "softplus":
            return raw
        size = sum(self.config.grid.voxel_size) / 3
        # ln(o / (1 - o)) with 1 - o = e^(-density * size) is ln(e^(density * size) - 1).
        return torch.log(torch.expm1((self.density(raw) * size).clamp(1e-6, 20.0)))
