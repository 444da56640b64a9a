"""Holes that a person can see, filled or left."""

import torch

from syntheocc.occupancy.accumulation.filling import close_surfaces, fill_ground, fill_object
from syntheocc.occupancy.accumulation.visibility import RayPasses
from syntheocc.occupancy.grids import GridSpec

SPEC = GridSpec((0.0, 0.0, 0.0), 0.5, (16, 16, 4))
ROAD, WALL, OTHER, FREE = 1, 2, 3, 0
GROUND = torch.zeros(256, dtype=torch.bool)
GROUND[ROAD] = True
CLOSABLE = torch.zeros(256, dtype=torch.bool)
CLOSABLE[[WALL, OTHER]] = True


def stripes():
    """Road in rows 0 to 2 and 8 to 10 (x), at height 0.6 and 0.8 m; labels and returns."""
    labels = torch.zeros(SPEC.shape, dtype=torch.uint8)
    points = []
    for rows, z in (((0, 1, 2), 0.6), ((8, 9, 10), 0.8)):
        for x in rows:
            for y in range(16):
                labels[x, y, 1] = ROAD
                points.append([0.5 * x + 0.25, 0.5 * y + 0.25, z])
    return labels, torch.tensor(points, dtype=torch.float64)


def filled(labels, points, passes, reach=2.0):
    labels = labels.clone()
    fill_ground(labels, points, passes, SPEC, FREE, GROUND, reach)
    return labels


def test_ground_is_laid_between_stripes_and_not_beyond_them():
    labels, points = stripes()
    result = filled(labels, points, RayPasses.none(SPEC))
    assert (result[:11, :, 1] == ROAD).all() and (result[11:] == FREE).all()
    assert (result[:, :, [0, 2, 3]] == FREE).all()
    # the gap is 2.5 m wide: half of it is more than 1 m
    assert torch.equal(filled(labels, points, RayPasses.none(SPEC), reach=1.0), labels)


def test_a_ray_above_the_surface_is_no_objection_and_one_below_it_is():
    labels, points = stripes()
    passes = RayPasses.none(SPEC)
    passes.lowest[:] = 0.9 / 0.5
    passes.through[:, :, 1] = 5
    assert (filled(labels, points, passes)[:11, :, 1] == ROAD).all()
    passes.lowest[5, 5] = 0.3 / 0.5
    result = filled(labels, points, passes)
    assert result[5, 5, 1] == FREE and result[5, 6, 1] == ROAD


def test_what_stands_there_is_not_replaced():
    labels, points = stripes()
    labels[5, 5, 1] = WALL
    assert filled(labels, points, RayPasses.none(SPEC))[5, 5, 1] == WALL


def test_without_ground_nothing_happens():
    labels = torch.zeros(SPEC.shape, dtype=torch.uint8)
    assert torch.equal(filled(labels, torch.zeros(0, 3, dtype=torch.float64), RayPasses.none(SPEC)), labels)


def walled(hole):
    labels = torch.zeros(SPEC.shape, dtype=torch.uint8)
    labels[4, :, :] = WALL
    labels[4, hole, :] = FREE
    return labels, torch.zeros(SPEC.shape, dtype=torch.int32)


def test_a_hole_in_a_wall_is_closed_with_its_class():
    labels, instances = walled([7, 8])
    labels[4, 6, 1] = OTHER  # outvoted
    done = close_surfaces(labels, instances, RayPasses.none(SPEC), FREE, CLOSABLE, steps=1)
    assert (labels[4, 7:9, :] == WALL).all() and (labels[5:] == FREE).all() and done.sum() == 8


def test_a_hole_that_a_ray_went_through_stays():
    labels, instances = walled([7, 8])
    passes = RayPasses.none(SPEC)
    passes.through[4, 7, 2] = 1
    close_surfaces(labels, instances, passes, FREE, CLOSABLE, steps=1)
    assert labels[4, 7, 2] == FREE and labels[4, 8, 2] == WALL


def test_wide_holes_and_objects_stay():
    labels, instances = walled([6, 7, 8, 9])
    close_surfaces(labels, instances, RayPasses.none(SPEC), FREE, CLOSABLE, steps=1)
    assert (labels[4, 7:9] == FREE).all()
    close_surfaces(labels, instances, RayPasses.none(SPEC), FREE, CLOSABLE, steps=2)
    assert (labels[4, 6:10] == WALL).all()
    labels, instances = walled([7, 8])
    instances[4] = 1
    assert not close_surfaces(labels, instances, RayPasses.none(SPEC), FREE, CLOSABLE, steps=1).any()


def test_a_body_is_filled_between_its_sides():
    """Left and right sides of a box 4 x 2 x 1.5, and half a metre of open frame before it."""
    x, z = torch.meshgrid(torch.arange(-1.9, 1.5, 0.2), torch.arange(-0.7, 0.7, 0.2), indexing="ij")
    sides = [torch.stack([x, torch.full_like(x, y), z], -1).reshape(-1, 3) for y in (-0.95, 0.95)]
    cells, corner = fill_object(torch.cat(sides), torch.tensor([4.0, 2.0, 1.5]), 0.25)
    at = lambda *p: bool(cells[tuple(((torch.tensor(p) - corner) / 0.25).floor().long().tolist())])  # noqa: E731
    assert at(0.0, 0.0, 0.0) and at(-1.8, 0.5, 0.5) and at(1.4, -0.9, 0.0)
    assert not at(1.9, 0.0, 0.0) and not at(0.0, 0.0, 0.9) and not at(0.0, 1.2, 0.0)
    one_side, _ = fill_object(sides[0], torch.tensor([4.0, 2.0, 1.5]), 0.25)
    assert one_side.sum() < cells.sum() / 5


def test_gaps_between_scan_lines_on_a_side_are_the_body():
    """A side that is seen at a grazing angle: a column of returns every metre; mirrored, and one at the front."""
    side = [[x, 0.9, z] for x in (-1.9, -0.9, 0.1, 1.1) for z in (-0.4, 0.0, 0.4)]
    points = torch.tensor(side + [[x, -y, z] for x, y, z in side] + [[1.9, 0.0, 0.0]])
    cells, corner = fill_object(points, torch.tensor([4.0, 2.0, 1.5]), 0.2)
    at = lambda *p: bool(cells[tuple(((torch.tensor(p) - corner) / 0.2).floor().long().tolist())])  # noqa: E731
    assert at(-0.4, 0.9, 0.0) and at(-0.4, 0.0, 0.4) and at(1.9, 0.0, 0.0)
    assert not at(1.5, 0.9, 0.0) and not at(0.0, 0.0, 0.65)
