"""One training step of OccFlowNet: rays through the volume, with objects where they were in each ray's frame."""

from collections.abc import Sequence

import torch
from torch import Tensor

from syntheocc.occupancy.losses.rendering import depth_loss, semantic_loss
from syntheocc.occupancy.perception.occflownet.config import OccFlowNetConfig
from syntheocc.occupancy.perception.ray_config import FILTER_CLASSES
from syntheocc.occupancy.perception.volume_model import VolumeOutput
from syntheocc.occupancy.perception.volume_step import VolumeStep, unaugmented
from syntheocc.occupancy.rendering.flow import render_labels
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels


class OccFlowNetStep(VolumeStep):
    """See `VolumeStep`; terms "depth" and "semantics" of the rays (specs/occflownet_splattingocc.md 3.3)."""

    def ray_losses(
        self,
        output: VolumeOutput,
        grid_transforms: Tensor | None,
        rays: RayLabels,
        motion: BoxMotion | None,
        generators: Sequence[torch.Generator] | torch.Generator,
    ) -> dict[str, Tensor]:
        """Squared error of the rendered depth and cross entropy of the composited logits, by class weights."""
        config = self.model.config
        assert isinstance(config, OccFlowNetConfig)
        rendered = render_labels(
            self.model.density(unaugmented(output.raw, grid_transforms)),
            unaugmented(output.logits, grid_transforms),
            rays,
            config.grid,
            config.render_settings(),
            mode=config.flow,
            motion=motion,
            hidden=FILTER_CLASSES,
            generators=generators,
        )
        # What is rendered is a length along the ray; the published system compares it with the camera's z.
        target = rays.depth if config.legacy else self.depth_target(rendered.depth, rays)
        return {
            "depth": config.depth_weight * depth_loss(rendered.depth, target, rays.weights),
            "semantics": config.semantic_weight * semantic_loss(rendered.semantics, rays.labels, rays.weights),
        }
