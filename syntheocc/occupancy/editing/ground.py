"""The ground in a grid: how high it lies under a footprint, and how it is closed where an object was taken away.

A *column* is the voxels above each other along the grid's axis that is nearest to ego's up. Its ground is the lowest
run of voxels of a ground class; what stands there stands on the run's upper face, which is on average half a voxel
above the surface that was labelled.

**Closing.** A column without ground takes class and height of the nearest column that has some, measured in the plane
between the columns' middles (the first in x, y order where several are as near), no farther than `REACH` metres away.
Only voxels that are free or unknown are written. What else was hidden behind an object was never seen, and stays free.
Legend: N voxels, C columns.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.editing.regions import Box
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.taxonomy import UNKNOWN, Taxonomy
from syntheocc.occupancy.transforms import transform_points

__all__ = ["GROUND_CLASSES", "GroundColumns", "close_ground", "ground_columns", "ground_table", "voxel_centers"]

# Classes that are the ground, by name, in the street and the indoor tables.
GROUND_CLASSES = (
    "driveable_surface", "other_flat", "sidewalk", "terrain", "road", "parking", "other_ground", "floor", "rug",
)  # fmt: skip
REACH = 6.0


class GroundColumns(NamedTuple):
    """The columns of a region.

    column: int64 [C, 3], the voxel index with 0 along the up axis; sorted.
    level: int64 [C], index along the up axis of the ground's uppermost voxel; -1 where there is none.
    top: float64 [C], ego z of its upper face, metres; NaN where there is none.
    label: uint8 [C], its class; meaningless where there is none.
    """

    column: Tensor
    level: Tensor
    top: Tensor
    label: Tensor

    @property
    def known(self) -> Tensor:
        """Bool [C], where there is ground."""
        return self.level >= 0


def ground_table(taxonomy: Taxonomy, device: torch.device | str = "cpu") -> Tensor:
    """Bool [256]: which labels are ground."""
    table = torch.zeros(256, dtype=torch.bool)
    table[[i for i, name in enumerate(taxonomy.classes) if name in GROUND_CLASSES]] = True
    return table.to(device)


def up_axis(grid: OccupancyGrid) -> tuple[int, int]:
    """The grid's axis nearest to ego's up, and whether its indices grow upwards (1) or downwards (-1)."""
    along = grid.grid2ego[2, :3]
    axis = int(along.abs().argmax())
    return axis, 1 if along[axis] > 0 else -1


def voxel_centers(grid: OccupancyGrid, index: Tensor) -> Tensor:
    """Centres float64 [N, 3] in ego, metres, of voxels int64 [N, 3]; on the CPU."""
    lower, size = torch.tensor([grid.spec.lower, grid.spec.voxel_size], dtype=torch.float64)
    return transform_points(grid.grid2ego, lower + (index.cpu() + 0.5) * size)


def ground_columns(grid: OccupancyGrid, region: Box) -> GroundColumns:
    """The columns whose voxels lie in a region, and the ground in them.

    Args:
        grid: any grid; its ground is told by the names of its classes.
        region: usually `Box.column`, which holds whole columns.
    """
    axis, sign = up_axis(grid)
    index = region.voxels(grid).cpu()
    height = index[:, axis] * sign
    shape = grid.spec.shape
    sides = [index[:, i] if i != axis else torch.zeros_like(height) for i in range(3)]
    # One number a column, in the order of the indices: a unique over rows would take ten times as long.
    key, owner = torch.unique((sides[0] * shape[1] + sides[1]) * shape[2] + sides[2], return_inverse=True)
    column = torch.stack([key // (shape[1] * shape[2]), key // shape[2] % shape[1], key % shape[2]], 1)
    labels = grid.labels[tuple(index.T.to(grid.device))].cpu()
    chosen = ground_table(grid.taxonomy)[labels.int()]
    places, heights, kinds = owner[chosen].numpy(), height[chosen].numpy(), labels[chosen].numpy()
    order = np.lexsort((heights, places))
    places, heights, kinds = places[order], heights[order], kinds[order]
    starts = np.ones(len(places), dtype=bool)
    starts[1:] = places[1:] != places[:-1]
    breaks = starts.copy()
    breaks[1:] |= heights[1:] != heights[:-1] + 1
    run = np.cumsum(breaks)
    first_run = run[np.flatnonzero(starts)]  # of each column that has ground, in the order of `places`
    lowest = run == np.repeat(first_run, np.diff(np.append(np.flatnonzero(starts), len(places))))
    level = np.full(len(column), np.iinfo(np.int64).min)
    label = np.zeros(len(column), dtype=np.uint8)
    # Heights ascend within a column, so the last write is the run's top.
    level[places[lowest]], label[places[lowest]] = heights[lowest], kinds[lowest]
    known = torch.from_numpy(level != np.iinfo(np.int64).min)
    levels = torch.where(known, torch.from_numpy(level) * sign, -1)
    at = column.clone()
    at[:, axis] = levels.clamp_min(0)
    face = voxel_centers(grid, at)[:, 2] + 0.5 * sign * grid.spec.voxel_size[axis] * grid.grid2ego[2, axis]
    top = torch.where(known, face, torch.nan)
    return GroundColumns(column, levels, top, torch.from_numpy(label))


def close_ground(labels: Tensor, grid: OccupancyGrid, columns: Tensor) -> Tensor:
    """Give columns without ground that of their nearest neighbour (see above).

    Args:
        labels: uint8 [X, Y, Z] on the CPU, the grid after the removal; is changed.
        grid: tells geometry and class table.
        columns: int64 [C, 3], columns that may be closed, 0 along the up axis.

    Returns:
        int64 [N, 3], the voxels that became ground.
    """
    axis, _ = up_axis(grid)
    sides = [i for i in range(3) if i != axis]
    size = torch.tensor(grid.spec.voxel_size, dtype=torch.float64)[sides]
    strides = torch.tensor([grid.spec.shape[sides[1]], 1])
    closed = []
    # Most neighbours are near, and a small surrounding finds the same ones sooner.
    for reach in (min(REACH, 1.5), REACH):
        if not len(columns):
            break
        around = ground_columns(grid._replace(labels, grid.taxonomy), _around(grid, columns, reach))
        wanted = torch.isin((around.column[:, sides] * strides).sum(1), (columns[:, sides] * strides).sum(1))
        bare, donors = (wanted & ~around.known).nonzero()[:, 0], around.known.nonzero()[:, 0]
        columns = around.column[bare]
        if not len(bare) or not len(donors):
            continue
        gap = torch.cdist(around.column[bare][:, sides] * size, around.column[donors][:, sides] * size)
        nearest = gap.argmin(1)  # the first of equals
        near = gap.gather(1, nearest[:, None])[:, 0] <= reach
        columns, donor = columns[~near], donors[nearest[near]]
        voxel = around.column[bare[near]]
        voxel[:, axis] = around.level[donor]
        before = labels[tuple(voxel.T)]
        open_ = (before == grid.taxonomy.free) | (before == UNKNOWN)
        closed.append((voxel[open_], around.label[donor][open_]))
    for voxel, label in closed:
        labels[tuple(voxel.T)] = label
    return torch.cat([voxel for voxel, _ in closed]) if closed else torch.zeros(0, 3, dtype=torch.long)


def _around(grid: OccupancyGrid, columns: Tensor, reach: float) -> Box:
    """A box of whole columns that holds these ones and `reach` metres around them."""
    axis, _ = up_axis(grid)
    low, high = columns.amin(0), columns.amax(0)
    low[axis], high[axis] = 0, grid.spec.shape[axis] - 1
    lower, size = torch.tensor([grid.spec.lower, grid.spec.voxel_size], dtype=torch.float64)
    pose = grid.grid2ego.clone()
    pose[:3, 3] = transform_points(grid.grid2ego, (lower + ((low + high) / 2 + 0.5) * size)[None])[0]
    length, width, height = ((high - low + 1) * size + 2 * reach).tolist()
    return Box(pose, (length, width, height))
