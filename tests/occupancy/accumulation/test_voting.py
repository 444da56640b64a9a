"""Votes in voxels that a person can count."""

import pytest
import torch

from syntheocc.occupancy.accumulation.voting import majority, nearest_class, numbered_instances
from syntheocc.occupancy.grids import GridSpec

UNIT = GridSpec((0.0, 0.0, 0.0), 1.0, (3, 3, 3))


def test_the_majority_of_a_voxel_wins():
    points = torch.tensor([[0.5, 0.5, 0.5]] * 3 + [[1.5, 0.5, 0.5]] * 2 + [[9.0, 0.5, 0.5]])
    labels = torch.tensor([4, 4, 9, 7, 5, 1], dtype=torch.uint8)
    found, instances = majority(points, labels, torch.tensor([2, 2, 0, 0, 0, 0]), UNIT, free=0)
    assert found[0, 0, 0] == 4 and instances[0, 0, 0] == 2
    assert found[1, 0, 0] == 5  # of equals the smaller id
    assert (found != 0).sum() == 2  # the point outside is in no voxel


def test_points_without_class_have_no_say_where_others_have_one():
    points = torch.tensor([[0.5, 0.5, 0.5]] * 4 + [[1.5, 0.5, 0.5]])
    found, _ = majority(points, torch.tensor([255, 255, 255, 3, 255]).byte(), torch.zeros(5).long(), UNIT, free=17)
    assert found[0, 0, 0] == 3 and found[1, 0, 0] == 255
    assert (found == 17).sum() == 25


def test_no_point_leaves_all_voxels_free():
    nothing = torch.zeros(0, 3), torch.zeros(0, dtype=torch.uint8), torch.zeros(0, dtype=torch.long)
    found, instances = majority(*nothing, UNIT, free=17)
    assert (found == 17).all() and (instances == 0).all()


def test_the_nearest_class_within_the_radius_is_taken_over():
    labels = torch.zeros(3, 3, 3, dtype=torch.uint8)
    labels[0, 0, 0], labels[1, 0, 0], labels[2, 2, 2], labels[2, 2, 1] = 255, 4, 255, 9
    # (0,0,0) is one from class 4; (2,2,2) is one from class 9, which may not be taken, and three from class 4
    may = torch.zeros(256, dtype=torch.bool)
    may[4] = True
    near = nearest_class(labels, UNIT, free=0, radius=2.0, of=may)
    assert near[0, 0, 0] == 4 and near[2, 2, 2] == 255
    assert nearest_class(labels, UNIT, free=0, radius=4.0, of=may)[2, 2, 2] == 4
    assert nearest_class(labels, UNIT, free=0, radius=2.0)[2, 2, 2] == 9
    assert labels[0, 0, 0] == 255  # what was given is unchanged


def test_instances_are_numbered_densely():
    sparse = torch.tensor([0, 7, 7, 300, 0]).reshape(5, 1, 1)
    assert numbered_instances(sparse).flatten().tolist() == [0, 1, 1, 2, 0]
    with pytest.raises(ValueError, match="300"):
        numbered_instances(torch.arange(301).reshape(301, 1, 1))
