"""Training steps of SplattingOcc and RenderOcc: lidar rays through Gaussians, or through densities."""

from collections.abc import Sequence

import torch
from torch import Tensor

from syntheocc.occupancy.losses.class_weights import OCC3D_RAY_COUNTS, sampling_balance
from syntheocc.occupancy.losses.rendering import (
    binary_entropy,
    conditional_semantic_loss,
    distortion_loss,
    free_space_loss,
    hit_loss,
    semantic_loss,
    silog_loss,
)
from syntheocc.occupancy.perception.registry import GeneratorOf
from syntheocc.occupancy.perception.splattingocc.config import RenderOccConfig, SplattingOccConfig
from syntheocc.occupancy.perception.splattingocc.model import RenderOcc, SplattingOcc
from syntheocc.occupancy.perception.volume_model import VolumeOutput
from syntheocc.occupancy.perception.volume_step import VolumeStep, unaugmented
from syntheocc.occupancy.rendering.dvgo import render_dvgo
from syntheocc.occupancy.rendering.gaussian import gaussians_from_volume, splat
from syntheocc.occupancy.rendering.gaussian_motion import GaussianMoves
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels
from syntheocc.occupancy.rendering.splat_views import SplatRays
from syntheocc.occupancy.rendering.volume import fields_of

# What is seen of less opacity than this has no depth.
MIN_OPACITY = 0.05


class SplattingOccStep(VolumeStep):
    """See `VolumeStep`; terms "semantics", "depth", "hit", "free" and "entropy" (4.2 "Losses").

    Means over rays are weighted by class and frame.
    """

    def __init__(self, model: SplattingOcc, generator_of: GeneratorOf | None = None, backend: str | None = None):
        super().__init__(model, generator_of)
        self.backend = backend

    def ray_losses(
        self,
        output: VolumeOutput,
        grid_transforms: Tensor | None,
        rays: RayLabels,
        motion: BoxMotion | None,
        generators: Sequence[torch.Generator] | torch.Generator,
    ) -> dict[str, Tensor]:
        """Of rays through the Gaussians, which are un-flipped; nothing is drawn."""
        config = self.model.config
        assert isinstance(config, SplattingOccConfig)
        scale = offset = None
        if output.extras is not None:
            scale = output.extras[..., 0] if config.learn_scale else None
            offset = output.extras[..., -3:] if config.learn_offset else None
        gaussians = gaussians_from_volume(
            output.raw, output.logits, config.grid, config.splats, scale, offset, grid_transforms
        )
        moves = None
        if config.flow and motion is not None:
            moves = GaussianMoves.of(motion.to(output.raw.device), gaussians.classes, config.grid)
        seen = splat(
            gaussians,
            SplatRays.from_labels(rays),
            config.splats,
            moves,
            front_limits=self.front_limits(rays, config.free_margin, config.reach),
            backend=self.backend,
        )
        weights = rays.weights * torch.where(rays.is_key, 1.0, config.neighbour_weight)
        # To a mean of 1, so that the losses do not depend on the classes' weights as a whole.
        weights = weights / weights.mean().clamp_min(1e-6) if len(rays) else weights
        if config.splats.feature == "prob":
            semantics = conditional_semantic_loss(seen.semantics, seen.weight_sum, rays.labels, weights)
        else:
            semantics = semantic_loss(seen.semantics, rays.labels, weights)
        known = (seen.weight_sum.detach() > MIN_OPACITY) & (rays.distance <= config.max_depth)
        assert seen.front is not None
        return {
            "semantics": config.semantic_weight * semantics,
            "depth": config.depth_weight * silog_loss(seen.depth, self.depth_target(seen.depth, rays), weights, known),
            "hit": config.hit_weight * hit_loss(seen.weight_sum, weights),
            "free": config.free_weight * free_space_loss(seen.front, weights),
            "entropy": config.entropy_weight * binary_entropy(gaussians.opacity),
        }


class RenderOccStep(VolumeStep):
    """See `VolumeStep`; terms "semantics", "depth", "entropy" and "distortion" (4.0)."""

    def __init__(self, model: RenderOcc, generator_of: GeneratorOf | None = None):
        super().__init__(model, generator_of)
        balance = sampling_balance(OCC3D_RAY_COUNTS)
        if len(balance) != model.config.occupied_classes:
            raise ValueError(f"RenderOcc draws rays of Occ3D's {len(balance)} classes by how rare they are")
        self.register_buffer("balance", balance, persistent=False)

    def ray_weights(self, rays: RayLabels) -> Tensor:
        """Rare classes first, the key frame before others."""
        config, balance = self.model.config, self.balance
        assert isinstance(config, RenderOccConfig) and isinstance(balance, Tensor)
        return balance[rays.labels] * torch.where(rays.is_key, 1.0, config.neighbour_weight)

    def ray_losses(
        self,
        output: VolumeOutput,
        grid_transforms: Tensor | None,
        rays: RayLabels,
        motion: BoxMotion | None,
        generators: Sequence[torch.Generator] | torch.Generator,
    ) -> dict[str, Tensor]:
        """Of rays through the densities; nothing moves (`RayConfig.dynamics` is "filter") and nothing is drawn."""
        config = self.model.config
        assert isinstance(config, RenderOccConfig)
        density, logits = (unaugmented(v, grid_transforms) for v in (self.model.density(output.raw), output.logits))
        seen = render_dvgo(
            fields_of(density, logits), rays.samples, rays.origins, rays.directions, config.grid, config.render,
            keep_samples=True,
        )  # fmt: skip
        assert seen.sample_weights is not None and seen.midpoints is not None and seen.lengths is not None
        measured = rays.depth if config.render.legacy else rays.distance
        target = measured if config.render.legacy else self.depth_target(seen.depth, rays)
        # The distortion is of lengths in units of the radius, in both geometries.
        radius = config.render.radius
        distortion = distortion_loss(seen.sample_weights, seen.midpoints / radius, seen.lengths / radius)
        return {
            "semantics": config.semantic_weight
            * semantic_loss(seen.semantics, rays.labels, rays.weights, weighted=True),
            "depth": config.depth_weight * silog_loss(seen.depth, target, mask=measured <= config.max_depth),
            "entropy": config.entropy_weight * binary_entropy(seen.weight_sum),
            "distortion": config.distortion_weight * distortion,
        }
