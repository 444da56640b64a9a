"""A short street in any preset: a road between two sidewalks, a car, a pedestrian and a wall."""

import math

import torch

from syntheocc.occupancy import GridSpec, OccupancyGrid
from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY, Taxonomy
from syntheocc.occupancy.transforms import transform_points

SPEC = GridSpec((-16.0, -8.0, -1.2), 0.4, (100, 40, 12))


def pose(x, y, z, yaw=0.0):
    made = torch.eye(4, dtype=torch.float64)
    cos, sin = math.cos(yaw), math.sin(yaw)
    made[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
    made[:3, 3] = torch.tensor([x, y, z])
    return made


def make_street(spec: GridSpec = SPEC, taxonomy: Taxonomy = SYNTHEOCC_TAXONOMY, grid2ego=None) -> OccupancyGrid:
    """Road below z = 0 (y within 4), a curb higher sidewalk beside it, a wall at y = 7, a car and a pedestrian."""
    grid2ego = torch.eye(4, dtype=torch.float64) if grid2ego is None else grid2ego
    ego = transform_points(grid2ego, spec.centers().reshape(-1, 3)).reshape(*spec.shape, 3)
    x, y, z = ego.unbind(-1)
    edge = max(spec.voxel_size)
    labels = torch.full(spec.shape, taxonomy.free, dtype=torch.uint8)
    road, walk = (y.abs() < 4), (y.abs() >= 4)
    labels[road & (z < 0) & (z > -edge - 1e-9)] = taxonomy.label_of("driveable_surface")
    labels[walk & (z < edge - 1e-9) & (z > -1e-9)] = taxonomy.label_of("sidewalk")
    labels[(y > 7) & (z > 0) & (z < 3)] = taxonomy.label_of("manmade")
    for name, (at, size) in OBJECTS.items():
        inside = ((ego - torch.tensor(at)).abs() < torch.tensor(size) / 2 + 1e-9).all(-1)
        labels[inside] = taxonomy.label_of(name)
    return OccupancyGrid(labels, spec, taxonomy, grid2ego)


OBJECTS = {"car": ((8.0, -2.0, 0.8), (4.0, 1.6, 1.6)), "pedestrian": ((-6.0, -5.2, 1.2), (0.8, 0.8, 1.6))}


def make_boxes() -> Boxes:
    centers, sizes = zip(*OBJECTS.values(), strict=True)
    return Boxes(
        torch.stack([pose(*center) for center in centers]),
        torch.tensor(sizes),
        tuple(OBJECTS),
        velocities=torch.tensor([[3.0, 0.0], [0.0, 0.0]]),
        num_lidar_points=torch.tensor([50, 9]),
        instance_tokens=("a" * 32, "b" * 32),
    )
