"""Edited frames in the data sets' forms, and edits of real labels."""

import numpy as np
import pytest
import torch
from small_street import make_boxes, make_street

from syntheocc.occupancy import OCC3D_NUSCENES, SYNTHEOCC_COARSE, GridSpec, OccupancyGrid, Preset
from syntheocc.occupancy.data.downsampling import downsample_labels
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.occ3d import read_occ3d
from syntheocc.occupancy.editing import Editor
from syntheocc.occupancy.editing.export import annotation_rows, resampled
from syntheocc.occupancy.taxonomy import OCC3D_TAXONOMY, SYNTHEOCC_TAXONOMY
from syntheocc.occupancy.transforms import pose_from_quaternion


def test_resampling_is_the_published_rule_where_voxels_nest():
    random = torch.Generator().manual_seed(0)
    fine = GridSpec((0.0, 0.0, 0.0), 0.2, (12, 8, 4))
    labels = torch.randint(0, 17, fine.shape, generator=random, dtype=torch.uint8)
    labels[torch.rand(fine.shape, generator=random) < 0.7] = 0
    labels[torch.rand(fine.shape, generator=random) < 0.1] = 255
    labels[:2, :2] = 255
    grid = OccupancyGrid(labels, fine, SYNTHEOCC_TAXONOMY)
    coarse = Preset(GridSpec((0.0, 0.0, 0.0), 0.4, (6, 4, 2)), SYNTHEOCC_TAXONOMY)
    made, known = resampled(grid, coarse)
    wanted = torch.from_numpy(downsample_labels(labels.numpy(), 2))
    assert torch.equal(made.labels, torch.where(wanted == 255, 0, wanted))
    assert not bool(known[0, 0].any()) and bool(known[2:].all())


def test_resampling_from_a_lidar_frame(lidar_pose):
    grid = make_street(*SYNTHEOCC_COARSE, grid2ego=lidar_pose)
    made, known = resampled(grid, OCC3D_NUSCENES)
    assert made.taxonomy == OCC3D_TAXONOMY and bool(known[5:195, 5:195, :13].all())
    car = (made.labels == OCC3D_TAXONOMY.id_of("car")).nonzero()
    middle = torch.tensor(made.spec.lower) + (car.double().mean(0) + 0.5) * 0.4
    assert np.allclose(middle, (8.0, -2.0, 0.8), atol=0.2)


def test_annotation_rows_are_boxes_in_the_world(street, six_cameras):
    editor = Editor(street, make_boxes(), "t")
    editor.insert("traffic_cone", at=(-8.0, 0.0), yaw_deg=30)
    ego2global = pose_from_quaternion([100.0, 50.0, 2.0], [0.5**0.5, 0.0, 0.0, 0.5**0.5])  # turned to the left
    frame = Frame("t", "scene", 0, six_cameras, ego2global=ego2global, boxes=editor.boxes)
    rows = annotation_rows(frame)
    assert [row["category_name"] for row in rows] == [
        "vehicle.car",
        "human.pedestrian.adult",
        "movable_object.trafficcone",
    ]
    assert np.allclose(rows[0]["translation"], [102.0, 58.0, 2.8]) and np.allclose(rows[0]["size"], [1.6, 4.0, 1.6])
    pose = pose_from_quaternion(rows[2]["translation"], rows[2]["rotation"])
    assert torch.allclose(pose, ego2global @ editor.boxes.box2ego[2], atol=1e-9)
    assert (rows[0]["num_lidar_pts"], rows[2]["num_lidar_pts"]) == (50, 0)
    assert len({row["token"] for row in rows}) == 3 == len({row["instance_token"] for row in rows})
    with pytest.raises(ValueError, match="need boxes and ego2global"):
        annotation_rows(Frame("t", "scene", 0, six_cameras))


@pytest.mark.real_data
def test_a_real_occ3d_label(real_data):
    labels = read_occ3d(real_data / "occ3d_scene1077" / "labels.npz")
    editor = Editor(labels.grid)
    editor.insert("truck", at=(14.0, 0.0), name="truck")
    box = editor.boxes
    # Its road is the lowest layer of the grid, -1.0 to -0.6 m.
    assert float(box.centers[0, 2] - box.sizes[0, 2] / 2) == pytest.approx(-0.6)
    truck = OCC3D_TAXONOMY.id_of("truck")
    inserted = editor.grid.labels == truck
    assert torch.equal(editor.changed, inserted & (labels.grid.labels != truck))
    editor.remove("truck")
    assert torch.equal(editor.grid.labels, labels.grid.labels)
    # A car of the scene, found as a connected piece: gone, with road below it, and nothing else touched.
    car, road = OCC3D_TAXONOMY.id_of("car"), OCC3D_TAXONOMY.id_of("driveable_surface")
    before = int((labels.grid.labels == car).sum())
    editor.remove({"class": "car", "near": [25, 2], "within": 15})
    after = editor.grid.labels
    gone = (labels.grid.labels == car) & (after != car)
    assert 20 < int(gone.sum()) < before
    assert set(after[editor.changed].tolist()) <= {OCC3D_TAXONOMY.free, road}
    columns = gone.any(-1)
    assert bool((after == road)[columns].any(-1).all())
    assert bool((editor.changed.any(-1) & ~columns).sum() < columns.sum())
