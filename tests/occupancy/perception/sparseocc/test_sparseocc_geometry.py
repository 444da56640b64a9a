"""Corners, children, labels of voxels, and the projection into the images."""

import pytest
import torch

from syntheocc.occupancy.grids import OCC3D_NUSCENES
from syntheocc.occupancy.perception.sparseocc import geometry


def test_a_levels_corners_run_with_z_fastest():
    corners = geometry.level_corners((25, 25, 2), 8)
    assert corners.shape == (1250, 3)
    assert corners[:3].tolist() == [[0, 0, 0], [0, 0, 8], [0, 8, 0]]
    assert corners[-1].tolist() == [192, 192, 8]


def test_children_of_the_specification(vectors):
    vector = vectors["K_children"]
    children = geometry.child_corners(torch.tensor([vector["parent"]]), 2 * vector["interval"])
    assert children.tolist() == vector["children"]


def test_points_of_a_voxel_are_metres_of_its_corner_and_centre():
    corner = torch.tensor([0, 100, 15])
    torch.testing.assert_close(
        geometry.voxel_points(corner, OCC3D_NUSCENES.spec), torch.tensor([-40.0, 0.0, 5.0]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        geometry.voxel_points(corner, OCC3D_NUSCENES.spec, 0.5), torch.tensor([-39.8, 0.2, 5.2]), atol=1e-5, rtol=0
    )


def test_painting_covers_every_voxel_below_a_cell_once():
    corners = geometry.level_corners((2, 1, 2), 4)[None]
    covered = geometry.painted_voxels(corners, 4)
    assert covered.shape == (1, 4, 64, 3)
    labels = torch.arange(8 * 4 * 8).view(1, 8, 4, 8)
    found = geometry.gather_labels(labels, covered, -1)
    assert torch.equal(found.flatten().sort().values, labels.flatten())


def test_labels_beyond_the_grid_are_the_given_one():
    labels = torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    voxels = torch.tensor([[[1, 1, 1], [2, 0, 0], [0, 0, 2]]])
    assert geometry.gather_labels(labels, voxels, 255).tolist() == [[0, 255, 255]]


@pytest.fixture
def six_views(ego2img_at):
    """The specification's cameras: ego2img [6, 4, 4]."""
    yaws = (0, -55, 55, 180, 110, -110)
    return torch.stack([ego2img_at(yaw, (0.0, 0.0, 1.5), 400.0, (352.0, 128.0)) for yaw in yaws])


def test_projection_of_the_specification(vectors, six_views):
    """Five points in six cameras: one in two of them, one behind them all."""
    vector = vectors["T_project"]
    located, seen = geometry.project_points(torch.tensor([vector["points"]]), six_views[None, None], (256, 704))
    torch.testing.assert_close(located[0, 0], torch.tensor(vector["loc_uvview"]), rtol=1e-5, atol=1e-4)
    assert seen[0, 0].tolist() == vector["visible"]


def test_a_point_in_two_views_is_taken_from_the_first_of_them(six_views):
    point = torch.tensor([[[10.0, 7.8, 1.0]]])  # in views 0 and 2
    order = [2, 1, 0, 3, 4, 5]
    located, _ = geometry.project_points(point, six_views[None, None], (256, 704))
    swapped, _ = geometry.project_points(point, six_views[order][None, None], (256, 704))
    assert located[0, 0, 0, 2] == swapped[0, 0, 0, 2] == 0
    assert located[0, 0, 0, 0] < 0.5 < swapped[0, 0, 0, 0]


@pytest.mark.parametrize("missing", [0, 3])
def test_a_missing_camera_shows_nothing_and_takes_no_point_from_the_others(missing, six_views):
    views = six_views.clone()
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1, 200, 3, generator=generator) * torch.tensor([40.0, 40.0, 5.0]) - torch.tensor([20.0, 20, 1])
    whole, seen_whole = geometry.project_points(points, views[None, None], (256, 704))
    views[missing] = 0
    located, seen = geometry.project_points(points, geometry.hide_missing_views(views[None, None]), (256, 704))
    assert torch.isfinite(located).all()
    assert not ((located[..., 2] * 5).round() == missing)[seen].any()
    elsewhere = seen_whole & ((whole[..., 2] * 5).round() != missing)
    torch.testing.assert_close(located[elsewhere], whole[elsewhere])
    # What nobody sees lies so far outside that sampling finds zeros in a map of any size.
    unseen = located[~seen][:, :2]
    assert ((unseen < -0.5) | (unseen > 1)).any(-1).all() or missing != 0
