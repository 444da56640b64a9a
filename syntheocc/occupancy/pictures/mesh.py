"""A grid's surface as a mesh: the faces of its voxels, as they are or relaxed into a smooth skin, and as a PLY file.

Relaxing moves every corner towards the mean of those it shares an edge with, and never further than a third of a voxel
from where it was: the skin keeps the grid's topology, and a single voxel stays in sight (after the constrained elastic
surface nets of Gibson, MERL 1999). Legend: X Y Z voxels, N vertices, M quads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from syntheocc.occupancy.pictures.colors import VoxelColors, class_colors
from syntheocc.occupancy.pictures.faces import Faces

if TYPE_CHECKING:
    from syntheocc.occupancy.grids import OccupancyGrid

__all__ = ["Mesh", "exposed_faces", "save_ply", "surface_mesh"]

# How far a corner may move along every axis, voxels.
_REACH = 1 / 3


@dataclass(frozen=True, eq=False)
class Mesh:
    """Coloured quads.

    Args:
        vertices: float64 [N, 3] metres in ego.
        quads: int64 [M, 4] vertices, counter-clockwise as seen from outside.
        colors: uint8 [M, 3] RGB.
        faces: the voxels' faces that the quads are made of, in the same order.
    """

    vertices: np.ndarray
    quads: np.ndarray
    colors: np.ndarray
    faces: Faces

    def normals(self) -> np.ndarray:
        """Unit normals of the quads, outwards, float64 [M, 3]; zero for a quad without area."""
        a, b, c, d = np.moveaxis(self.vertices[self.quads], 1, 0)
        normals = np.cross(c - a, d - b)
        return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def exposed_faces(drawn: np.ndarray) -> Faces:
    """The faces of drawn voxels [X, Y, Z] that no drawn neighbour covers, in all six directions, x slowest."""
    voxels, sides = [], []
    for axis in range(3):
        for up in (0, 1):
            covered = np.zeros_like(drawn)
            near, far = [slice(None)] * 3, [slice(None)] * 3
            near[axis], far[axis] = slice(None, -1), slice(1, None)
            covered[tuple(near if up else far)] = drawn[tuple(far if up else near)]
            found = np.argwhere(drawn & ~covered)
            voxels.append(found)
            sides.append(np.full(len(found), 2 * axis + up, np.int8))
    return Faces(np.concatenate(voxels).astype(np.int64), np.concatenate(sides))


def surface_mesh(grid: OccupancyGrid, colors: VoxelColors | None = None, smooth: int = 0) -> Mesh:
    """The surface of what is drawn of a grid.

    Args:
        grid: any grid in any frame.
        colors: what to draw instead of the classes.
        smooth: rounds of relaxation; 0 keeps the cubes.

    Raises:
        ValueError: a negative number of rounds, or colours of another shape than the grid.

    Example:
        >>> save_ply(surface_mesh(grid, smooth=4), "street.ply")  # doctest: +SKIP
    """
    if smooth < 0:
        raise ValueError(f"smooth is a number of rounds, 0 or more, got {smooth}")
    shown = class_colors(grid) if colors is None else colors
    if shown.drawn.shape != tuple(grid.spec.shape):
        raise ValueError(f"colours must be [X, Y, Z] = {grid.spec.shape}, got {shown.drawn.shape}")
    faces = exposed_faces(shown.drawn)
    corners = faces.corners()
    # In turn about an upward normal; a downward face is seen from the other side.
    corners = np.where((faces.side % 2 == 1)[:, None, None], corners, corners[:, ::-1])
    size = np.array(grid.spec.shape) + 1
    number = (corners[..., 0] * size[1] + corners[..., 1]) * size[2] + corners[..., 2]
    used, quads = np.unique(number, return_inverse=True)
    lattice = np.stack(np.unravel_index(used, tuple(size)), -1).astype(np.float64)
    points = _relaxed(lattice, quads.reshape(-1, 4), smooth)
    metres = points * grid.spec.voxel_size + grid.spec.lower
    pose = grid.grid2ego.numpy()
    x, y, z = faces.voxel.T
    vertices = metres @ pose[:3, :3].T + pose[:3, 3]
    return Mesh(vertices, quads.reshape(-1, 4), np.ascontiguousarray(shown.colors[x, y, z]), faces)


def save_ply(mesh: Mesh, path: str | Path) -> Path:
    """Write a mesh as binary PLY, by rename: vertices with RGB, quads with RGB.

    Vertices between two colours are written once for each, so that viewers which know only vertex colours keep borders
    sharp.

    Raises:
        ValueError: another suffix, or nothing to write.
    """
    from syntheocc.engine.files import atomic_path

    path = Path(path)
    if path.suffix.lower() != ".ply":
        raise ValueError(f"{path}: meshes are written as .ply")
    if not len(mesh.quads):
        raise ValueError(f"{path}: the mesh is empty; the grid has nothing but free and unknown voxels")
    code = mesh.colors.astype(np.int64) @ [1, 256, 65536]
    keys = mesh.quads * (1 << 24) + code[:, None]
    found, corners = np.unique(keys, return_inverse=True)
    used = found.astype(np.int64)
    vertices = np.empty(len(used), [("position", "<f4", 3), ("color", "u1", 3)])
    vertices["position"] = mesh.vertices[used >> 24]
    vertices["color"] = np.stack([used & 255, used >> 8 & 255, used >> 16 & 255], -1)
    quads = np.empty(len(mesh.quads), [("count", "u1"), ("corners", "<i4", 4), ("color", "u1", 3)])
    quads["count"], quads["corners"], quads["color"] = 4, corners.reshape(-1, 4), mesh.colors
    color = "property uchar red\nproperty uchar green\nproperty uchar blue\n"
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment metres, x forward, y left, z up\n"
        f"element vertex {len(vertices)}\nproperty float x\nproperty float y\nproperty float z\n{color}"
        f"element face {len(quads)}\nproperty list uchar int vertex_indices\n{color}end_header\n"
    )
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(header.encode("ascii"))
        vertices.tofile(file)
        quads.tofile(file)
    return path


def _relaxed(lattice: np.ndarray, quads: np.ndarray, rounds: int) -> np.ndarray:
    """Points [N, 3] in voxel units after so many rounds, each within `_REACH` of its place along every axis."""
    if not rounds:
        return lattice
    edges = np.concatenate([quads[:, [i, (i + 1) % 4]] for i in range(4)])
    edges = np.unique(np.sort(edges, axis=1), axis=0)
    ends = np.concatenate([edges, edges[:, ::-1]])
    degree = np.bincount(ends[:, 0], minlength=len(lattice))
    points = lattice
    for _ in range(rounds):
        sums = [np.bincount(ends[:, 0], points[ends[:, 1], axis], len(lattice)) for axis in range(3)]
        points = np.clip(np.stack(sums, -1) / degree[:, None], lattice - _REACH, lattice + _REACH)
    return points
