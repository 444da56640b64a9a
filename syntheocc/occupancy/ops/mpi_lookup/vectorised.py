"""The MPI lookup in plain torch: one view at a time, all planes and cells of it at once. Runs on any device."""

import torch
from torch import Tensor

from syntheocc.occupancy.ops.mpi_lookup import LookupPlanes, label_table, layer_bounds


def mpi_lookup_torch(
    labels: Tensor,
    origins: Tensor,
    directions: Tensor,
    planes: LookupPlanes,
    free: int,
    table: Tensor | None = None,
    foreground: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `syntheocc.occupancy.ops.mpi_lookup.mpi_lookup`.

    ``dtype`` is that of the sample positions: float32 is faster and differs where a sample lies within about 1e-4
    voxel of a face (benchmarks/mpi.py measures both).
    """
    batch, views, samples, height, width, _ = directions.shape
    device = labels.device
    depths = (planes.near + planes.step * torch.arange(planes.num_planes, dtype=torch.float64, device=device)).to(
        dtype
    )
    table = label_table(free, table, device)
    layers = torch.empty((batch, views, planes.num_layers, height, width), dtype=torch.uint8, device=device)
    nearest = torch.empty((batch, views, height, width), dtype=torch.uint8, device=device)
    nearest_plane = torch.empty((batch, views, height, width), dtype=torch.int16, device=device)
    origins, directions = origins.to(dtype), directions.to(dtype)
    for b in range(batch):
        grid = labels[b].reshape(-1)
        for v in range(views):
            # One view at a time bounds the memory: [D, h, w] positions of one axis are 11 MB at 256 x 56 x 100.
            per_plane = _sample(grid, labels.shape[1:], origins[b, v], directions[b, v, 0], depths, table, free)
            if samples > 1 and foreground is not None:
                chosen = foreground[per_plane.int()]
                for s in range(1, samples):
                    other = _sample(grid, labels.shape[1:], origins[b, v], directions[b, v, s], depths, table, free)
                    take = ~chosen & foreground[other.int()]
                    per_plane = torch.where(take, other, per_plane)
                    chosen |= take
            hit = per_plane != free
            plane = hit.view(torch.uint8).argmax(0)
            nearest[b, v] = per_plane.gather(0, plane[None])[0]
            nearest_plane[b, v] = plane.to(torch.int16)
            if planes.num_layers == planes.num_planes:
                layers[b, v] = per_plane
            else:
                bounds = layer_bounds(planes)
                for layer, (first, last) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
                    winner = hit[first:last].view(torch.uint8).argmax(0)
                    layers[b, v, layer] = per_plane[first:last].gather(0, winner[None])[0]
    return layers, nearest, nearest_plane


def _sample(
    grid: Tensor,  # [X*Y*Z]
    shape: torch.Size,
    origin: Tensor,  # [3]
    direction: Tensor,  # [h, w, 3]
    depths: Tensor,  # [D]
    table: Tensor,  # [256]
    free: int,
) -> Tensor:
    """Mapped labels uint8 [D, h, w] of one ray a cell."""
    inside: Tensor | None = None
    flat: Tensor | None = None
    for axis, size in enumerate(shape):
        position = origin[axis] + direction[..., axis] * depths[:, None, None]
        within = (position >= 0) & (position < size)
        inside = within if inside is None else inside.logical_and_(within)
        # Truncation is the floor here: where it is not, the sample is outside. NaN may become any integer; it is
        # outside too.
        index = position.to(torch.int32)
        flat = index if flat is None else flat.mul_(size).add_(index)
    assert inside is not None and flat is not None
    found = grid[flat.masked_fill_(~inside, 0)]
    # Indexing with a byte tensor would mean a mask.
    return torch.where(inside, table[found.int()], free)
