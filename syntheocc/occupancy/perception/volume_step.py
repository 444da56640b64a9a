"""One training step of a model that is taught by rendering: a batch to its losses.

The network sees the augmented grid; rays, boxes and cameras stay in the key ego frame as they are. So its volumes are
turned back before they are rendered (`unaugmented`), and a mirrored sample has the losses of a plain one
(specs/occflownet_splattingocc.md 4.1 defect 1, 4.2; acceptance test 3).

Legend: B samples, R rays, K classes without free, X Y Z voxels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syntheocc.occupancy.perception.batch import OccupancyBatch
from syntheocc.occupancy.perception.depth_supervision import depth_bin_loss, ray_depths
from syntheocc.occupancy.perception.photometric import apply_photometric
from syntheocc.occupancy.perception.ray_config import FLAT_CLASSES
from syntheocc.occupancy.perception.registry import GeneratorOf
from syntheocc.occupancy.perception.view_transform import LiftCameras
from syntheocc.occupancy.perception.volume_model import VolumeModel, VolumeOutput
from syntheocc.occupancy.perception.volume_recorded import RecordedVolumeModel
from syntheocc.occupancy.rendering.gaussian import mirrored_axes, unflip
from syntheocc.occupancy.rendering.ray_choice import choose_rays
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels
from syntheocc.occupancy.rendering.surfaces import front_limits, surface_stretch
from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["VolumeStep", "unaugmented", "voxel_losses"]


class VolumeStep(nn.Module, ABC):
    """What a training loop wraps and calls: ``step_module(batch, step=..., positions=...)["loss"].backward()``.

    Args:
        model: what is trained.
        generator_of: (step, position in the global batch, device) -> the generator of that sample's draws, so that
            they do not depend on how a batch is divided; None draws from torch's own.
    """

    def __init__(self, model: Any, generator_of: GeneratorOf | None = None):
        super().__init__()
        self.model: VolumeModel = model
        self.generator_of = generator_of
        self.recorded: RecordedVolumeModel | None = None
        """Answers instead of the model, where samples have no generators of their own."""

    @abstractmethod
    def ray_losses(
        self,
        output: VolumeOutput,
        grid_transforms: Tensor | None,  # [B, 4, 4]
        rays: RayLabels,
        motion: BoxMotion | None,
        generators: Sequence[torch.Generator] | torch.Generator,
    ) -> dict[str, Tensor]:
        """Terms of the loss on rendered rays, with their weights.

        Args:
            output: of the model, in the augmented grid.
            grid_transforms: what the grid was augmented by.
            rays: those that were drawn.
            motion: of boxes between the rays' frames.
            generators: one a sample, or one for all; they jitter the places where rays are looked at.
        """

    def depth_target(self, rendered: Tensor, rays: RayLabels) -> Tensor:
        """What rendered depths [R] should have been, metres: themselves where their voxel may stop the ray."""
        config = self.model.config
        if not config.voxel_surfaces:
            return rays.distance
        enter, leave = surface_stretch(rays, config.grid, FLAT_CLASSES)
        return rendered.detach().to(enter).clamp(enter, leave)

    def front_limits(self, rays: RayLabels, margin: float, height: float) -> Tensor:
        """Up to where rays must be free, [R] metres; see `rendering.surfaces.front_limits`."""
        config = self.model.config
        if not config.voxel_surfaces:
            return rays.distance - margin
        return front_limits(rays, config.grid, FLAT_CLASSES, margin, height)

    def ray_weights(self, rays: RayLabels) -> Tensor:
        """How likely each ray is drawn, [R]; all alike unless a model says otherwise."""
        return torch.ones_like(rays.distance)

    def forward(self, batch: OccupancyBatch, step: int, positions: Sequence[int]) -> dict[str, Tensor]:
        """All loss terms and "loss", their sum; colours change here, on the batch's device.

        Args:
            batch: with what the model's config learns from: rays, labelled voxels, or both.
            step: the optimizer step.
            positions: of the batch's samples in the global batch.

        Raises:
            ValueError: a batch without what the config learns from.
        """
        config = self.model.config
        if config.ray_weight and batch.rays is None:
            raise ValueError(f"samples {', '.join(batch.tokens)} have no rays to learn from")
        if config.voxel_weight and batch.semantics is None:
            raise ValueError(f"samples {', '.join(batch.tokens)} have no labelled voxels to learn from")
        cameras = LiftCameras.of_batch(batch)
        images = batch.images
        if batch.photometric is not None:
            changed = apply_photometric(images.flatten(0, 2), batch.photometric)
            images = self.model.normalise(changed).unflatten(0, images.shape[:3])
        generators = self._generators(step, positions, images.device)
        if self.generator_of is not None:
            output = self.model(images, cameras, generators)
        else:
            output = (self.recorded or self.model)(images, cameras)
        losses: dict[str, Tensor] = {}
        if batch.rays is not None and config.lss_depth_weight:
            depth = ray_depths(batch.rays, cameras, config.image_size, self.model.trunk.stride)
            bins = depth_bin_loss(output.depth_logits, depth, config.trunk.depth)
            losses["lss_depth"] = config.lss_depth_weight * bins
        if config.ray_weight:
            assert batch.rays is not None
            rays = self._drawn(batch.rays, len(positions), generators)
            found = self.ray_losses(output, batch.grid_transforms, rays, batch.motion, generators)
            losses |= {name: config.ray_weight * value for name, value in found.items()}
        if config.voxel_weight:
            found = voxel_losses(output, self.model.voxel_logits(output.raw), batch.semantics, config.taxonomy.free)
            losses |= {name: config.voxel_weight * value for name, value in found.items()}
        return {**losses, "loss": torch.stack(list(losses.values())).sum()}

    def _generators(self, step: int, positions: Sequence[int], device: torch.device) -> list[torch.Generator]:
        if self.generator_of is None:
            seeds = torch.randint(2**62, (len(positions),)).tolist()
            return [torch.Generator(device).manual_seed(seed) for seed in seeds]
        return [self.generator_of(step, position, device) for position in positions]

    def _drawn(self, rays: RayLabels, batch: int, generators: Sequence[torch.Generator]) -> RayLabels:
        """At most `rays_per_sample` of each sample's rays."""
        most = self.model.config.rays_per_sample
        weights = self.ray_weights(rays)
        counts = torch.bincount(rays.samples, minlength=batch).tolist()
        if max(counts, default=0) <= most:
            return rays
        chosen = []
        for sample, generator in enumerate(generators):
            own = (rays.samples == sample).nonzero()[:, 0]
            chosen.append(own[choose_rays(weights[own], most, generator)])
        return rays.select(torch.cat(chosen))


def unaugmented(volume: Tensor, grid_transforms: Tensor | None) -> Tensor:
    """A volume of the augmented grid in the grid's own frame.

    Args:
        volume: [B, X, Y, Z] or [B, X, Y, Z, C].
        grid_transforms: [B, 4, 4] of the batch; mirrorings of x and y only, which voxels survive. None: as it is.

    Raises:
        ValueError: a grid that was turned, scaled or shifted.
    """
    if grid_transforms is None:
        return volume
    return unflip(volume, mirrored_axes(grid_transforms, len(volume)))


def voxel_losses(output: VolumeOutput, occupied: Tensor, semantics: Tensor | None, free: int) -> dict[str, Tensor]:
    """Losses on labelled voxels: cross entropy of occupied or free, and of the class of what is occupied.

    Args:
        output: of the model.
        occupied: [B, X, Y, Z] logit that a voxel is occupied.
        semantics: uint8 [B, X, Y, Z] labels; 255 is left out.
        free: label of free.
    """
    assert semantics is not None
    known = semantics != UNKNOWN
    target = (semantics != free) & known
    density = F.binary_cross_entropy_with_logits(occupied, target.to(occupied.dtype), reduction="none")
    density = torch.where(known, density, 0.0).sum() / known.sum().clamp_min(1)
    labels = torch.where(target, semantics.long(), -100).flatten()
    # The sum by hand: the mean over no voxel at all would not be a number.
    classes = F.cross_entropy(output.logits.flatten(0, 3), labels, ignore_index=-100, reduction="sum")
    return {"voxel_density": density, "voxel_semantics": classes / target.sum().clamp_min(1)}
