"""A grid as solid voxels seen from above at an angle: the picture that papers print.

Faces are shaded by their direction and by how much stands before them, borders between faces are drawn as fine lines,
and the picture is computed larger and averaged down. Legend: X Y Z voxels, N faces, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.pictures.colors import VoxelColors, class_colors
from syntheocc.occupancy.pictures.ego_car import CAR_SPEC, car2ego_of, car_colors
from syntheocc.occupancy.pictures.faces import Faces, face_depths, facing_faces, paint_faces
from syntheocc.occupancy.pictures.viewpoint import View, Viewpoint
from syntheocc.occupancy.pictures.wires import draw_wires
from syntheocc.occupancy.transforms import invert_rigid, rigid_transform

if TYPE_CHECKING:
    from syntheocc.occupancy.grids import OccupancyGrid

__all__ = ["PAPER", "averaged", "fitted_view", "light_on", "oblique_picture", "openness"]

PAPER = (255, 255, 255)
# Sunlight from the viewer's upper left, and how much of the light is the sky's.
_SUN = np.array([-0.42, 0.84, -0.34])  # along the viewer's right, up (of ego), forward (level)
_SKY = 0.50
# How far what stands around a face takes light from it, metres, and how much at most.
_REACH, _DARKEST = 1.3, 0.5
# Darkness of a line between faces of one colour in one plane, and of any other.
_FINE, _STRONG = 0.16, 0.42
# Voxels smaller than the first number of computed pixels get no fine lines, those larger than the second full ones.
_LINED = (3.0, 7.0)
# How far from the ego's ground the ground below the car may lie, metres.
_SINKS = 1.2


def oblique_picture(
    grid: OccupancyGrid,
    view: Viewpoint = Viewpoint(),  # noqa: B008 (frozen)
    *,
    height: int = 720,
    width: int = 1080,
    colors: VoxelColors | None = None,
    unknown: bool = False,
    below: float | None = None,
    fit: Literal["grid", "drawn"] = "grid",
    ego: bool | Any = True,
    lines: float = 1.0,
    occlusion: bool = True,
    supersample: int = 2,
    background: tuple[int, int, int] = PAPER,
    wires: np.ndarray | None = None,
) -> np.ndarray:
    """Draw a grid in three dimensions, headless, on the CPU.

    Args:
        grid: any grid in any frame; the picture is upright in ego (`grid2ego`).
        view: from where.
        height: of the picture, pixels.
        width: of the picture, pixels.
        colors: what to draw instead of the classes (`panoptic_colors`, `error_colors`, ...).
        unknown: draw 255 too, in grey; not with `colors`.
        below: draw only voxels whose centre lies lower than this, metres along ego z (tunnels, ceilings, crowns).
        fit: what fills the picture: the whole grid, which keeps a drive's frames alike, or only what is drawn.
        ego: draw the ego car; a [4, 4] car2ego says where, by default at the origin of ego (for a velodyne grid with
            the identity as pose, as SemanticKITTI's reader gives, below it), on what is drawn there. Grids in a
            camera's or a world's frame have none.
        lines: strength of the lines between faces, 0 none.
        occlusion: darken faces before which other voxels stand.
        supersample: pixels along each side that make one of the picture.
        background: RGB.
        wires: [S, 2, 3] ends of line segments to draw, metres in ego (`camera_wires`); voxels hide them.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: sizes below one, colours of another shape than the grid, or an unknown `fit`.

    Example:
        >>> save_picture(oblique_picture(grid), "street.png")  # doctest: +SKIP
    """
    if height < 1 or width < 1 or supersample < 1:
        raise ValueError(f"height, width and supersample must be 1 or more, got {height}, {width}, {supersample}")
    if fit not in ("grid", "drawn"):
        raise ValueError(f"fit must be 'grid' or 'drawn', got {fit!r}")
    shown = class_colors(grid, unknown) if colors is None else colors
    if shown.drawn.shape != tuple(grid.spec.shape) or shown.colors.shape != (*grid.spec.shape, 3):
        raise ValueError(
            f"colours must be [X, Y, Z] = {grid.spec.shape}, got {shown.drawn.shape} and {shown.colors.shape}"
        )
    grid2ego = grid.grid2ego.numpy()
    drawn = shown.drawn if below is None else shown.drawn & (ego_heights(grid) < below)
    car2ego = _car2ego(grid, ego, drawn)
    size = (height * supersample, width * supersample)
    fitted = fitted_view(grid, view, *size, drawn if fit == "drawn" else None, car2ego)
    layer = _Layer(shown._replace(drawn=drawn), grid.spec, grid2ego, fitted, size, occlusion)
    picture = layer.picture(background, lines)
    if car2ego is not None:
        car = _Layer(car_colors(), CAR_SPEC, car2ego, fitted, size, occlusion)
        pixels = np.flatnonzero(car.face >= 0)
        rows, columns = pixels // size[1], pixels % size[1]
        nearer = car.depth(rows, columns) < layer.depth(rows, columns)
        if nearer.any():
            # The car is a small part of most pictures.
            top, left = rows.min(), columns.min()
            window = slice(top, rows.max() + 2), slice(left, columns.max() + 2)
            rows, columns = rows[nearer], columns[nearer]
            picture[rows, columns] = car.picture(background, lines, window)[rows - top, columns - left]
    if wires is not None:
        draw_wires(picture, fitted, wires, layer.depth, supersample)
    return averaged(picture, supersample)


def fitted_view(
    grid: OccupancyGrid,
    view: Viewpoint,
    height: int,
    width: int,
    drawn: np.ndarray | None = None,
    car2ego: np.ndarray | None = None,
) -> View:
    """The view in which a grid fills a picture.

    Args:
        grid: the grid.
        view: from where.
        height: of the picture, pixels.
        width: of the picture, pixels.
        drawn: bool [X, Y, Z], what is to fill it instead of the whole grid.
        car2ego: [4, 4], a car that is to be seen too (KITTI's grid begins ahead of it).
    """
    grid2ego = grid.grid2ego.numpy()
    ends = _ends(*_extent(grid.spec, drawn)) @ grid2ego[:3, :3].T + grid2ego[:3, 3]
    if car2ego is not None:
        car_ends = _ends(np.array(CAR_SPEC.lower), np.array(CAR_SPEC.upper))
        ends = np.concatenate([ends, car_ends @ car2ego[:3, :3].T + car2ego[:3, 3]])
    return view.fitted(ends, height, width)


def ego_heights(grid: OccupancyGrid) -> np.ndarray:
    """Heights of the voxels' centres along ego z, metres, float64 that broadcasts to [X, Y, Z]."""
    row, spec = grid.grid2ego.numpy()[2], grid.spec
    heights = np.full((1, 1, 1), row[3])
    for axis in range(3):
        centers = spec.lower[axis] + (np.arange(spec.shape[axis]) + 0.5) * spec.voxel_size[axis]
        heights = heights + row[axis] * np.expand_dims(centers, [other for other in range(3) if other != axis])
    return heights


class _Layer:
    """One grid in a view: which face shows where, and what colour every face has."""

    def __init__(
        self,
        shown: VoxelColors,
        spec: GridSpec,
        grid2ego: np.ndarray,
        view: View,
        size: tuple[int, int],
        occlusion: bool,
    ):
        self.spec, self.grid2ego, self.view = spec, grid2ego, view
        self.faces = facing_faces(shown.drawn, spec, grid2ego, view)
        self.face = paint_faces(self.faces, spec, grid2ego, view, *size)
        normals = np.stack([sign * grid2ego[:3, axis] for axis in range(3) for sign in (-1, 1)])
        light = light_on(normals, view)[self.faces.side]
        if occlusion:
            seen = np.zeros(len(self.faces) + 1, bool)
            seen[self.face.ravel()] = True  # -1, nothing, marks the spare entry at the end
            seen = np.flatnonzero(seen[:-1])
            light[seen] *= openness(shown.drawn, self.faces, seen, spec)
        x, y, z = self.faces.voxel.T
        self.base = shown.colors[x, y, z]
        self.colors = np.rint(self.base * light[:, None]).clip(0, 255).astype(np.uint8)

    def picture(
        self,
        background: tuple[int, int, int],
        lines: float,
        window: tuple[slice, slice] = (slice(None), slice(None)),
    ) -> np.ndarray:
        """The colours of the faces and the lines between them, uint8 [H, W, 3]; of rows and columns of the whole."""
        face = self.face[window]
        table = np.concatenate([self.colors, np.array([background], np.uint8)])
        picture = table.take(face, axis=0, mode="wrap")  # -1 is the last entry
        if lines > 0:
            plane = self._planes()
            strong, fine = _borders(plane.take(face, mode="wrap")), _borders(face)
            for where, darkness in ((fine & ~strong, _FINE * self._lined()), (strong, _STRONG)):
                kept = int(256 * (1 - min(1.0, darkness * lines)))
                chosen = np.flatnonzero(where)
                flat = picture.reshape(-1, 3)
                flat[chosen] = (flat[chosen].astype(np.uint16) * kept >> 8).astype(np.uint8)
        return picture

    def depth(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """How far ahead pixels [P] meet their face, metres; infinite where there is none."""
        number = self.face[rows, columns]
        depth = np.full(len(number), np.inf)
        hit = np.flatnonzero(number >= 0)
        pixels = np.stack([columns[hit], rows[hit]], -1)
        depth[hit] = face_depths(self.faces, number[hit], pixels, self.spec, self.grid2ego, self.view)
        return depth

    def _lined(self) -> float:
        """How strong lines between voxels are, 0..1: where a voxel is a few pixels they would be a grey veil."""
        view = self.view
        pixels = view.focal / (view.eye_distance or 1.0) * float(np.prod(self.spec.voxel_size)) ** (1 / 3)
        return float(np.interp(pixels, _LINED, (0, 1)))

    def _planes(self) -> np.ndarray:
        """A number for every face [N + 1] that faces of one plane and colour share; the last is for none."""
        side, rows = self.faces.side.astype(np.int64), np.arange(len(self.faces))
        color = self.base.astype(np.int64) @ [1, 256, 65536]
        plane = self.faces.voxel[rows, side // 2]
        return np.append((plane * 6 + side << 24) + color, -1)


def _borders(number: np.ndarray) -> np.ndarray:
    """Bool [H, W]: the pixel below or to the right has another number."""
    border = np.zeros(number.shape, bool)
    border[:-1] = number[:-1] != number[1:]
    border[:, :-1] |= number[:, :-1] != number[:, 1:]
    return border


def light_on(normals: np.ndarray, view: View) -> np.ndarray:
    """Light that falls on faces with these outward normals [N, 3] in ego, float64 [N]; 1 on a level roof."""
    right = view.axes[0]
    sun = _SUN[0] * right + _SUN[1] * np.array([0, 0, 1.0]) + _SUN[2] * np.cross([0, 0, 1.0], right)
    return (_SKY + (1 - _SKY) * (normals @ sun).clip(0)) / (_SKY + (1 - _SKY) * _SUN[1])


def openness(drawn: np.ndarray, faces: Faces, chosen: np.ndarray, spec: GridSpec) -> np.ndarray:
    """Share of light [len(chosen)] that reaches faces past the voxels in a box before them."""
    total = np.zeros([n + 1 for n in drawn.shape], np.int32)
    total[1:, 1:, 1:] = drawn.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32).cumsum(2, dtype=np.int32)
    reach = np.maximum(1, np.rint(_REACH / np.array(spec.voxel_size))).astype(np.int64)
    voxel, side, rows = faces.voxel[chosen], faces.side[chosen], np.arange(len(chosen))
    low, high = voxel - reach, voxel + 1 + reach
    axis, up = side // 2, side % 2 == 1
    middle = voxel[rows, axis]
    low[rows, axis] = np.where(up, middle + 1, middle - reach[axis])
    high[rows, axis] = np.where(up, middle + 1 + reach[axis], middle)
    volume = (high - low).prod(1)
    low, high = low.clip(0, drawn.shape), high.clip(0, drawn.shape)
    strides = np.array([total.shape[1] * total.shape[2], total.shape[2], 1])
    near, far = low * strides, high * strides
    count = np.zeros(len(chosen), np.int64)
    for corner in range(8):
        picked = [(far if corner >> i & 1 else near)[:, i] for i in range(3)]
        sign = 1 if corner.bit_count() % 2 else -1
        count += sign * total.ravel()[picked[0] + picked[1] + picked[2]]
    return 1 - _DARKEST * np.minimum(1, 2 * count / volume) ** 0.75


def _car2ego(grid: OccupancyGrid, ego: bool | Any, drawn: np.ndarray) -> np.ndarray | None:
    if ego is not True:
        return None if ego is False or ego is None else rigid_transform(ego, "car2ego").numpy()
    car2ego = car2ego_of(grid)
    if car2ego is None:
        return None
    # Labels of roads lie up to a voxel or two off z = 0: the car is put on them, so that it neither floats nor sinks.
    low, high = np.array([*CAR_SPEC.lower[:2], -_SINKS]), np.array([*CAR_SPEC.upper[:2], _SINKS])
    car2grid = invert_rigid(grid.grid2ego).numpy() @ car2ego
    near = _ends(low, high) @ car2grid[:3, :3].T + car2grid[:3, 3]
    first = np.floor((near.min(0) - grid.spec.lower) / grid.spec.voxel_size).astype(int).clip(0, grid.spec.shape)
    last = np.ceil((near.max(0) - grid.spec.lower) / grid.spec.voxel_size).astype(int).clip(0, grid.spec.shape)
    cells = np.argwhere(drawn[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]) + first
    centers = (cells + 0.5) * grid.spec.voxel_size + np.array(grid.spec.lower) - car2grid[:3, 3]
    points = centers @ car2grid[:3, :3]
    below = points[((points >= low) & (points <= high)).all(1), 2]
    if len(below):
        car2ego[2, 3] += np.median(below) + grid.spec.voxel_size[2] / 2
    return car2ego


def _extent(spec: GridSpec, drawn: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner [3] of the grid, or of what is drawn of it if anything is."""
    low, high = np.zeros(3), np.array(spec.shape, float)
    if drawn is not None and drawn.any():
        for axis in range(3):
            used = np.flatnonzero(drawn.any(tuple(other for other in range(3) if other != axis)))
            low[axis], high[axis] = used[0], used[-1] + 1
    return np.array(spec.lower) + low * spec.voxel_size, np.array(spec.lower) + high * spec.voxel_size


def _ends(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The corners [8, 3] of an upright box."""
    return np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, 3)


def averaged(picture: np.ndarray, side: int) -> np.ndarray:
    """Means over blocks of side x side pixels."""
    if side == 1:
        return picture
    total = np.zeros((picture.shape[0] // side, picture.shape[1] // side, 3), np.uint32 if side > 16 else np.uint16)
    for i in range(side):
        for j in range(side):
            total += picture[i::side, j::side]
    return ((total + side * side // 2) // (side * side)).astype(np.uint8)
