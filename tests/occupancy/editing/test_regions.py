"""Which voxels lie in a box, where the ground is, and how it is closed: by hand, and against the slow way."""

import math

import pytest
import torch

from syntheocc.occupancy.editing.ground import REACH, close_ground, ground_columns
from syntheocc.occupancy.editing.regions import Box, upright_box
from syntheocc.occupancy.grids import GridSpec, OccupancyGrid
from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY as TABLE

ROAD, WALK = TABLE.id_of("driveable_surface"), TABLE.id_of("sidewalk")
SMALL = GridSpec((-4.0, -4.0, -1.0), 0.5, (16, 16, 6))


def road() -> OccupancyGrid:
    """A road in the voxels from -0.5 to 0 m."""
    labels = torch.zeros(SMALL.shape, dtype=torch.uint8)
    labels[:, :, 1] = ROAD
    return OccupancyGrid(labels, SMALL, TABLE)


def test_a_box_holds_the_voxels_whose_centres_lie_in_it():
    grid = road()
    box = upright_box((1.0, 0.0, 0.5), (2.0, 1.0, 1.0))  # x 0..2, y -0.5..0.5, z 0..1: 4 x 2 x 2 voxels
    assert box.voxels(grid).tolist() == [[x, y, z] for x in (8, 9, 10, 11) for y in (7, 8) for z in (2, 3)]
    turned = upright_box((1.0, 0.0, 0.5), (2.0, 1.0, 1.0), math.pi / 2)
    assert len(turned.voxels(grid)) == 16 and turned.voxels(grid)[:, 0].unique().tolist() == [9, 10]
    # The slow way: every centre of the grid, in the frame of a box that is turned and in a grid with a pose.
    shifted = OccupancyGrid(grid.labels, SMALL, TABLE, upright_box((0.3, -0.2, 0.1), (1, 1, 1), 0.4).box2ego)
    askew = upright_box((0.5, 0.7, 0.3), (3.0, 1.4, 1.1), 0.9)
    centers = SMALL.centers().reshape(-1, 3)
    ego = centers @ shifted.grid2ego[:3, :3].T + shifted.grid2ego[:3, 3]
    local = (ego - askew.box2ego[:3, 3]) @ askew.box2ego[:3, :3]
    inside = (local.abs() <= torch.tensor(askew.size, dtype=torch.float64) / 2).all(1).reshape(SMALL.shape)
    assert torch.equal(askew.voxels(shifted), inside.nonzero())
    assert len(upright_box((40, 0, 0), (1.0, 1.0, 1.0)).voxels(grid)) == 0
    assert askew.yaw == pytest.approx(0.9) and askew.grown(0.5).size == pytest.approx((4.0, 2.4, 2.1))
    with pytest.raises(ValueError, match="positive metres"):
        Box(torch.eye(4), (1.0, 0.0, 1.0))


def test_the_ground_is_the_lowest_run_of_ground_voxels():
    grid = road()
    grid.labels[3, 3, :] = 0
    grid.labels[4, 4, 1:4] = ROAD  # three high
    grid.labels[5, 5, 4] = WALK  # a bridge above the road
    columns = ground_columns(grid, upright_box((0, 0, 0), (8, 8, 3)))
    assert columns.column[:, 2].eq(0).all() and len(columns.column) == 256
    level = dict(zip(map(tuple, columns.column[:, :2].tolist()), columns.level.tolist(), strict=True))
    assert (level[3, 3], level[4, 4], level[5, 5], level[0, 0]) == (-1, 3, 1, 1)
    top = dict(zip(map(tuple, columns.column[:, :2].tolist()), columns.top.tolist(), strict=True))
    assert math.isnan(top[3, 3]) and (top[4, 4], top[5, 5]) == (1.0, 0.0)
    # The same grid upside down, with a pose that turns it back: a camera's y looks down.
    flipped = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0])).double()
    spec = GridSpec((-4.0, -4.0, -2.0), 0.5, (16, 16, 6))
    mirrored = OccupancyGrid(grid.labels.flip(1, 2), spec, TABLE, flipped)
    again = ground_columns(mirrored, upright_box((0, 0, 0), (8, 8, 4)))
    heights = again.top.nan_to_num(-9).reshape(16, 16).flip(1)
    assert torch.equal(heights, columns.top.nan_to_num(-9).reshape(16, 16))


def slow_closing(labels, spec, columns):
    """The rule of `close_ground` column by column."""
    result = labels.clone()
    known = {}
    for x in range(spec.shape[0]):
        for y in range(spec.shape[1]):
            held = [z for z in range(spec.shape[2]) if int(labels[x, y, z]) in (ROAD, WALK)]
            if held:
                top = held[0]
                while top + 1 in held:
                    top += 1
                known[x, y] = (top, int(labels[x, y, top]))
    for x, y in columns:
        if (x, y) in known:
            continue
        near = min(known, key=lambda c: (round((c[0] - x) ** 2 + (c[1] - y) ** 2, 6), c), default=None)
        if near is None or 0.5 * math.dist(near, (x, y)) > REACH:
            continue
        level, label = known[near]
        if int(labels[x, y, level]) in (TABLE.free, 255):
            result[x, y, level] = label
    return result


@pytest.mark.parametrize("seed", range(4))
def test_closing_takes_the_nearest_columns_ground(seed):
    random = torch.Generator().manual_seed(seed)
    grid = road()
    grid.labels[:, 9:, 1] = 0
    grid.labels[:, 9:, 2] = WALK
    grid.labels[torch.rand(16, 16, generator=random) < (0.97 if seed == 3 else 0.6)] = 0
    grid.labels[torch.rand(SMALL.shape, generator=random) < 0.03] = TABLE.id_of("manmade")
    wanted = [(x, y) for x in range(2, 14) for y in range(3, 16) if (x + y + seed) % 3]
    columns = torch.tensor([(x, y, 0) for x, y in wanted])
    expected = slow_closing(grid.labels, SMALL, wanted)
    labels = grid.labels.clone()
    made = close_ground(labels, grid, columns)
    assert torch.equal(labels, expected)
    assert torch.equal((labels != grid.labels).nonzero(), made[torch.argsort(made @ torch.tensor([1000, 30, 1]))])
    nothing = torch.zeros(SMALL.shape, dtype=torch.uint8)
    assert len(close_ground(nothing, grid, columns)) == 0 and not bool(nothing.any())
