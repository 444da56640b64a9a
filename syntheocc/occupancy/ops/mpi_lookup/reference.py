"""The definition of the MPI lookup: one Python loop per index, float64, nothing clever. Only for tests."""

import math

import torch
from torch import Tensor

from syntheocc.occupancy.ops.mpi_lookup import LookupPlanes


def mpi_lookup_reference(
    labels: Tensor,
    origins: Tensor,
    directions: Tensor,
    planes: LookupPlanes,
    free: int,
    table: Tensor | None = None,
    foreground: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `syntheocc.occupancy.ops.mpi_lookup.mpi_lookup`."""
    batch, views, samples, height, width, _ = directions.shape
    size = (batch, views, height, width)
    layers = torch.full((batch, views, planes.num_layers, height, width), free, dtype=torch.uint8)
    nearest = torch.full(size, free, dtype=torch.uint8)
    nearest_plane = torch.zeros(size, dtype=torch.int16)
    grids, centers, rays = labels.cpu().numpy(), origins.tolist(), directions.tolist()
    mapped = list(range(256)) if table is None else table.tolist()
    preferred = [False] * 256 if foreground is None else foreground.tolist()
    shape = labels.shape[1:]

    def label_at(b: int, origin: list[float], ray: list[float], depth: float) -> int:
        index = []
        for axis in range(3):
            position = origin[axis] + ray[axis] * depth
            if not 0 <= position < shape[axis]:
                return free
            index.append(math.floor(position))
        label = mapped[grids[b, index[0], index[1], index[2]]]
        return free if label == 255 else label

    for b in range(batch):
        for v in range(views):
            for y in range(height):
                for x in range(width):
                    for plane in reversed(range(planes.num_planes)):
                        depth = planes.near + plane * planes.step
                        found = [label_at(b, centers[b][v], rays[b][v][s][y][x], depth) for s in range(samples)]
                        label = next((one for one in found if preferred[one]), found[0]) if samples > 1 else found[0]
                        if label != free:
                            # Planes run far to near, so the last one written is the nearest.
                            layers[b, v, plane * planes.num_layers // planes.num_planes, y, x] = label
                            nearest[b, v, y, x] = label
                            nearest_plane[b, v, y, x] = plane
    device = labels.device
    return layers.to(device), nearest.to(device), nearest_plane.to(device)
