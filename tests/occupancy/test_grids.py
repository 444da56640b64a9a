"""Grid geometry by hand, and what an OccupancyGrid refuses."""

import numpy as np
import pytest
import torch

from syntheocc.occupancy import OCC3D_NUSCENES, OPENOCCUPANCY, SEMANTIC_KITTI, SYNTHEOCC, GridSpec, OccupancyGrid
from syntheocc.occupancy.taxonomy import Taxonomy

SPEC = GridSpec((0.0, -1.0, 2.0), (0.5, 1.0, 2.0), (4, 2, 1))
TABLE = Taxonomy("toy", ("free", "road", "car"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), free=0, foreground=(2,))


def test_corners_and_centers():
    assert SPEC.upper == (2.0, 1.0, 4.0)
    centers = SPEC.centers()
    assert centers.shape == (4, 2, 1, 3)
    assert centers[0, 0, 0].tolist() == [0.25, -0.5, 3.0]
    assert centers[3, 1, 0].tolist() == [1.75, 0.5, 3.0]


def test_a_voxel_owns_its_lower_face_only():
    points = torch.tensor([[0.0, -1.0, 2.0], [0.5, 0.0, 3.9], [2.0, 0.0, 3.0], [-1e-9, 0.0, 3.0]], dtype=torch.float64)
    index, inside = SPEC.index_of(points)
    assert inside.tolist() == [True, True, False, False]
    assert index[:2].tolist() == [[0, 0, 0], [1, 1, 0]]


def test_numpy_numbers_are_taken():
    spec = GridSpec(np.zeros(3), np.float32(0.5), np.array([4, 4, 2]))
    assert spec == GridSpec((0, 0, 0), 0.5, (4, 4, 2)) and hash(spec)
    assert spec.index_of(np.array([[0.6, 0.0, 0.0]]))[0].tolist() == [[1, 0, 0]]


def test_nan_points_are_outside():
    index, inside = SPEC.index_of(torch.tensor([[float("nan"), 0.0, 3.0]]))
    assert not inside.item() and index.shape == (1, 3)


def test_every_center_lies_in_its_own_voxel():
    for preset in (OCC3D_NUSCENES, SEMANTIC_KITTI):
        index, inside = preset.spec.index_of(preset.spec.centers())
        assert bool(inside.all())
        assert index[7, 5, 3].tolist() == [7, 5, 3]
        assert int((index.flatten(0, 2).diff(dim=0).abs().sum(-1) == 0).sum()) == 0


def test_presets_have_the_published_geometry():
    assert SYNTHEOCC.spec.shape == (500, 500, 40) and SYNTHEOCC.spec.upper == pytest.approx((50, 50, 3))
    assert OPENOCCUPANCY.spec.shape == (512, 512, 40) and OPENOCCUPANCY.spec.upper == pytest.approx((51.2, 51.2, 3))
    assert OCC3D_NUSCENES.spec.upper == pytest.approx((40, 40, 5.4))
    assert SEMANTIC_KITTI.spec.upper == pytest.approx((51.2, 25.6, 4.4))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"voxel_size": 0.0}, "voxel_size"),
        ({"voxel_size": float("nan")}, "voxel_size"),
        ({"lower": (0, float("inf"), 0)}, "lower"),
        ({"shape": (4, 0, 1)}, "shape"),
        ({"frame": "vehicle"}, "frame"),
        ({"shape": (4, 4)}, "three axes"),
        ({"shape": (4.5, 4, 4)}, "whole numbers"),
    ],
)
def test_bad_specs_name_the_value(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GridSpec(**({"lower": (0, 0, 0), "voxel_size": 1.0, "shape": (2, 2, 2)} | kwargs))


def test_labels_are_checked():
    labels = np.zeros((4, 2, 1), dtype=np.uint8)
    assert OccupancyGrid(labels, SPEC, TABLE).labels.dtype == torch.uint8
    with pytest.raises(ValueError, match=r"\(2, 4, 1\).*\(4, 2, 1\)"):
        OccupancyGrid(labels.transpose(1, 0, 2), SPEC, TABLE)
    labels[0, 0, 0] = 3
    with pytest.raises(ValueError, match="class id 3.*'toy' ends at 2"):
        OccupancyGrid(labels, SPEC, TABLE)
    labels[0, 0, 0] = 255
    assert not OccupancyGrid(labels, SPEC, TABLE).occupied().any()
    with pytest.raises(ValueError, match="integers"):
        OccupancyGrid(labels.astype(np.float32), SPEC, TABLE)
    with pytest.raises(ValueError, match="-1"):
        OccupancyGrid(labels.astype(np.int64) - 1, SPEC, TABLE)


@pytest.mark.parametrize("dtype", ["i1", "u2", "u4", "u8", "i8", ">i4", ">u2"])
def test_labels_of_any_integer_type_are_taken(dtype):
    labels = (np.arange(8) % 3).reshape(4, 2, 1)
    assert OccupancyGrid(labels.astype(dtype), SPEC, TABLE).labels.flatten().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    if dtype != "i1":
        with pytest.raises(ValueError, match=r"0\.\.255, got 256\.\.258"):
            OccupancyGrid((labels + 256).astype(dtype), SPEC, TABLE)


@pytest.mark.parametrize("labels", [None, "free", np.full((4, 2, 1), "1"), np.full((4, 2, 1), None), [[[True]]]])
def test_labels_of_another_type_are_refused(labels):
    with pytest.raises(ValueError, match="must be integers"):
        OccupancyGrid(labels, SPEC, TABLE)
    with pytest.raises(ValueError, match="must be integers"):
        OccupancyGrid(torch.zeros(4, 2, 1, dtype=torch.bool), SPEC, TABLE)


def test_memory_that_torch_cannot_share_is_copied(recwarn):
    labels = np.arange(8, dtype=np.uint8).reshape(4, 2, 1) % 3
    assert OccupancyGrid(labels[::-1], SPEC, TABLE).labels.flatten().tolist() == labels[::-1].flatten().tolist()
    OccupancyGrid(np.broadcast_to(np.uint8(1), (4, 2, 1)), SPEC, TABLE).labels.zero_()
    assert not recwarn
    shared = OccupancyGrid(labels, SPEC, TABLE)
    labels[0, 0, 0] = 2
    assert shared.labels[0, 0, 0] == 2


def test_a_grid_without_a_pose_is_refused_unless_it_is_in_ego():
    labels = torch.zeros(SYNTHEOCC.spec.shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match="grid2ego"):
        OccupancyGrid(labels, *SYNTHEOCC)
    assert OccupancyGrid(labels, *SYNTHEOCC, grid2ego=torch.eye(4)).grid2ego.dtype == torch.float64


@pytest.mark.parametrize("value", [float("nan"), 2.0])
def test_a_pose_must_be_rigid(value):
    pose = torch.eye(4)
    pose[0, 0] = value
    with pytest.raises(ValueError, match="grid2ego"):
        OccupancyGrid(np.zeros((4, 2, 1), dtype=np.uint8), SPEC, TABLE, grid2ego=pose)


def test_map_to_and_to_keep_the_place():
    labels = torch.tensor([0, 1, 2, 255, 0, 1, 2, 0], dtype=torch.uint8).reshape(4, 2, 1)
    other = Taxonomy("other", ("car", "road", "free"), ((0, 0, 0),) * 3, free=2)
    grid = OccupancyGrid(labels, SPEC, TABLE)
    mapped = grid.map_to(other)
    assert mapped.labels.flatten().tolist() == [2, 1, 0, 255, 2, 1, 0, 2]
    assert mapped.taxonomy is other and mapped.spec == SPEC
    assert grid.map_to(TABLE) is grid
    assert grid.to("cpu").occupied().sum() == 4
