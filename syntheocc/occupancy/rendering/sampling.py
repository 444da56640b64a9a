"""Where along a ray a volume is looked at: even intervals, intervals drawn from a density, intervals between voxels.

All lengths are metres along unit rays. Edges ascend; sample i lies between edges i and i + 1.
Legend: R rays, S samples (S + 1 edges), K crossings.
Specification: specs/occflownet_splattingocc.md 3.3 item 1, vector V5.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec

__all__ = ["edges_around", "ray_jitter", "resample", "uniform_edges", "voxel_edges"]


def ray_jitter(
    samples: Tensor,  # [R]
    edges: int,
    generators: torch.Generator | Sequence[torch.Generator],
) -> Tensor:
    """Random numbers [R, edges] from -1/2 to 1/2 for `uniform_edges`.

    Args:
        samples: int64, index in the batch of each ray.
        edges: how many edges of a ray move.
        generators: one for all rays, or one for each sample: then a sample's rays get the same numbers in any batch.
            Numbers are drawn where a generator lives, so those of the CPU are the same for all devices.
    """
    if isinstance(generators, torch.Generator):
        drawn = torch.rand(len(samples), edges, generator=generators, device=generators.device)
        return drawn.to(samples.device) - 0.5
    jitter = torch.zeros(len(samples), edges, device=samples.device)
    for sample, generator in enumerate(generators):
        rows = (samples == sample).nonzero()[:, 0]
        drawn = torch.rand(len(rows), edges, generator=generator, device=generator.device)
        jitter[rows] = drawn.to(samples.device) - 0.5
    return jitter


def uniform_edges(
    rays: int,
    near: float,
    far: float,
    count: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    jitter: Tensor | None = None,
) -> Tensor:
    """Edges [R, S + 1] of even intervals.

    Args:
        rays: how many rays.
        near: the first edge.
        far: the last edge.
        count: intervals of a ray.
        device: where the result lies.
        dtype: its type.
        jitter: [R, S - 1] from -1/2 to 1/2, by how many intervals each inner edge moves (`ray_jitter`, training).
    """
    edges = torch.linspace(near, far, count + 1, dtype=dtype, device=device).expand(rays, -1)
    if jitter is None:
        return edges
    moved = edges[:, 1:-1] + jitter.to(edges) * ((far - near) / count)
    return torch.cat([edges[:, :1], moved, edges[:, -1:]], 1)


def resample(
    edges: Tensor,  # [R, S + 1]
    density: Tensor,  # [R, S]
    count: int,
) -> Tensor:
    """Samples [R, count] where a piecewise constant density stops the ray, evenly in the share that is stopped.

    What passes all intervals counts for the last one, so samples reach the end of a ray that meets nothing.

    Args:
        edges: metres.
        density: 1 / metre in each interval, not negative.
        count: samples; sample i stands at the share (i + 1/2) / count.
    """
    passed = torch.exp(-(density * edges.diff(dim=1)).cumsum(1))
    ones = torch.ones_like(passed[:, :1])
    cdf = torch.cat([0 * ones, 1 - passed[:, :-1], ones], 1)
    shares = (torch.arange(count, dtype=edges.dtype, device=edges.device) + 0.5) / count
    shares = shares.expand(len(edges), -1).contiguous()
    left = torch.searchsorted(cdf.contiguous(), shares, right=True).clamp(1, density.shape[1]) - 1
    below, above = cdf.gather(1, left), cdf.gather(1, left + 1)
    start, end = edges.gather(1, left), edges.gather(1, left + 1)
    # A share never falls into an interval that stops nothing, except by rounding.
    inside = ((shares - below) / (above - below).clamp_min(torch.finfo(edges.dtype).tiny)).clamp(0, 1)
    return start + inside * (end - start)


def edges_around(
    samples: Tensor,  # [R, S]
    near: float,
    far: float,
) -> Tensor:
    """Edges [R, S + 1] half way between samples; the outer ones as far beyond, but within near and far."""
    if samples.shape[1] == 1:
        return torch.stack([torch.full_like(samples[:, 0], near), torch.full_like(samples[:, 0], far)], 1)
    middle = (samples[:, 1:] + samples[:, :-1]) / 2
    first = samples[:, :1] - (middle[:, :1] - samples[:, :1])
    last = samples[:, -1:] + (samples[:, -1:] - middle[:, -1:])
    return torch.cat([first.clamp_min(near), middle, last.clamp_max(far)], 1)


def voxel_edges(
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    spec: GridSpec,
    near: float,
    far: float,
) -> Tensor:
    """Where rays pass from voxel to voxel, [R, K + 1] metres: between two edges a ray is in one voxel.

    Rays with fewer crossings than others repeat their last edge; a ray that misses the grid between near and far has
    intervals of length 0 only. The intervals are those of `syntheocc.occupancy.ops.raycast.traverse`, which stops at
    the first occupied voxel, whereas here the whole ray is asked for; float64, one sort a ray.

    Args:
        origins: metres, in the grid's frame; may lie outside.
        directions: unit vectors.
        spec: where the voxels lie.
        near: the first edge is not before this.
        far: the last one not beyond this.
    """
    start, way = origins.double(), directions.double()
    still = way == 0
    way = torch.where(still, 1.0, way)
    crossings, enter, leave = [], [], []
    for axis, (low, size, n) in enumerate(zip(spec.lower, spec.voxel_size, spec.shape, strict=True)):
        planes = low + size * torch.arange(n + 1, dtype=torch.float64, device=origins.device)
        t = (planes - start[:, axis, None]) / way[:, axis, None]
        first, last = torch.minimum(t[:, 0], t[:, -1]), torch.maximum(t[:, 0], t[:, -1])
        # A ray along the planes crosses none; it is inside for ever or never.
        within = (start[:, axis] >= planes[0]) & (start[:, axis] < planes[-1])
        parallel = still[:, axis]
        enter.append(torch.where(parallel, torch.where(within, near, far), first))
        leave.append(torch.where(parallel, torch.where(within, far, near), last))
        crossings.append(torch.where(parallel[:, None], near, t))
    begin = torch.stack(enter).amax(0).clamp(near, far)[:, None]
    end = torch.maximum(torch.stack(leave).amin(0).clamp(near, far)[:, None], begin)
    every = torch.cat([begin, torch.cat(crossings, 1).clamp(begin, end), end], 1).sort(1).values
    # All planes not crossed inside have become copies of begin (or of end): keep one begin and as many as any ray has.
    before = (every <= begin).sum(1, keepdim=True) - 1
    inner = int(((every > begin) & (every < end)).sum(1).max()) if len(every) else 0
    columns = (before + torch.arange(inner + 2, device=origins.device)).clamp_max(every.shape[1] - 1)
    return every.gather(1, columns).to(origins.dtype)
