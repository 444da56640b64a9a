"""Doses of motion, and what an edit did, on grids small enough to count."""

import math

import pytest
import torch

from syntheocc.evaluation.counterfactual import changed_pixels, effect_of
from syntheocc.evaluation.sensitivity import DOSES, Dose, motion_of, moved_rig
from syntheocc.occupancy.editing import Recipe
from syntheocc.occupancy.grids import GridSpec, OccupancyGrid
from syntheocc.occupancy.rendering.mpi import render_mpi
from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY as TABLE

CAR, BUS, ROAD = TABLE.id_of("car"), TABLE.id_of("bus"), TABLE.id_of("driveable_surface")
SPEC = GridSpec((-4.0, -4.0, -1.0), 0.5, (16, 16, 6))


def road() -> OccupancyGrid:
    """A road in the voxels from -0.5 to 0 m."""
    labels = torch.zeros(SPEC.shape, dtype=torch.uint8)
    labels[:, :, 1] = ROAD
    return OccupancyGrid(labels, SPEC, TABLE)


def test_motions_have_the_length_and_angle_asked_for():
    random = torch.Generator().manual_seed(0)
    directions = []
    for _ in range(20):
        motion = motion_of(Dose("shift", 2.0), random)
        assert float(motion[:3, 3].norm()) == pytest.approx(2.0) and torch.equal(motion[:3, :3], torch.eye(3).double())
        directions.append(math.atan2(motion[1, 3], motion[0, 3]))
    assert max(directions) > 1 and min(directions) < -1
    turns = [motion_of(Dose("turn", 10.0), random) for _ in range(20)]
    angles = {round(math.degrees(math.atan2(turn[1, 0], turn[0, 0])), 6) for turn in turns}
    assert angles == {10.0, -10.0}
    assert [dose.name for dose in DOSES][-2:] == ["turn 10 deg", "other scene"]
    with pytest.raises(ValueError, match="no motion"):
        motion_of(Dose("swap"))


def test_a_moved_rig_sees_the_world_shifted_the_other_way(six_cameras):
    """Moving the rig one voxel forward equals moving the occupancy one voxel back."""
    block = {"edit": "insert", "asset": "box", "class": "car", "size": [1.0, 2.0, 1.0], "at": [3.0, 0.0]}
    grid = Recipe((block | {"allow": ["collision"]},)).apply(road())  # the ego car's own place
    forward = torch.eye(4, dtype=torch.float64)
    forward[0, 3] = 0.5
    moved = render_mpi(grid, moved_rig(six_cameras, forward), 7, 13)
    back = OccupancyGrid(grid.labels.roll(-1, 0), SPEC, TABLE)
    back.labels[-1] = 0
    still = render_mpi(back, six_cameras, 7, 13)
    here = render_mpi(grid, six_cameras, 7, 13)
    # What the roll lost at the front edge and gained at the back is far from the car; compare the front view.
    front = six_cameras.names.index("CAM_FRONT")
    assert torch.equal(moved.nearest[front] == CAR, still.nearest[front] == CAR)
    assert not torch.equal(here.nearest_plane[front], moved.nearest_plane[front])


def test_the_effect_of_an_edit_by_hand():
    before = torch.zeros(1, 4, 8, dtype=torch.uint8)
    after = before.clone()
    after[0, 0, 0] = CAR
    target, rest = changed_pixels(before, after, (8, 16), CAR)
    assert int(target.sum()) == 4 and bool(target[0, :2, :2].all())
    assert int(rest.sum()) == 8 * 16 - 6 * 6  # all but the cell and two cells around it, of four pixels each
    assert torch.equal(changed_pixels(after, before, (8, 16), CAR)[0], target)
    black, grey = torch.zeros(1, 3, 8, 16), torch.full((1, 3, 8, 16), 0.5)
    with_car = black.clone()
    with_car[:, :, :2, :2] = 1
    seen_before, seen_after = torch.zeros(1, 8, 16, dtype=torch.uint8), torch.zeros(1, 8, 16, dtype=torch.uint8)
    seen_after[0, 0, :2] = CAR
    seen_after[0, 7] = ROAD  # 16 pixels outside changed their class
    effect = effect_of((black, with_car, grey), (seen_before, seen_after), target, rest, CAR, BUS)
    assert (effect.label_before, effect.label_after, effect.other_after, effect.pixels) == (0, 0.5, 0, 4)
    assert (effect.rest_changed, effect.seed_changed) == (0, 0.5)
    assert effect.rest_labels == pytest.approx(1 - 16 / 92)
    with pytest.raises(ValueError, match="changes nothing"):
        effect_of((black, black, grey), (seen_before, seen_after), target & False, rest, CAR)
    with pytest.raises(ValueError, match="unknown"):
        effect_of((black, black, grey), (seen_before, seen_after), target, rest, 255)
