import numpy as np
import pytest
import torch

from syntheocc.occupancy import NUSCENES_CAMERAS, SYNTHEOCC
from syntheocc.worlds.street import example_street


@pytest.fixture(scope="module")
def street():
    return example_street()


def label_at(grid, x, y, z):
    """Class name of the voxel at an ego-frame point, metres."""
    ego2lidar = torch.linalg.inv(grid.grid2ego)
    point = ego2lidar[:3, :3] @ torch.tensor([x, y, z], dtype=torch.float64) + ego2lidar[:3, 3]
    index, inside = grid.spec.index_of(point)
    assert bool(inside)
    return grid.taxonomy.classes[int(grid.labels[tuple(index.tolist())])]


def test_the_street_is_where_the_plan_says(street):
    grid, rig, boxes = street
    free = grid.taxonomy.classes[grid.taxonomy.free]
    assert grid.spec == SYNTHEOCC.spec and grid.spec.frame == "lidar"
    assert label_at(grid, 0, 0, -0.1) == "driveable_surface"
    assert label_at(grid, 1.0, -6.0, 0.1) == "sidewalk" and label_at(grid, 27.0, -6.0, 0.1) == free
    assert label_at(grid, 27.0, -6.0, -0.1) == "driveable_surface"
    assert label_at(grid, 0.0, 13.1, 2.0) == "manmade"
    assert [label_at(grid, x, 0.0, 1.0) for x in (0.0, 1.0, 3.0)] == [free] * 3, "something stands in the ego car"
    present = set(np.unique(grid.labels.numpy()).tolist())
    assert present == set(range(17)), "every class of the table is in the street"


def test_boxes_hold_exactly_the_voxels_of_their_class(street):
    grid, _, boxes = street
    points = grid.spec.centers()
    for name in sorted(set(boxes.names)):
        chosen = boxes.filter(lambda other, name=name: other == name)
        index = (grid.labels == grid.taxonomy.id_of(name)).nonzero()
        ego = points[tuple(index.T)] @ grid.grid2ego[:3, :3].T + grid.grid2ego[:3, 3]
        inside = chosen.contains(ego, margin=1e-6)
        assert bool(inside.any(0).all()), f"{name}: a voxel outside every box"
        assert bool((inside.sum(1) >= 3).all()), f"{name}: a box without voxels"


def test_the_rig_is_level_and_a_ring(street):
    rig = street.rig
    assert rig.names == NUSCENES_CAMERAS
    assert [(rig[name].height, rig[name].width) for name in rig.names] == [(900, 1600)] * 6
    yaw = [float(torch.rad2deg(torch.atan2(rig[n].cam2ego[1, 2], rig[n].cam2ego[0, 2]))) for n in rig.names]
    assert np.allclose(yaw, [55, 0, -55, -110, 180, 110])
    assert torch.equal(rig.neighbors(), torch.tensor([[5, 1], [0, 2], [1, 3], [2, 4], [3, 5], [4, 0]]))
    # a point 10 m ahead at the camera's height lies in the picture's middle
    camera = rig["CAM_FRONT"]
    pixels, depth = camera.project(torch.tensor([[0.0, 0.0, 10.0]], dtype=torch.float64))
    assert pixels[0].tolist() == [799.5, 449.5] and float(depth) == 10


def test_the_seed_moves_details_and_nothing_else_does(street):
    again, other = example_street(), example_street(seed=1)
    assert torch.equal(street.grid.labels, again.grid.labels)
    changed = (street.grid.labels != other.grid.labels).float().mean()
    assert 0 < float(changed) < 0.01
    assert len(other.boxes) == len(street.boxes)
