"""render_mpi and its containers: numbers a person can check, conventions, batches, errors."""

import math

import numpy as np
import pytest
import torch

from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.grids import OCC3D_NUSCENES, SYNTHEOCC, GridSpec, OccupancyGrid
from syntheocc.occupancy.rendering.mpi import PlaneSpec, SemanticMPI, render_mpi
from syntheocc.occupancy.taxonomy import TAXONOMIES

SYN = SYNTHEOCC.taxonomy
CUBE = GridSpec(lower=(0.0, 0.0, 0.0), voxel_size=1.0, shape=(2, 2, 2))
# Planes at 0.5, 1.5, 2.5 and 3.5 m: before the cube, in its first and second half, behind it (for a camera at x = -1).
FOUR = PlaneSpec(num_planes=4, near=0.5, step=1.0)


def forward_camera(position=(-1.0, 1.0, 1.0), focal=10.0, size=4, model="pinhole"):
    """Looks along ego x; its image is `size` x `size` pixels around the optical axis."""
    cam2ego = torch.eye(4, dtype=torch.float64)
    cam2ego[:3, :3] = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    cam2ego[:3, 3] = torch.tensor(position)
    middle = size / 2 - 0.5
    return Camera([[focal, 0, middle], [0, focal, middle], [0, 0, 1]], cam2ego, size, size, model=model)


def rig_of(*cameras):
    return CameraRig({f"CAM_{i}": camera for i, camera in enumerate(cameras)})


def cube_grid(**labels):
    """A 2x2x2 grid; keys like x0y1z1 name voxels."""
    grid = torch.zeros(2, 2, 2, dtype=torch.uint8)
    for key, label in labels.items():
        grid[int(key[1]), int(key[3]), int(key[5])] = label
    return OccupancyGrid(grid, CUBE, SYN)


# Row 0 looks up (z index 1), row 1 down; column 0 looks left (y index 1), column 1 right.
CUBE_LABELS = {"x0y1z1": 1, "x1y1z1": 15, "x1y0z1": 16, "x0y1z0": 255, "x1y1z0": 11}


def test_two_by_two_by_two_by_hand():
    mpi = render_mpi(cube_grid(**CUBE_LABELS), rig_of(forward_camera()), 2, 2, FOUR)
    assert mpi.labels.shape == (1, 4, 2, 2) and mpi.labels.dtype == torch.uint8
    assert mpi.labels[0, 0].tolist() == [[0, 0], [0, 0]]
    assert mpi.labels[0, 1].tolist() == [[1, 0], [0, 0]]
    assert mpi.labels[0, 2].tolist() == [[15, 16], [11, 0]]
    assert mpi.labels[0, 3].tolist() == [[0, 0], [0, 0]]
    assert mpi.nearest.tolist() == [[[1, 16], [11, 0]]]
    assert mpi.nearest_plane.tolist() == [[[1, 2], [2, 0]]]
    assert mpi.nearest_plane.dtype == torch.int16
    assert mpi.names == ("CAM_0",) and not mpi.is_batched


def test_groups_show_their_nearest_plane_and_keep_plane_indices():
    planes = PlaneSpec(num_planes=4, near=0.5, step=1.0, groups=2)
    mpi = render_mpi(cube_grid(**CUBE_LABELS), rig_of(forward_camera()), 2, 2, planes)
    assert mpi.labels.shape == (1, 2, 2, 2)
    assert mpi.labels[0, 0].tolist() == [[1, 0], [0, 0]]
    assert mpi.labels[0, 1].tolist() == [[15, 16], [11, 0]]
    assert mpi.nearest_plane.tolist() == [[[1, 2], [2, 0]]]
    assert planes.depths()[mpi.nearest_plane[0, 0, 1].item()] == 2.5
    one = render_mpi(cube_grid(**CUBE_LABELS), rig_of(forward_camera()), 2, 2, PlaneSpec(4, 0.5, 1.0, groups=1))
    assert torch.equal(one.labels[:, 0], one.nearest)


def test_published_planes_and_groups():
    planes = PlaneSpec()
    assert planes.depths().dtype == torch.float64 and planes.num_layers == 256
    assert torch.allclose(planes.depths(), torch.arange(1, 257, dtype=torch.float64) / 5, atol=1e-12, rtol=0)
    assert PlaneSpec(groups=96).num_layers == 96
    # A wall of one class a plane tells which layer each plane went to.
    spec = GridSpec((0.0, -1.0, -1.0), (0.2, 2.0, 2.0), (256, 1, 1))
    for label_of_plane in range(0, 256, 5):
        labels = torch.zeros(256, 1, 1, dtype=torch.uint8)
        labels[label_of_plane] = 3
        camera = forward_camera(position=(-0.1, 0.0, 0.0), size=1)
        mpi = render_mpi(OccupancyGrid(labels, spec, SYN), rig_of(camera), 1, 1, PlaneSpec(groups=96))
        assert mpi.labels[0, :, 0, 0].nonzero().tolist() == [[math.floor(label_of_plane / (256 / 96))]]
        assert mpi.nearest_plane.item() == label_of_plane


def test_center_and_corner_sample_where_they_should():
    # At plane 1, the right column's ray passes y = 1.1 - 0.15 = 0.95 (center) or 1.1 - 0.075 = 1.025 (corner).
    grid = cube_grid(x0y0z1=4, x0y1z1=6)
    rig = rig_of(forward_camera(position=(-1.0, 1.1, 1.2)))
    center = render_mpi(grid, rig, 2, 2, FOUR, pixel_origin="center")
    corner = render_mpi(grid, rig, 2, 2, FOUR, pixel_origin="corner")
    assert center.labels[0, 1, 0].tolist() == [6, 4] and center.pixel_origin == "center"
    assert corner.labels[0, 1, 0].tolist() == [6, 6] and corner.pixel_origin == "corner"


def test_samples_per_cell_add_foreground_and_nothing_else():
    # One cell whose own ray is the optical axis; its four samples lie at +-1/4 of the cell, 0.1 m off axis at 1 m.
    spec = GridSpec((0.5, -0.2, -0.2), (1.0, 0.1, 0.1), (1, 4, 4))
    camera = forward_camera(position=(0.0, 0.0, 0.0), focal=10.0)
    one_plane = PlaneSpec(1, 1.0, 1.0)

    def nearest(samples, voxels):
        labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
        for (y, z), label in voxels.items():
            labels[0, y, z] = label
        # The own sample lies exactly between four voxels; move the grid by a third of a voxel to make it clear.
        moved = GridSpec((0.5, -0.2 - 0.1 / 3, -0.2 - 0.1 / 3), spec.voxel_size, spec.shape)
        mpi = render_mpi(OccupancyGrid(labels, moved, SYN), rig_of(camera), 1, 1, one_plane, samples_per_cell=samples)
        return mpi.nearest.item()

    # The own sample is in voxel (2, 2), the samples at +-0.1 m in (1, 1), (1, 3), (3, 1), (3, 3).
    assert nearest(1, {(2, 2): 11}) == 11
    assert nearest(1, {(3, 3): 8}) == 0
    assert nearest(4, {(3, 3): 8}) == 8
    assert nearest(4, {(3, 3): 11}) == 0  # background between the samples stays out
    assert nearest(4, {(2, 2): 11, (1, 1): 8}) == 8  # foreground wins over the own sample's background
    assert nearest(4, {(2, 2): 1, (1, 1): 8}) == 1  # the own sample's foreground stays
    assert nearest(4, {(3, 1): 2, (1, 3): 7}) == 7  # up right is before down left in raster order
    assert nearest(9, {(2, 2): 11}) == 11
    assert nearest(9, {(3, 3): 2, (2, 3): 7}) == 7  # up is nearer than up left, which comes first in raster order


def test_fisheye_measures_depth_along_the_ray():
    # 45 degrees off axis and 1.4 m along the ray are 0.99 m ahead and 0.99 m to the left: voxel (1, 1).
    spec = GridSpec((0.0, 0.0, -0.5), (0.5, 0.5, 1.0), (4, 4, 1))
    labels = torch.zeros(4, 4, 1, dtype=torch.uint8)
    labels[1, 1, 0] = 5
    pose = forward_camera(position=(0.0, 0.0, 0.0)).cam2ego
    row = Camera([[4 / math.pi, 0, 1.0], [0, 4 / math.pi, 0.0], [0, 0, 1]], pose, 1, 2, model="fisheye")
    mpi = render_mpi(OccupancyGrid(labels, spec, SYN), rig_of(row), 1, 2, PlaneSpec(1, 1.4, 1.0))
    # Column 0 is one pixel left of the axis: theta = 1 / focal = 45 degrees. Column 1 looks ahead: voxel (2, 0).
    assert mpi.labels[0, 0, 0].tolist() == [5, 0]


def test_pixels_without_a_ray_see_nothing():
    grid = OccupancyGrid(
        torch.full((2, 2, 2), 3, dtype=torch.uint8), GridSpec((-1.0, -1.0, -1.0), 1.0, (2, 2, 2)), SYN
    )
    camera = forward_camera(position=(0.0, 0.0, 0.0), focal=1.0, size=9, model="fisheye")
    mpi = render_mpi(grid, rig_of(camera), 9, 9, PlaneSpec(1, 0.5, 1.0))
    # theta = distance from the middle in pixels; beyond pi the lens has no ray.
    distance = torch.hypot(*torch.meshgrid(torch.arange(9.0) - 4, torch.arange(9.0) - 4, indexing="ij"))
    assert torch.equal(mpi.nearest[0] == 3, distance < math.pi)


def test_lidar_frame_grid_and_boxy_voxels():
    # The nuScenes LIDAR frame is x right, y forward; a voxel 3 m ahead and 1 m to the left is at x -1, y 3 there.
    lidar2ego = torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    spec = GridSpec((-2.0, 0.0, -1.0), (0.5, 1.0, 2.0), (8, 5, 1), "lidar")
    labels = torch.zeros(8, 5, 1, dtype=torch.uint8)
    labels[2, 3, 0] = 9
    camera = forward_camera(position=(0.0, 0.0, 0.0), focal=10.0, size=16)
    mpi = render_mpi(OccupancyGrid(labels, spec, SYN, lidar2ego), rig_of(camera), 16, 16, PlaneSpec(1, 3.5, 1.0))
    # y (left) in (0.5, 1) at 3.5 m: column u with (7.5 - u) / 10 * 3.5 in that range.
    seen = (mpi.nearest[0] == 9).any(0).nonzero().flatten().tolist()
    assert seen == [u for u in range(16) if 0.5 < (7.5 - u) / 10 * 3.5 <= 1.0]


def test_free_and_unknown_of_another_taxonomy_and_mapping():
    labels = torch.full((2, 2, 2), 17, dtype=torch.uint8)
    labels[0, 1, 1], labels[1, 1, 1], labels[1, 0, 1], labels[1, 1, 0] = 4, 0, 255, 11
    grid = OccupancyGrid(labels, CUBE, OCC3D_NUSCENES.taxonomy)
    rig = rig_of(forward_camera())
    kept = render_mpi(grid, rig, 2, 2, FOUR)
    assert kept.taxonomy is OCC3D_NUSCENES.taxonomy
    assert kept.labels[0, 0].tolist() == [[17, 17], [17, 17]]
    assert kept.labels[0, 2].tolist() == [[0, 17], [11, 17]]
    assert kept.nearest[0].tolist() == [[4, 17], [11, 17]] and kept.nearest_plane[0].tolist() == [[1, 0], [2, 0]]
    mapped = render_mpi(grid, rig, 2, 2, FOUR, taxonomy=SYN)
    assert mapped.taxonomy is SYN
    # Occ3D 4 is a car (SyntheOcc 1), 0 "others" has no SyntheOcc name and reads as free, 11 is the same road.
    assert mapped.labels[0, 1].tolist() == [[1, 0], [0, 0]]
    assert mapped.labels[0, 2].tolist() == [[0, 0], [11, 0]]
    same = render_mpi(grid.map_to(SYN), rig, 2, 2, FOUR)
    assert torch.equal(same.labels, mapped.labels) and torch.equal(same.nearest_plane, mapped.nearest_plane)


def test_scalar_palette_and_null():
    mpi = render_mpi(cube_grid(**CUBE_LABELS), rig_of(forward_camera(), forward_camera()), 2, 2, FOUR)
    scalar = mpi.scalar()
    assert scalar.shape == (2, 5, 2, 2) and scalar.dtype == torch.float32
    assert scalar[0, :, 0, 0].tolist() == [0.0, 1.0, 15.0, 0.0, 1.0]
    assert mpi.palette_image().shape == (2, 2, 2, 3) and mpi.palette_image()[0, 0, 0].tolist() == [255, 158, 0]
    null = mpi.free_like()
    assert null.labels.shape == mpi.labels.shape and not null.labels.any() and not null.nearest_plane.any()
    assert torch.equal(mpi.to("cpu").labels, mpi.labels) and mpi.device == torch.device("cpu")
    occ3d = render_mpi(
        OccupancyGrid(np.full((2, 2, 2), 4), CUBE, OCC3D_NUSCENES.taxonomy), rig_of(forward_camera()), 2, 2, FOUR
    )
    assert set(occ3d.free_like().labels.unique().tolist()) == {17}


def test_batches_stack_and_index():
    grids = [cube_grid(**CUBE_LABELS), cube_grid(x0y0z0=7)]
    rigs = [rig_of(forward_camera()), rig_of(forward_camera(position=(-1.0, 0.9, 1.1)))]
    batch = render_mpi(grids, rigs, 3, 5, FOUR)
    assert batch.labels.shape == (2, 1, 4, 3, 5) and batch.is_batched and len(batch) == 2
    for i in range(2):
        single = render_mpi(grids[i], rigs[i], 3, 5, FOUR)
        for field in ("labels", "nearest", "nearest_plane"):
            assert torch.equal(getattr(batch[i], field), getattr(single, field))
    assert torch.equal(SemanticMPI.stack([batch[0], batch[1]]).labels, batch.labels)
    assert torch.equal(
        render_mpi(grids, rigs[0], 3, 5, FOUR)[1].labels, render_mpi(grids[1], rigs[0], 3, 5, FOUR).labels
    )
    assert render_mpi(grids[0], rigs, 3, 5, FOUR).labels.shape[0] == 2
    assert render_mpi([grids[0]], [rigs[0]], 3, 5, FOUR).labels.shape == (1, 1, 4, 3, 5)
    assert batch.scalar().shape == (2, 1, 5, 3, 5)


def test_batch_of_unlike_grids():
    tall = OccupancyGrid(torch.full((1, 2, 3), 4, dtype=torch.uint8), GridSpec((0.0,) * 3, 1.0, (1, 2, 3)), SYN)
    occ3d = OccupancyGrid(torch.full((2, 2, 2), 4, dtype=torch.uint8), CUBE, OCC3D_NUSCENES.taxonomy)
    rig = rig_of(forward_camera())
    batch = render_mpi([tall, occ3d], rig, 2, 2, FOUR, taxonomy=SYN)
    assert batch.nearest[:, 0].unique().tolist() == [1, 4]
    assert torch.equal(batch[0].labels, render_mpi(tall, rig, 2, 2, FOUR).labels)
    with pytest.raises(ValueError, match="taxonomies 'syntheocc' and 'occ3d': pass taxonomy="):
        render_mpi([tall, occ3d], rig, 2, 2, FOUR)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_planes": 0}, "num_planes must lie"),
        ({"near": 0.0}, "near and step must be positive"),
        ({"step": -0.2}, "near and step must be positive"),
        ({"near": float("nan")}, "near and step must be positive"),
        ({"groups": 257}, "groups must lie in 1..num_planes=256"),
        ({"groups": 0}, "groups must lie"),
    ],
)
def test_bad_planes(arguments, message):
    with pytest.raises(ValueError, match=message):
        PlaneSpec(**arguments)


def test_bad_arguments_are_named():
    grid, rig = cube_grid(), rig_of(forward_camera())
    with pytest.raises(ValueError, match="positive whole number of cells, got h=0, w=2"):
        render_mpi(grid, rig, 0, 2)
    with pytest.raises(ValueError, match="positive whole number"):
        render_mpi(grid, rig, 2, 2.5)
    with pytest.raises(ValueError, match="pixel_origin"):
        render_mpi(grid, rig, 2, 2, pixel_origin="middle")
    with pytest.raises(ValueError, match="samples_per_cell must be a square"):
        render_mpi(grid, rig, 2, 2, samples_per_cell=3)
    with pytest.raises(ValueError, match="2 grids but 3 rigs"):
        render_mpi([grid] * 2, [rig] * 3, 2, 2)
    with pytest.raises(ValueError, match="grid must be a OccupancyGrid or a non-empty list of them, got nothing"):
        render_mpi([], rig, 2, 2)
    with pytest.raises(ValueError, match="grid must be .* got \\['NoneType'\\]"):
        render_mpi(None, rig, 2, 2)
    for counts in ({"num_planes": 2.5}, {"groups": 96.0}):
        with pytest.raises(ValueError, match="must be a whole number"):
            PlaneSpec(**counts)
    with pytest.raises(ValueError, match="grid must be .* got \\['Tensor'\\]"):
        render_mpi([grid.labels], rig, 2, 2)
    with pytest.raises(ValueError, match="same cameras"):
        render_mpi(grid, [rig, rig_of(forward_camera(), forward_camera())], 2, 2)
    with pytest.raises(ValueError, match="no rule maps"):
        render_mpi(grid, rig, 2, 2, taxonomy=TAXONOMIES["nyuv2"])
    with pytest.raises(ValueError, match="class id 99"):
        OccupancyGrid(torch.full((2, 2, 2), 99), CUBE, SYN)


def test_bad_mpis_are_named():
    mpi = render_mpi(cube_grid(), rig_of(forward_camera()), 2, 2, FOUR)
    batch = render_mpi([cube_grid()], rig_of(forward_camera()), 2, 2, FOUR)
    other = render_mpi(cube_grid(), rig_of(forward_camera()), 2, 2, FOUR, pixel_origin="corner")
    wide = render_mpi(cube_grid(), rig_of(forward_camera()), 2, 3, FOUR)
    with pytest.raises(ValueError, match="differ in pixel_origin"):
        SemanticMPI.stack([mpi, other])
    with pytest.raises(ValueError, match="of shapes"):
        SemanticMPI.stack([mpi, wide])
    with pytest.raises(ValueError, match="a batch already"):
        SemanticMPI.stack([batch])
    with pytest.raises(ValueError, match="empty list"):
        SemanticMPI.stack([])
    with pytest.raises(TypeError, match="single frame"):
        mpi[0]
    with pytest.raises(TypeError, match="single frame"):
        len(mpi)
    with pytest.raises(ValueError, match="with V=1 cameras and D=4 planes"):
        SemanticMPI(mpi.labels[:, :3], mpi.nearest, mpi.nearest_plane, SYN, FOUR, "center", ("CAM_0",))
    with pytest.raises(ValueError, match="to fit labels"):
        SemanticMPI(mpi.labels, mpi.nearest[0], mpi.nearest_plane, SYN, FOUR, "center", ("CAM_0",))
