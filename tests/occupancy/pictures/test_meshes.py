"""Meshes and their files: counts and areas that a person can check; the skin against the cubes it is made of."""

import numpy as np
import pytest
import torch

from syntheocc.occupancy import GridSpec, OccupancyGrid
from syntheocc.occupancy.pictures import Viewpoint, class_colors, mesh_picture, oblique_picture, save_ply, surface_mesh
from syntheocc.occupancy.taxonomy import taxonomy_named

TAXONOMY = taxonomy_named("syntheocc")
CAR, ROAD = 1, 11


def grid_of(labels, size=0.5, lower=(1.0, 0.0, 0.0), pose=None, frame="ego"):
    labels = np.asarray(labels, np.uint8)
    return OccupancyGrid(labels, GridSpec(lower, (size,) * 3, labels.shape, frame), TAXONOMY, pose)


def areas(mesh):
    a, b, c, d = np.moveaxis(mesh.vertices[mesh.quads], 1, 0)
    return np.linalg.norm(np.cross(c - a, d - b), axis=1) / 2


def volume(mesh):
    """By the divergence theorem: positive where the quads' normals look outwards."""
    a, b, c, d = np.moveaxis(mesh.vertices[mesh.quads], 1, 0)
    triple = lambda p, q, r: (np.cross(p, q) * r).sum(-1)  # noqa: E731
    return float((triple(a, b, c) + triple(a, c, d)).sum() / 6)


def test_one_voxel_is_a_cube():
    mesh = surface_mesh(grid_of([[[CAR]]]))
    assert mesh.vertices.shape == (8, 3) and mesh.quads.shape == (6, 4)
    assert mesh.vertices.min(0).tolist() == [1, 0, 0] and mesh.vertices.max(0).tolist() == [1.5, 0.5, 0.5]
    assert areas(mesh).tolist() == [0.25] * 6 and volume(mesh) == pytest.approx(0.125)
    assert (mesh.colors == TAXONOMY.palette[CAR]).all()
    middle = mesh.vertices.mean(0)
    outwards = mesh.vertices[mesh.quads].mean(1) - middle
    assert np.allclose(mesh.normals(), outwards / np.linalg.norm(outwards, axis=1, keepdims=True))


def test_faces_between_voxels_are_left_out_and_the_pose_counts():
    labels = np.zeros((2, 1, 2))
    labels[:, 0, 0] = ROAD
    labels[1, 0, 1] = 255  # unknown is not there
    pose = torch.tensor([[0.0, -1, 0, 5], [1, 0, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]])
    mesh = surface_mesh(grid_of(labels, pose=pose, frame="lidar"))
    assert len(mesh.quads) == 10 and len(mesh.vertices) == 12 and volume(mesh) == pytest.approx(0.25)
    # x of the grid is y of ego.
    assert mesh.vertices.min(0).tolist() == [4.5, 1, 2] and mesh.vertices.max(0).tolist() == [5, 2, 2.5]


def test_a_skin_keeps_near_its_cubes():
    generator = np.random.default_rng(0)
    grid = grid_of(np.where(generator.random((6, 7, 5)) < 0.5, ROAD, 0))
    cubes, skin = surface_mesh(grid), surface_mesh(grid, smooth=5)
    assert np.array_equal(cubes.quads, skin.quads) and np.array_equal(cubes.colors, skin.colors)
    moved = np.abs(skin.vertices - cubes.vertices).max()
    assert 0.1 < moved <= 0.5 / 3 + 1e-12
    assert areas(skin).sum() < areas(cubes).sum() and 0 < volume(skin) < volume(cubes)
    with pytest.raises(ValueError, match="smooth is a number of rounds"):
        surface_mesh(grid, smooth=-1)


def test_a_level_floor_stays_level():
    mesh = surface_mesh(grid_of(np.full((9, 9, 1), ROAD)), smooth=4)
    inner = ((mesh.vertices[:, :2] > (2.9, 1.9)) & (mesh.vertices[:, :2] < (3.1, 2.1))).all(-1)
    assert sorted(mesh.vertices[inner, 2].round(9)) == [0.0, 0.5]


def read_ply(path):
    """A binary PLY as other programs read it: by what its header says."""
    data = path.read_bytes()
    head, body = (
        data[: data.index(b"end_header\n") + 11].decode().splitlines(),
        data[data.index(b"end_header\n") + 11 :],
    )
    assert head[:2] == ["ply", "format binary_little_endian 1.0"]
    count = {line.split()[1]: int(line.split()[2]) for line in head if line.startswith("element")}
    vertex = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("r", "u1"), ("g", "u1"), ("b", "u1")])
    face = np.dtype([("n", "u1"), ("v", "<i4", 4), ("r", "u1"), ("g", "u1"), ("b", "u1")])
    vertices = np.frombuffer(body, vertex, count["vertex"])
    faces = np.frombuffer(body, face, count["face"], vertices.nbytes)
    assert vertices.nbytes + faces.nbytes == len(body)
    return vertices, faces


def test_files(tmp_path):
    mesh = surface_mesh(grid_of([[[CAR], [ROAD]]]))
    vertices, faces = read_ply(save_ply(mesh, tmp_path / "out" / "two.ply"))
    # Eight corners of each cube: the four between them are written in both colours.
    assert len(vertices) == 16 and len(faces) == 10 and (faces["n"] == 4).all()
    colors = np.stack([vertices[c] for c in "rgb"], -1)
    for color, quad in zip(mesh.colors, faces, strict=True):
        assert (colors[quad["v"]] == color).all() and [quad[c] for c in "rgb"] == color.tolist()
    points = np.stack([vertices[c] for c in "xyz"], -1)
    assert np.allclose(points[faces["v"]], mesh.vertices[mesh.quads])
    with pytest.raises(ValueError, match="empty.ply: the mesh is empty"):
        save_ply(surface_mesh(grid_of([[[0]]])), tmp_path / "empty.ply")
    with pytest.raises(ValueError, match="written as .ply"):
        save_ply(mesh, tmp_path / "two.obj")
    assert [path.name for path in tmp_path.rglob("*.*")] == ["two.ply"]


@pytest.mark.parametrize("view", [Viewpoint(205, 38), Viewpoint(120, 60, fov_deg=None)])
def test_without_smoothing_a_mesh_is_painted_as_the_voxels_are(view):
    """Sorted by their middles triangles may hide each other wrongly, but hardly ever do."""
    generator = np.random.default_rng(1)
    labels = np.where(generator.random((12, 12, 4)) < 0.3, generator.integers(1, 17, (12, 12, 4)), 0)
    options = {"height": 120, "width": 160, "occlusion": False, "supersample": 1}
    grid = grid_of(labels)
    mesh = mesh_picture(grid, view, smooth=0, **options)
    flat = np.zeros((*grid.spec.shape, 3), np.uint8)
    flat[:] = 200
    plain = class_colors(grid)._replace(colors=flat)
    voxels = oblique_picture(grid, view, ego=False, lines=0, **options)
    # Shading is smooth in one and by faces in the other: colours are compared by their direction.
    directions = [p / np.linalg.norm(p.astype(float), axis=-1, keepdims=True) for p in (mesh, voxels)]
    assert ((directions[0] * directions[1]).sum(-1) > 0.995).mean() > 0.97
    silhouettes = [
        (picture == 255).all(-1)
        for picture in (
            mesh_picture(grid, view, smooth=0, colors=plain, **options),
            oblique_picture(grid, view, ego=False, lines=0, colors=plain, **options),
        )
    ]
    assert (silhouettes[0] == silhouettes[1]).all()
