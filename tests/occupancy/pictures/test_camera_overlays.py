import math

import numpy as np
import pytest
import torch

from syntheocc.occupancy import Camera, CameraRig, GridSpec, OccupancyGrid
from syntheocc.occupancy.distortion import BrownConrady
from syntheocc.occupancy.pictures import BACKGROUND, camera_overlays, class_colors
from syntheocc.occupancy.pictures.tracing import trace
from syntheocc.occupancy.taxonomy import taxonomy_named

TAXONOMY = taxonomy_named("syntheocc")
CAR, TREE = 1, 16
FORWARD = [[0, 0, 1, 0.0], [-1, 0, 0, 0.0], [0, -1, 0, 0.5], [0, 0, 0, 1]]  # looks along ego x from 0.5 m up


def world(**voxels):
    """A grid of 20 x 20 x 4 voxels of 1 m about the ego; voxels by name: x, y, z, class."""
    labels = np.zeros((20, 20, 4), np.uint8)
    for x, y, z, label in voxels.values():
        labels[x + 10, y + 10, z + 2] = label
    return OccupancyGrid(labels, GridSpec((-10.0, -10.5, -2.0), (1.0,) * 3, labels.shape), TAXONOMY)


def rig(distortion=None, **options):
    matrix = [[100.0, 0, 80], [0, 100, 40], [0, 0, 1]]
    return CameraRig({"CAM": Camera(matrix, FORWARD, 80, 160, distortion=distortion, **options)})


def test_the_nearest_voxel_shows_where_it_projects_to():
    grid = world(near=(4, 0, 0, CAR), far=(8, 0, 0, TREE), beside=(8, 2, 0, TREE))
    picture = camera_overlays(grid, rig(), stride=1, shade=False)["CAM"]
    assert picture.shape == (80, 160, 3)
    # The near face is 1 m wide at 4 m: 25 pixels about the middle; the one beside spans 1.5 to 2.5 m at 8 m, left.
    orange = (picture == [255, 158, 0]).all(-1)
    assert orange[40].sum() == 25 and orange[:, 80].sum() == 25 and orange[40, 68:93].all()
    columns = np.flatnonzero((picture == [0, 175, 0]).all(-1).any(0))
    assert columns[0] == np.ceil(80 - 100 * 2.5 / 8) and columns[-1] == np.floor(80 - 100 * 1.5 / 9)
    assert (picture[5, 5] == BACKGROUND).all()


def test_a_photograph_shines_through_and_stays_where_nothing_is():
    grid = world(near=(4, 0, 0, CAR))
    photo = np.full((80, 160, 3), 100, np.uint8)
    picture = camera_overlays(grid, rig(), {"CAM": photo}, alpha=0.5, shade=False)["CAM"]
    assert picture[5, 5].tolist() == [100, 100, 100]
    assert picture[40, 80].tolist() == [178, 129, 50]
    small = camera_overlays(grid, rig(), {"CAM": photo}, size=(40, 80), alpha=0.5, shade=False, stride=1)["CAM"]
    assert small.shape == (40, 80, 3) and small[20, 40].tolist() == [178, 129, 50]
    assert small[20, 33].tolist() == [100, 100, 100] and small[20, 35].tolist() == [178, 129, 50]


def test_far_voxels_and_sides_are_darker():
    bright = camera_overlays(world(a=(3, 0, 0, CAR)), rig(), stride=1)["CAM"][40, 80]
    dark = camera_overlays(world(a=(9, 0, 0, CAR)), rig(), stride=1)["CAM"][40, 80]
    assert bright[0] > dark[0] > 100
    top = camera_overlays(world(a=(3, 0, -1, CAR)), rig(), stride=1)["CAM"]  # seen from above: its top
    rows = np.flatnonzero(top[:, 80, 0] > 100)
    assert top[rows[0] + 1, 80, 0] > 1.1 * top[rows[-1] - 1, 80, 0]


@pytest.mark.parametrize("model", ["pinhole", "fisheye"])
def test_a_voxel_lies_where_the_lens_bends_it_to(model):
    distortion = BrownConrady(k1=-0.3) if model == "pinhole" else None
    cameras = rig(distortion, model=model)
    camera = cameras["CAM"]
    picture = camera_overlays(world(corner=(4, 2, 1, TREE)), cameras, stride=1, shade=False)["CAM"]
    green = (picture == [0, 175, 0]).all(-1)
    # The left edge of the face that looks at the camera, at half its height.
    edge = (camera.ego2cam @ torch.tensor([4.0, 2.5, 1.5, 1.0], dtype=torch.float64))[:3]
    u, v = camera.project(edge)[0].tolist()
    assert np.flatnonzero(green[round(v)])[0] == pytest.approx(u, abs=1.5)
    straight = rig()["CAM"].project(edge)[0].tolist()
    assert math.dist(straight, (u, v)) > 4, "the test's lens bends nothing"


def test_a_voxel_around_the_lens_does_not_blind_the_camera():
    grid = world(here=(0, 0, 0, CAR), far=(8, 0, 0, TREE))
    shown = class_colors(grid).drawn
    origin, ahead = np.array([0.3, 0.0, 0.5]), np.array([[1.0, 0, 0]])
    hits = trace(shown, grid.spec, np.eye(4), origin, ahead)
    assert hits.distance[0] == 0
    hits = trace(shown, grid.spec, np.eye(4), origin, ahead, near=1.0)
    assert hits.distance[0] == pytest.approx(7.7) and hits.side[0] == 0 and hits.voxel[0].tolist() == [18, 10, 2]
    nothing = trace(shown, grid.spec, np.eye(4), origin, np.array([[np.nan, 0, 1.0], [0, 0, 1.0]]), near=1.0)
    assert nothing.side.tolist() == [-1, -1] and np.isinf(nothing.distance).all()
    far_away = trace(shown, grid.spec, np.eye(4), np.array([5e3, 0.0, 0.5]), -ahead)
    assert far_away.distance[0] == pytest.approx(5e3 - 9) and far_away.side[0] == 1


def test_wrong_photographs_and_strides_are_refused():
    with pytest.raises(ValueError, match="CAM_ROOF"):
        camera_overlays(world(), rig(), {"CAM_ROOF": np.zeros((8, 10, 3), np.uint8)})
    with pytest.raises(ValueError, match="stride"):
        camera_overlays(world(), rig(), stride=0)
