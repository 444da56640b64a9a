"""The short street of `small_street` as fixtures."""

import math

import pytest
import torch
from small_street import make_boxes, make_street, pose

from syntheocc.occupancy import OccupancyGrid
from syntheocc.occupancy.data.frames import Boxes


@pytest.fixture
def street() -> OccupancyGrid:
    return make_street()


@pytest.fixture
def boxes() -> Boxes:
    return make_boxes()


@pytest.fixture
def lidar_pose() -> torch.Tensor:
    """A lidar that looks to the right and stands a little askew, as real ones do."""
    tilt = pose(0.9, 0.0, 1.8, -math.pi / 2)
    lean = torch.eye(4, dtype=torch.float64)
    angle = 0.004
    lean[1:3, 1:3] = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
    )
    return tilt @ lean
