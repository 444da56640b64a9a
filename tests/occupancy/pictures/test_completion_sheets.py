"""Scene completion in pictures: what no camera sees is darker, unknown voxels are left out, cameras are drawn."""

import numpy as np
import pytest
import torch

from syntheocc.occupancy import GridSpec, OccupancyGrid
from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.pictures import (
    Viewpoint,
    camera_wires,
    completion_colors,
    completion_sheet,
    oblique_picture,
    seen_by,
)
from syntheocc.occupancy.taxonomy import SEMANTIC_KITTI_TAXONOMY

ROAD, CAR = 9, 1
SPEC = GridSpec((0.0, -8.0, -1.0), (1.0, 1.0, 1.0), (16, 16, 3))


@pytest.fixture
def rig(camera_at):
    """One camera at the origin that looks ahead, 90 degrees wide and 45 degrees high or so."""
    return CameraRig({"image_2": camera_at(0, focal=100.0, position=(0, 0, 0), height=80, width=200)})


@pytest.fixture
def street():
    labels = torch.zeros(SPEC.shape, dtype=torch.uint8)
    labels[:, :, 0] = ROAD
    labels[6:8, 7:9, 1] = CAR
    labels[12:, :3] = 255
    return OccupancyGrid(labels, SPEC, SEMANTIC_KITTI_TAXONOMY)


def test_what_a_camera_sees(street, rig):
    seen = seen_by(street, rig)
    # At x = 5.5 the picture is 5.5 m to each side wide, and its left border is in it, its right one is not.
    assert seen[5, :, 0].tolist() == [-5.5 < y + 0.5 - 8 <= 5.5 for y in range(16)]
    assert (
        not seen[0, 8, 0] and seen[1, 8, 0]
    )  # right below the camera, and half a metre down a metre and a half ahead


def test_colours(street, rig):
    seen = seen_by(street, rig)
    shown = completion_colors(street, seen)
    red, green, blue = SEMANTIC_KITTI_TAXONOMY.palette[ROAD]
    assert shown.colors[5, 8, 0].tolist() == [red, green, blue]
    assert shown.colors[5, 1, 0].tolist() == [red // 3 * 2, green // 3 * 2, blue // 3 * 2]
    assert not shown.drawn[13, 1, 0] and shown.drawn[11, 1, 0]
    known = np.zeros(SPEC.shape, bool)
    known[5] = True
    assert completion_colors(street, known=known).drawn.sum() == 16
    with pytest.raises(ValueError, match=r"known must be \(16, 16, 3\)"):
        completion_colors(street, known=known[:4])


def test_a_cameras_pyramid(rig):
    segments = camera_wires(rig, depth=2.0)
    assert segments.shape == (8, 2, 3)
    corners = np.unique(segments.reshape(-1, 3).round(9), axis=0)
    # Rays through the corners of the outermost pixels: 100 of 100 columns and 40 of 100 rows from the axis.
    assert corners.tolist() == [[0, 0, 0]] + [[2, y, z] for y in (-2, 2) for z in (-0.8, 0.8)]
    with pytest.raises(ValueError, match="depth must be positive"):
        camera_wires(rig, 0)


def test_voxels_hide_the_pyramid(street, rig):
    options = {"height": 200, "width": 300, "ego": False, "lines": 0.0, "supersample": 1, "occlusion": False}
    view = Viewpoint(180, 30)
    plain = oblique_picture(street, view, **options)
    wires = camera_wires(rig, 4.0)
    drawn = oblique_picture(street, view, wires=wires, **options)
    changed = (plain != drawn).any(-1)
    assert 100 < changed.sum() < 3000 and (drawn[changed] == (20, 20, 24)).all()
    below = wires + [5, 0, -2.9]  # all of it is under the road, well away from its border
    assert (oblique_picture(street, view, wires=below, **options) == plain).all()


@pytest.mark.parametrize("mesh", [True, False])
def test_a_sheet(street, rig, mesh):
    photo = np.full((80, 200, 3), 90, np.uint8)
    alone = completion_sheet({"image_2": photo}, street, rig=rig, mesh=mesh, width=400)
    both = completion_sheet({"image_2": photo, "image_3": photo}, street, street, rig, mesh=mesh, width=400)
    assert alone.shape[1] == both.shape[1] == 400 and alone.dtype == np.uint8
    rows = {True: 2, False: 1}[mesh]
    assert both.shape[0] >= 79 + rows * 134
    first, second = both[100:200, :198].astype(int), both[100:200, 202:].astype(int)
    assert np.abs(first - second)[40:].max() == 0  # the same grid twice, below its title
    with pytest.raises(ValueError, match="compared on the truth's grid"):
        other = OccupancyGrid(
            torch.zeros(4, 4, 4, dtype=torch.uint8), GridSpec((0, 0, 0), 1.0, (4, 4, 4)), street.taxonomy
        )
        completion_sheet({}, other, street)


def test_rooms_hide_what_is_unknown():
    spec = GridSpec((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 4, 2), "world")
    full = torch.ones(spec.shape, dtype=torch.uint8)
    truth = OccupancyGrid(torch.full(spec.shape, 255, dtype=torch.uint8), spec, SEMANTIC_KITTI_TAXONOMY, torch.eye(4))
    room = OccupancyGrid(full, spec, SEMANTIC_KITTI_TAXONOMY, torch.eye(4))
    hidden = completion_sheet({}, room, truth, mesh=False, width=200)
    shown = completion_sheet({}, room, truth, mesh=False, width=200, hide_unknown=False)
    assert (hidden[30:67] == 255).all() and (shown[30:67, :98] != 255).any()
