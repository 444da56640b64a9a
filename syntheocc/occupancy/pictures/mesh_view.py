"""A grid's surface as a smooth, shaded skin seen from above at an angle. Legend: M quads, H W pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from syntheocc.occupancy.ops.quad_fill import quad_fill
from syntheocc.occupancy.pictures.colors import VoxelColors, class_colors
from syntheocc.occupancy.pictures.mesh import Mesh, surface_mesh
from syntheocc.occupancy.pictures.oblique import PAPER, averaged, fitted_view, light_on, openness
from syntheocc.occupancy.pictures.viewpoint import View, Viewpoint
from syntheocc.occupancy.pictures.wires import draw_wires

if TYPE_CHECKING:
    from syntheocc.occupancy.grids import OccupancyGrid

__all__ = ["mesh_picture"]


def mesh_picture(
    grid: OccupancyGrid,
    view: Viewpoint = Viewpoint(),  # noqa: B008 (frozen)
    *,
    height: int = 720,
    width: int = 1080,
    colors: VoxelColors | None = None,
    smooth: int = 6,
    fit: Literal["grid", "drawn"] = "grid",
    occlusion: bool = True,
    supersample: int = 2,
    background: tuple[int, int, int] = PAPER,
    wires: np.ndarray | None = None,
) -> np.ndarray:
    """Draw a grid's relaxed surface, headless, on the CPU.

    Triangles are painted from the farthest to the nearest by their middle. Since none is larger than a voxel, a wrong
    order is a matter of a few pixels where the surface folds.

    Args:
        grid: any grid in any frame; the picture is upright in ego.
        view: from where.
        height: of the picture, pixels.
        width: of the picture, pixels.
        colors: what to draw instead of the classes.
        smooth: rounds of relaxation, see `surface_mesh`.
        fit: what fills the picture: the whole grid, or only what is drawn.
        occlusion: darken what other voxels stand before.
        supersample: pixels along each side that make one of the picture.
        background: RGB.
        wires: [S, 2, 3] ends of line segments, metres in ego (`camera_wires`).

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: sizes below one, or colours of another shape than the grid.
    """
    if height < 1 or width < 1 or supersample < 1:
        raise ValueError(f"height, width and supersample must be 1 or more, got {height}, {width}, {supersample}")
    shown = class_colors(grid) if colors is None else colors
    mesh = surface_mesh(grid, shown, smooth)
    size = (height * supersample, width * supersample)
    fitted = fitted_view(grid, view, *size, shown.drawn if fit == "drawn" else None)
    triangles, owner = _facing(mesh, fitted)
    ahead = _ahead(mesh.vertices[triangles].mean(1), fitted)
    order = np.argsort(-ahead, kind="stable")
    triangles, owner, ahead = triangles[order], owner[order], ahead[order]
    flat = fitted.project(mesh.vertices)[triangles]
    painted = quad_fill(np.concatenate([flat, flat[:, 2:]], 1), *size)
    light = light_on(_vertex_normals(mesh)[mesh.quads].mean(1), fitted)
    if occlusion:
        light *= openness(shown.drawn, mesh.faces, np.arange(len(mesh.faces)), grid.spec)
    table = np.rint(mesh.colors * light[:, None]).clip(0, 255).astype(np.uint8)[owner]
    picture = np.concatenate([table, np.array([background], np.uint8)])[painted]  # -1, nothing, is the last
    if wires is not None:
        depths = np.append(ahead, np.inf)
        draw_wires(picture, fitted, wires, lambda rows, columns: depths[painted[rows, columns]], supersample)
    return averaged(picture, supersample)


def _facing(mesh: Mesh, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Triangles int64 [T, 3] that look at the viewer, two of a quad, and the quads int64 [T] that they are of."""
    corners = np.concatenate([mesh.quads[:, [0, 1, 2]], mesh.quads[:, [0, 2, 3]]])
    owner = np.tile(np.arange(len(mesh.quads)), 2)
    a, b, c = np.moveaxis(mesh.vertices[corners], 1, 0)
    towards = view.axes[2] if view.eye is None else a - view.eye
    facing = (np.cross(b - a, c - a) * towards).sum(-1) < 0
    return corners[facing], owner[facing]


def _ahead(points: np.ndarray, view: View) -> np.ndarray:
    """How far ahead of the eye's plane points [P, 3] lie, metres."""
    return (points - view.middle) @ view.axes[2] + (1e4 if view.eye_distance is None else view.eye_distance)


def _vertex_normals(mesh: Mesh) -> np.ndarray:
    """The mean of the quads' normals about each vertex, unit length, float64 [N, 3]."""
    normals, count = mesh.normals(), len(mesh.vertices)
    sums = np.stack([np.bincount(mesh.quads.ravel(), np.repeat(normals[:, axis], 4), count) for axis in range(3)], -1)
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
