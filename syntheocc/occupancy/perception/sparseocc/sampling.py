"""Image features at points that queries choose (specs/sparseocc.md 2.2-2.5 and 2.7).

Legend: B samples, T frames, V views, L levels, Q queries, D channels of a query, G groups, c = D / G channels of a
group, P points, K voxels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from syntheocc.engine.dropout import Generators
from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.msmv_sampling import msmv_sampling
from syntheocc.occupancy.perception.sparseocc.geometry import (
    hide_missing_views,
    project_points,
    voxel_points,
)


class ImageFeatures:
    """Feature maps with the projections that belong to them.

    Args:
        maps: L tensors [B, T, V, h, w, D].
        ego2img: [B, T, V, 4, 4] from the grid's frame to input pixels; an all-zero matrix is a missing camera.
        image_size: height and width of the network's input.
        legacy: give group g of frame t the scale weights of group ``(t * G + g) // T``, as the published code did (it
            flattens features by (b, t, g) but scale weights by (b, g, t)).

    Raises:
        ValueError: maps and projections differ in samples, frames or views.
    """

    def __init__(self, maps: Sequence[Tensor], ego2img: Tensor, image_size: tuple[int, int], legacy: bool = False):
        self.maps = list(maps)
        for level in self.maps:
            if level.shape[:3] != ego2img.shape[:3]:
                raise ValueError(
                    f"feature maps are of (samples, frames, views) {tuple(level.shape[:3])}, projections of "
                    f"{tuple(ego2img.shape[:3])}"
                )
        self.ego2img, self.image_size, self.legacy = hide_missing_views(ego2img), image_size, legacy

    def sample(
        self,
        points: Tensor,  # [B, Q, G, P, 3]
        scale_logits: Tensor,  # [B, Q, G, P, L]
    ) -> Tensor:
        """Features at points in the grid's frame (metres), the same points in every frame: [B, Q, G, T*P, c]."""
        frames, groups = self.ego2img.shape[1], points.shape[2]
        located, _ = project_points(points.flatten(1, 3), self.ego2img, self.image_size)
        weights = scale_logits.float().softmax(-1)[:, None].expand(-1, frames, -1, -1, -1, -1)
        if self.legacy:
            frame = torch.arange(frames, device=points.device)[:, None]
            group = (frame * groups + torch.arange(groups, device=points.device)) // frames  # [T, G]
            weights = weights[:, frame, :, group].permute(2, 0, 3, 1, 4, 5)
        sampled = msmv_sampling(self.maps, located.unflatten(2, points.shape[1:4]), weights)
        return sampled.flatten(3, 4)


class VoxelSampling(nn.Module):
    """Points around each voxel's centre, offsets in units of the voxel's own edge."""

    def __init__(self, dims: int, num_groups: int, num_points: int, num_levels: int):
        super().__init__()
        self.shape = (num_groups, num_points)
        self.sampling_offset = nn.Linear(dims, num_groups * num_points * 3)
        self.scale_weights = nn.Linear(dims, num_groups * num_points * num_levels)
        nn.init.zeros_(self.sampling_offset.weight)
        nn.init.uniform_(self.sampling_offset.bias, -0.5, 0.5)

    def forward(
        self,
        queries: Tensor,  # [B, Q, D]
        corners: Tensor,  # [B, Q, 3]
        cell: int,
        spec: GridSpec,
        images: ImageFeatures,
    ) -> Tensor:
        """Sampled features [B, Q, G, T*P, c]; `cell` is the voxels' edge in full-resolution voxels."""
        offset = self.sampling_offset(queries).float().unflatten(-1, (*self.shape, 3))
        points = voxel_points(corners[:, :, None, None], spec, (offset + 0.5) * cell)
        return images.sample(points, self.scale_weights(queries).unflatten(-1, (*self.shape, -1)))


class MaskGuidedSampling(nn.Module):
    """Points in the voxels of each query's current mask, offsets in full-resolution voxels.

    While training, voxels are drawn from the mask at random; at test time they are spread evenly over it, so that two
    passes agree.
    """

    def __init__(self, dims: int, num_groups: int, num_points: int, num_levels: int, legacy: bool = False):
        super().__init__()
        self.shape = (num_groups, num_points)
        # The released weights learnt their offsets from the voxel's corner.
        self.origin = 0.0 if legacy else 0.5
        self.offset = nn.Linear(dims, num_groups * num_points * 3)
        self.scale_weights = nn.Linear(dims, num_groups * num_points * num_levels)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(
        self,
        queries: Tensor,  # [B, Q, D]
        active: Tensor,  # [B, Q, K]
        corners: Tensor,  # [B, K, 3]
        spec: GridSpec,
        images: ImageFeatures,
        generator: Generators = None,
    ) -> Tensor:
        """Sampled features [B, Q, G, T*P, c]; `active` (bool) are the voxels of each query's mask."""
        number = math.prod(self.shape)
        if self.training:
            chances = _random((*active.shape[:2], number, 4), active.device, generator)
        else:
            chances = _spread(number, active.device).expand(*active.shape[:2], -1, -1)
        drawn = _draw(active, corners, chances, spec.shape).unflatten(2, self.shape)
        offset = self.offset(queries).float().unflatten(-1, (*self.shape, 3))
        points = voxel_points(drawn, spec, offset + self.origin)
        return images.sample(points, self.scale_weights(queries).unflatten(-1, (*self.shape, -1)))


def _random(shape: tuple[int, ...], device: torch.device, generator: Generators) -> Tensor:
    """Chances in [0, 1) from one generator for the batch, or from one a sample."""
    if generator is None or isinstance(generator, torch.Generator):
        source = device if generator is None else generator.device
        return torch.rand(shape, device=source, generator=generator).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for {shape[0]} samples; give one, or one a sample")
    return torch.stack([torch.rand(shape[1:], device=g.device, generator=g) for g in generator]).to(device)


def _draw(active: Tensor, corners: Tensor, chances: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """One active voxel for each chance, or a voxel of the whole grid where a query has none: [B, Q, N, 3].

    Args:
        active: bool [B, Q, K].
        corners: [B, K, 3].
        chances: [B, Q, N, 4] in [0, 1): which of the active voxels, and where in the grid if there is none.
        shape: the grid's.
    """
    rank_of = active.cumsum(-1, dtype=torch.int32)
    total = rank_of[..., -1:]
    # The voxel of rank r (from 1) is the first whose running count reaches r.
    rank = ((chances[..., 0] * total).floor().int() + 1).minimum(total.clamp_min(1))
    chosen = torch.searchsorted(rank_of, rank).clamp_max(active.shape[-1] - 1)
    picked = corners.gather(1, chosen.flatten(1)[..., None].expand(-1, -1, 3)).view(*chosen.shape, 3)
    anywhere = (chances[..., 1:] * constant(shape, active.device)).floor().long()
    return torch.where((total > 0)[..., None], picked, anywhere)


def _spread(number: int, device: torch.device) -> Tensor:
    """Evenly spread chances in [0, 1): [N, 4]; the last three fill a cube evenly (an additive recurrence)."""
    index = torch.arange(number, device=device, dtype=torch.float32) + 0.5
    # Powers of the root of x**4 = x + 1, the three-dimensional golden ratio.
    steps = constant((0.8191725134, 0.6710436067, 0.5497004779), device)
    return torch.cat([(index / number)[:, None], (index[:, None] * steps) % 1], -1)
