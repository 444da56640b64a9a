"""Volumes in cameras, and the sheets that show them beside the lidar's labels."""

import numpy as np
import pytest
import torch

from syntheocc.occupancy import OCC3D_NUSCENES
from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.pictures.rendered_views import depth_picture, rendered_views
from syntheocc.occupancy.rendering.camera_images import render_cameras
from syntheocc.occupancy.rendering.rays import RayLabels
from syntheocc.occupancy.rendering.volume import RenderSettings

SPEC = GridSpec(lower=(-12.0, -12.0, -1.0), voxel_size=0.4, shape=(60, 60, 16))
TAXONOMY = OCC3D_NUSCENES.taxonomy
MANMADE, CAR = 15, 4


@pytest.fixture
def room(camera_at):
    """A wall 8 m ahead of class 15, one 10 m to the left of class 4, and cameras that look at each and backwards."""
    density, semantics = torch.zeros(SPEC.shape), torch.zeros(*SPEC.shape, 17)
    x, y = SPEC.centers()[..., 0], SPEC.centers()[..., 1]
    for wall, label in (((x > 8) & (y < 9.5), MANMADE), (y > 10, CAR)):
        density[wall] = 1.0
        semantics[wall] = 0.0
        semantics[..., label][wall] = 9.0
    names = ("ahead", "left", "back")
    rig = CameraRig(
        {n: camera_at(yaw, focal=200.0, height=60, width=100) for n, yaw in zip(names, (0, 90, 180), strict=True)}
    )
    return density, semantics, rig


def test_walls_are_seen_where_they_stand(room):
    density, semantics, rig = room
    seen = render_cameras(density, semantics, rig, 6, 10, SPEC, RenderSettings(sampling="exact", depth="normalised"))
    assert seen.depth.shape == (3, 6, 10)
    assert bool((seen.classes[0] == MANMADE).all()) and bool((seen.classes[1] == CAR).all())
    # The middle of the first voxel of each wall, along rays up to 17 degrees off the axis.
    assert float(seen.depth[0].min()) == pytest.approx(8.2, abs=0.1) and float(seen.depth[0].max()) < 8.2 * 1.06
    assert float(seen.depth[1].min()) == pytest.approx(10.2, abs=0.1)
    assert float(seen.weight_sum[2].max()) == 0
    labels = seen.labels(TAXONOMY.free)
    assert bool((labels[2] == TAXONOMY.free).all()) and bool((labels[:2] < TAXONOMY.free).all())
    with pytest.raises(ValueError, match="'lidar' frame"):
        render_cameras(density, semantics, rig, 6, 10, GridSpec(SPEC.lower, 0.4, SPEC.shape, "lidar"))


def test_sheets_show_the_lidar_on_the_left_and_the_model_on_the_right(room):
    density, semantics, rig = room
    seen = render_cameras(density, semantics, rig, 30, 50, SPEC, RenderSettings(sampling="exact", depth="normalised"))
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    rays = RayLabels(
        torch.zeros(1, 3), torch.tensor([[1.0, 0, 0]]), 8 * one, 8 * one, zero + MANMADE, one, zero, zero,
        torch.tensor([[60.0, 40.0]]), zero, (0,),
    )  # fmt: skip
    photos = {"ahead": np.full((60, 100, 3), 200, np.uint8)}
    sheets = rendered_views(seen, rig, TAXONOMY, rays, photos)
    assert list(sheets) == ["ahead", "left", "back"]
    sheet = sheets["ahead"]
    assert sheet.shape == (64, 104, 3) and sheet.dtype == np.uint8
    manmade = TAXONOMY.colors()[MANMADE]
    # Pixel (60, 40) of 100 x 60 is cell (30, 20) of 50 x 30; below it the same cell shows its distance.
    assert sheet[20, 30].tolist() == manmade.tolist() and sheet[20 + 34, 30].tolist() == depth_picture(8.0).tolist()
    assert sheet[25, 40].tolist() == [70, 70, 70]  # the photograph, darkened
    assert sheet[20, 54 + 30].tolist() == manmade.tolist()
    far = sheet[34 + 20, 54 + 25].astype(int) - depth_picture(8.2).astype(int)
    assert np.abs(far).max() < 8
    assert np.array_equal(sheets["back"][20, 54:64], np.broadcast_to((24, 24, 28), (10, 3)))


def test_depth_colours_go_from_blue_to_red():
    colors = depth_picture(np.array([0.0, 1.0, 2.0, 50.0, 90.0])).astype(int)
    assert colors[0].tolist() == [24, 24, 28] and colors[1].tolist() == colors[2].tolist()
    assert colors[2, 2] > colors[2, 0] and colors[3, 0] > colors[3, 2] and colors[3].tolist() == colors[4].tolist()
