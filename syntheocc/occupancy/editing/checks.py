"""What keeps an edited scene plausible: room, ground, and the borders of the grid. Legend: N voxels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from syntheocc.occupancy.building import EGO_BODY
from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.editing.ground import ground_columns, up_axis, voxel_centers
from syntheocc.occupancy.editing.objects import solid_table
from syntheocc.occupancy.editing.regions import Box
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.transforms import invert_rigid, transform_points

__all__ = ["ALLOWANCES", "floor_under", "grounded", "in_grid", "known_allowances", "no_collision", "point"]

ALLOWANCES = ("collision", "floating", "outside", "empty")
# Share of a footprint's columns that must have ground.
_SUPPORTED = 0.5


def known_allowances(allow: Sequence[str]) -> None:
    """Raise ValueError for anything but `ALLOWANCES`."""
    unknown = [word for word in ([allow] if isinstance(allow, str) else allow) if word not in ALLOWANCES]
    if unknown or isinstance(allow, str):
        raise ValueError(f"allow is a list of {', '.join(ALLOWANCES)}; got {allow!r}")


def point(value: Sequence[float], name: str) -> tuple[float, float]:
    """Two finite metres; ValueError otherwise."""
    try:
        x, y = (float(v) for v in value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is x, y, got {value!r}") from error
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError(f"{name} is two finite numbers, got {value!r}")
    return x, y


def floor_under(grid: OccupancyGrid, box: Box) -> float | None:
    """Ego z of the ground under a box: the median over its columns; None where under half of them have ground."""
    columns = ground_columns(grid, box.column(grid))
    if not len(columns.level):  # smaller than a voxel and between the columns' middles
        columns = ground_columns(grid, box.column(grid, max(grid.spec.voxel_size) / 2))
    known = columns.known
    if not len(known) or float(known.double().mean()) < _SUPPORTED:
        return None
    return float(columns.top[known].median())


def in_grid(grid: OccupancyGrid, box: Box, what: str, allow: Sequence[str]) -> None:
    """Raise ValueError where a box's footprint reaches out of the grid."""
    if "outside" in allow:
        return
    corners = transform_points(invert_rigid(grid.grid2ego), box.corners())
    axis, _ = up_axis(grid)
    sides = [i for i in range(3) if i != axis]
    lower, upper = torch.tensor([grid.spec.lower, grid.spec.upper], dtype=torch.float64)[:, sides]
    if bool(((corners[:, sides] < lower - 1e-6) | (corners[:, sides] > upper + 1e-6)).any()):
        bounds = torch.tensor([grid.spec.lower, grid.spec.upper], dtype=torch.float64)
        ends = transform_points(grid.grid2ego, bounds)
        x, y = (sorted(round(v, 1) for v in ends[:, i].tolist()) for i in (0, 1))
        raise ValueError(
            f"{what} reaches out of the grid, whose corners are x {x[0]} to {x[1]} m and y {y[0]} to {y[1]} m in ego; "
            "place it farther in, or allow=['outside'] to cut it off"
        )


def grounded(grid: OccupancyGrid, bottom: float, floor: float | None, what: str, allow: Sequence[str]) -> None:
    """Raise ValueError where an underside is more than a voxel above or below the ground."""
    if "floating" in allow:
        return
    if floor is None:
        raise ValueError(f"{what}: the grid has no ground under it; allow=['floating'] to place it all the same")
    gap = bottom - floor
    if abs(gap) > grid.spec.voxel_size[up_axis(grid)[0]] + 1e-6:
        how = f"floats {gap:.2f} m above" if gap > 0 else f"is sunk {-gap:.2f} m into"
        raise ValueError(f"{what} {how} the ground (z {floor:.2f}); leave z out, or allow=['floating']")


def no_collision(grid: OccupancyGrid, boxes: Boxes | None, box: Box, index: Tensor, what: str) -> None:
    """Raise ValueError where an object's voxels are taken, or a voxel's centre lies in its box and in another one.

    Args:
        grid: without the object.
        boxes: without the object's own.
        box: the object's.
        index: int64 [N, 3], its voxels.
        what: what messages call it.
    """
    labels = grid.labels[tuple(index.T.to(grid.device))].cpu()
    hit = labels[solid_table(grid.taxonomy)[labels.int()]]
    if len(hit):
        found, counts = hit.unique(return_counts=True)
        names = [
            f"{grid.taxonomy.classes[label]} ({n})" for label, n in zip(found.tolist(), counts.tolist(), strict=True)
        ]
        raise ValueError(
            f"{what} collides with {', '.join(names)} in {len(hit)} of its {len(index)} voxels; place it elsewhere, "
            "or allow=['collision']"
        )
    centers = voxel_centers(grid, box.voxels(grid))
    if boxes is not None and len(boxes):
        inside = boxes.contains(centers).any(1)
        if bool(inside.any()):
            i = int(inside.nonzero()[0])
            x, y, _ = boxes.centers[i].tolist()
            raise ValueError(
                f"{what} collides with the box of a {boxes.names[i]} at ({x:.1f}, {y:.1f}); place it elsewhere, or "
                "allow=['collision']"
            )
    if grid.spec.frame in ("ego", "lidar"):
        low, high = torch.tensor(EGO_BODY, dtype=torch.float64)
        if bool(((centers >= low) & (centers <= high)).all(1).any()):
            raise ValueError(f"{what} collides with the ego car; place it elsewhere, or allow=['collision']")
