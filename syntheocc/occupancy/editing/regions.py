"""Oriented boxes as regions of a grid: which voxels an edit may touch. Legend: N voxels, P points, X Y Z voxels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.transforms import rigid_transform, rotation_z, transform_points

__all__ = ["Box", "heights_of", "upright_box"]


@dataclass(frozen=True, eq=False)
class Box:
    """An oriented box.

    Args:
        box2ego: float64 [4, 4]; origin in the middle, x along the length, z up.
        size: length, width, height, metres.

    Raises:
        ValueError: a pose that is not rigid, or a size that is not three positive finite metres.
    """

    box2ego: Tensor
    size: tuple[float, float, float]

    def __post_init__(self):
        object.__setattr__(self, "box2ego", rigid_transform(self.box2ego, "box2ego"))
        object.__setattr__(self, "size", tuple(float(edge) for edge in self.size))
        if len(self.size) != 3 or not all(math.isfinite(edge) and edge > 0 for edge in self.size):
            raise ValueError(f"a box's size is length, width, height in positive metres, got {self.size}")

    @property
    def center(self) -> tuple[float, float, float]:
        """The middle, metres in ego."""
        x, y, z = self.box2ego[:3, 3].tolist()
        return x, y, z

    @property
    def yaw(self) -> float:
        """Heading about ego z, radians."""
        return math.atan2(float(self.box2ego[1, 0]), float(self.box2ego[0, 0]))

    def grown(self, margin: float) -> "Box":
        """The box with `margin` metres more on every side."""
        return Box(self.box2ego, tuple(edge + 2 * margin for edge in self.size))  # type: ignore[arg-type]

    def column(self, grid: OccupancyGrid, margin: float = 0.0) -> "Box":
        """The upright box over the same footprint, `margin` metres wider, from the grid's lowest point to its highest.

        Its axes are ego's z and this box's heading; a box that is tilted keeps its length and width.
        """
        low, high = heights_of(grid)
        x, y, _ = self.center
        size = (self.size[0] + 2 * margin, self.size[1] + 2 * margin, high - low)
        return upright_box((x, y, (low + high) / 2), size, self.yaw)

    def voxels(self, grid: OccupancyGrid) -> Tensor:
        """Indices int64 [N, 3] of the voxels whose centres lie in the box, on the grid's device, sorted."""
        spec = grid.spec
        box2grid = torch.linalg.inv(grid.grid2ego) @ self.box2ego
        half = torch.tensor(self.size, dtype=torch.float64) / 2
        reach = box2grid[:3, :3].abs() @ half  # half the extent along the grid's axes
        lower, edge = torch.tensor(spec.lower, dtype=torch.float64), torch.tensor(spec.voxel_size, dtype=torch.float64)
        first = ((box2grid[:3, 3] - reach - lower) / edge).floor().long().clamp_min(0)
        last = torch.minimum(((box2grid[:3, 3] + reach - lower) / edge).ceil().long(), torch.tensor(spec.shape))
        if bool((last <= first).any()):
            return torch.zeros(0, 3, dtype=torch.long, device=grid.device)
        axes = [torch.arange(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        centers = lower + (index + 0.5) * edge
        local = (centers - box2grid[:3, 3]) @ box2grid[:3, :3]  # the inverse of a rotation is its transpose
        return index[(local.abs() <= half).all(1)].to(grid.device)

    def corners(self) -> Tensor:
        """The eight corners float64 [8, 3], metres in ego."""
        signs = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * 3)
        return transform_points(self.box2ego, signs * torch.tensor(self.size, dtype=torch.float64))


def upright_box(center: tuple[float, float, float], size: tuple[float, float, float], yaw: float = 0.0) -> Box:
    """A box whose z is ego's.

    Args:
        center: its middle, metres in ego.
        size: length, width, height, metres.
        yaw: heading about ego z, radians.
    """
    pose = rotation_z(yaw)
    pose[:3, 3] = torch.tensor(center, dtype=torch.float64)
    return Box(pose, size)


def heights_of(grid: OccupancyGrid) -> tuple[float, float]:
    """The lowest and the highest ego z that the grid reaches, metres."""
    bounds = torch.tensor([grid.spec.lower, grid.spec.upper], dtype=torch.float64)
    corners = torch.cartesian_prod(*bounds.T)
    z = transform_points(grid.grid2ego, corners)[:, 2]
    return float(z.min()), float(z.max())
