"""Splatting by brute force, for reading: each ray against every Gaussian, sorted, composited in a row."""

import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.splat_rays import RayPaths
from syntheocc.occupancy.ops.splat_rays.responses import MAX_ALPHA, MIN_ALPHA, Response


def splat_rays_reference(
    opacity: Tensor,
    features: Tensor,
    paths: RayPaths,
    spec: GridSpec,
    scale: float | Tensor,
    offsets: Tensor | None,
    front_limits: Tensor | None,
    owners: Tensor | None,
    near: float,
    far: float,
    response: Response,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `syntheocc.occupancy.ops.splat_rays.splat_rays`."""
    centers = spec.centers(opacity.device).reshape(-1, 3).to(opacity.dtype)
    index = torch.stack(torch.meshgrid(*[torch.arange(n) for n in spec.shape], indexing="ij"), -1).reshape(-1, 3)
    index = index.to(opacity.device)
    rows = []
    for ray in range(paths.num_rays):
        alphas, distances, seen = [], [], []
        for path in (paths.rays == ray).nonzero()[:, 0].tolist():
            sample = int(paths.volumes[path])
            first, last = paths.bounds[path]
            counts = ((index >= first) & (index <= last)).all(-1)
            if owners is not None and int(paths.tables[path]) >= 0:
                counts &= owners[int(paths.tables[path])].flatten() == int(paths.owners[path])
            mean = centers if offsets is None else centers + offsets[sample].reshape(-1, 3)
            each = scale[sample].flatten()[counts] if isinstance(scale, Tensor) else scale
            offset = mean[counts] - paths.origins[path]
            direction = paths.directions[path].expand_as(offset)
            which = torch.full((len(offset),), path, device=offset.device)
            alpha, distance = response(offset, direction, opacity[sample].flatten()[counts], each, which)
            alphas.append(alpha)
            distances.append(distance)
            seen.append(features[sample].flatten(0, 2)[counts])
        if not alphas:
            rows.append((features.new_zeros(features.shape[-1]), *features.new_zeros(3)))
            continue
        alpha, distance, found = torch.cat(alphas), torch.cat(distances), torch.cat(seen)
        kept = (alpha >= MIN_ALPHA) & (distance >= near) & (distance <= far)
        alpha, distance, found = alpha[kept].clamp(max=MAX_ALPHA), distance[kept], found[kept]
        order = distance.argsort(stable=True)
        alpha, distance, found = alpha[order], distance[order], found[order]
        passing = torch.cat([alpha.new_ones(1), (1 - alpha).cumprod(0)[:-1]])[: len(alpha)]
        weight = alpha * passing
        front = weight[distance < front_limits[ray]].sum() if front_limits is not None else weight.new_zeros(())
        rows.append(((weight[:, None] * found).sum(0), weight.sum(), (weight * distance).sum(), front))
    if not rows:  # nothing, that a backward pass can still go through
        none = opacity.flatten()[:0]
        return features.flatten(0, 3)[:0], none, none, none
    first, second, third, fourth = (torch.stack(list(column)) for column in zip(*rows, strict=True))
    return first, second, third, fourth
