"""Which face of which voxel shows at each pixel of an oblique picture.

The faces that look at the viewer and that no drawn neighbour hides are painted from the farthest to the nearest
(`ops.quad_fill`). No depth is compared: along any line of sight the voxel's index moves away from the eye's along
every axis, so sorting by the three distances to the eye's index, one after the other, never puts a voxel before one
that it hides. `trace_faces` casts a ray a pixel instead, and is what the painting is tested against.

Legend: X Y Z voxels, N faces, H W pixels.
"""

from dataclasses import dataclass

import numpy as np

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.quad_fill import quad_fill
from syntheocc.occupancy.pictures.tracing import Hits, in_grid, trace
from syntheocc.occupancy.pictures.viewpoint import View

__all__ = ["Faces", "face_depths", "facing_faces", "paint_faces", "trace_faces"]

_SQUARE = ((0, 0), (1, 0), (1, 1), (0, 1))


@dataclass(frozen=True, eq=False)
class Faces:
    """Faces of voxels, far to near.

    Args:
        voxel: int64 [N, 3], indices.
        side: int8 [N]: axis and direction of the outward normal, ``2 * axis + (1 if it points up that axis)``.
    """

    voxel: np.ndarray
    side: np.ndarray

    def __len__(self) -> int:
        return len(self.side)

    def corners(self) -> np.ndarray:
        """Corners int64 [N, 4, 3] in voxel units, in turn."""
        axis = self.side // 2
        corners = np.repeat(self.voxel[:, None], 4, axis=1)
        rows = np.arange(len(self))
        corners[rows, :, axis] += (self.side % 2)[:, None]
        square = np.array(_SQUARE)
        for plane in (0, 1):
            corners[rows, :, (axis + 1 + plane) % 3] += square[:, plane]
        return corners


def facing_faces(drawn: np.ndarray, spec: GridSpec, grid2ego: np.ndarray, view: View) -> Faces:
    """The faces that look at the viewer and have no drawn voxel before them.

    Args:
        drawn: bool [X, Y, Z].
        spec: where the voxels lie.
        grid2ego: [4, 4].
        view: the view.
    """
    cell = _eye_cell(spec, grid2ego, view)
    voxels, sides = [], []
    for axis in range(3):
        along = np.moveaxis(drawn, axis, 0)
        size = len(along)
        free = ~along
        for up in (0, 1):
            first, last = (0, min(cell[axis], size)) if up else (max(cell[axis] + 1, 0), size)
            if first >= last:
                continue
            bare = along[first:last].copy()
            if up:
                bare[: size - 1 - first] &= free[first + 1 : last + 1]
            else:
                bare[int(first == 0) :] &= free[max(first, 1) - 1 : last - 1]
            index = np.stack(np.nonzero(bare), -1)
            index[:, 0] += first
            # moveaxis(axis, 0) made the order (axis, the others in rising order).
            places = np.argsort([axis, *(other for other in range(3) if other != axis)])
            voxels.append(index[:, places])
            sides.append(np.full(len(index), 2 * axis + up, np.int8))
    if not voxels:
        return Faces(np.zeros((0, 3), np.int64), np.zeros(0, np.int8))
    voxel, side = np.concatenate(voxels), np.concatenate(sides)
    away = np.abs(voxel - cell)
    limit = away.max(0) + 1 if len(away) else np.ones(3, np.int64)
    near = (away[:, 0] * limit[1] + away[:, 1]) * limit[2] + away[:, 2]
    order = np.argsort(-near, kind="stable")
    return Faces(voxel[order], side[order])


def paint_faces(
    faces: Faces,
    spec: GridSpec,
    grid2ego: np.ndarray,
    view: View,
    height: int,
    width: int,
) -> np.ndarray:
    """The number of the face at each pixel, int32 [H, W]; -1 where there is none."""
    corners = faces.corners()
    metres = [spec.lower[i] + corners[..., i] * spec.voxel_size[i] for i in range(3)]
    ego = [grid2ego[i, 0] * metres[0] + grid2ego[i, 1] * metres[1] + grid2ego[i, 2] * metres[2] for i in range(3)]
    points = np.stack([ego[i] + grid2ego[i, 3] for i in range(3)], -1)
    return quad_fill(view.project(points), height, width)


def trace_faces(drawn: np.ndarray, spec: GridSpec, grid2ego: np.ndarray, view: View, height: int, width: int) -> Hits:
    """What each pixel [H, W] shows, by casting its ray: the slow and obvious twin of the painting."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return trace(drawn, spec, grid2ego, *view.rays(np.stack([columns, rows], -1).astype(np.float64)))


def face_depths(
    faces: Faces, number: np.ndarray, pixels: np.ndarray, spec: GridSpec, grid2ego: np.ndarray, view: View
) -> np.ndarray:
    """How far ahead of the eye's plane pixels [N, 2] (u, v) meet the planes of the faces `number` [N], metres."""
    origins, directions = in_grid(grid2ego, *view.rays(pixels.astype(np.float64)))
    side, rows = faces.side[number], np.arange(len(number))
    axis = side // 2
    plane = np.array(spec.lower)[axis] + (faces.voxel[number, axis] + side % 2) * np.array(spec.voxel_size)[axis]
    return (plane - origins[rows, axis]) / directions[rows, axis]


def _eye_cell(spec: GridSpec, grid2ego: np.ndarray, view: View) -> np.ndarray:
    """The index of the eye's voxel along each axis, int64 [3]; an orthographic eye is just beyond the grid."""
    rotation, shape = np.asarray(grid2ego)[:3, :3], np.array(spec.shape)
    if view.eye is None:
        towards = -view.axes[2] @ rotation
        return np.where(towards >= 0, shape, -1).astype(np.int64)
    eye = (view.eye - np.asarray(grid2ego)[:3, 3]) @ rotation
    cell = np.floor((eye - spec.lower) / spec.voxel_size)
    # Farther out nothing changes, and the distances stay small.
    return np.clip(cell, -shape, 2 * shape).astype(np.int64)
