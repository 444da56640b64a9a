"""Furnished box rooms in NYUv2's files: voxels, depth and a plain picture each.

Only as far as `occupancy.data.nyuv2` needs them: a room is a box with furniture of boxes and cylinders, seen by one
Kinect. Solids carry SSCNet's ids in their `label`. World axes are NYU's: x right, y into the room, z up, the floor at
z = 0 and the camera above the origin. Legend: P solids, R rays.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import atomic_write_image
from syntheocc.occupancy.data import nyuv2
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.taxonomy import UNKNOWN
from syntheocc.occupancy.transforms import invert_rigid, transform_points
from syntheocc.worlds.families import random_for
from syntheocc.worlds.intersect import first_hit
from syntheocc.worlds.primitives import BOX, CONE, Primitives
from syntheocc.worlds.voxelize import paint

__all__ = ["Room", "make_room", "room_depth", "room_voxels", "write_room", "write_rooms"]

# SSCNet's ids that the rooms use.
IDS = {
    "ceiling": 1, "floor": 2, "wall": 3, "window": 4, "door": 5, "chair": 6, "bed": 7, "sofa": 8, "table": 9,
    "bookshelf": 11, "cabinet": 12, "lamp": 14, "pillow": 22, "tvs": 33,
}  # fmt: skip
VOXEL = 0.02
_WALL = 0.1  # thickness of walls, floor and ceiling, metres


@dataclass(frozen=True, eq=False)
class Room:
    """One room.

    Args:
        solids: in world axes; `label` holds SSCNet's ids.
        colors: float64 [P, 3], 0..1.
        lower, upper: the room's inner corners, metres.
        cam2world: float64 [4, 4].
    """

    solids: Primitives
    colors: np.ndarray  # [P, 3]
    lower: tuple[float, float, float]
    upper: tuple[float, float, float]
    cam2world: Tensor


class _Builder:
    """Collects boxes and upright cylinders of SSCNet classes."""

    def __init__(self, random: np.random.Generator):
        self.random = random
        self.rows: list[tuple[int, np.ndarray, int, np.ndarray]] = []
        self.paints: dict[str, np.ndarray] = {}

    def box(self, name: str, low: tuple[float, float, float], high: tuple[float, float, float], color=None) -> None:
        middle, half = (np.array(high) + low) / 2, (np.array(high) - low) / 2
        self._add(BOX, name, middle, half, color)

    def cylinder(self, name: str, foot: tuple[float, float, float], radius: float, height: float) -> None:
        middle = np.array(foot) + (0, 0, height / 2)
        self._add(CONE, name, middle, np.array([radius, radius, height / 2]), None)

    def _add(self, kind: int, name: str, middle: np.ndarray, half: np.ndarray, color) -> None:
        matrix = np.diag([*half, 1.0])
        matrix[:3, 3] = middle
        if color is None:
            if name not in self.paints:
                self.paints[name] = self.random.uniform(0.15, 0.85, 3)
            color = self.paints[name]
        color = np.array(color)
        self.rows.append((kind, matrix, IDS[name], color))

    def solids(self) -> tuple[Primitives, np.ndarray]:
        kind, matrix, label, color = zip(*self.rows, strict=True)
        zeros = torch.zeros(len(kind), dtype=torch.int64)
        solids = Primitives(
            kind=torch.tensor(kind, dtype=torch.int64),
            shape2frame=torch.from_numpy(np.stack(matrix)),
            taper=zeros.double(),
            label=torch.tensor(label, dtype=torch.uint8),
            category=zeros.to(torch.uint8),
            instance=zeros,
            material=zeros,
        )
        return solids, np.stack(color)


def make_room(seed: int) -> Room:
    """A room of 3.2-4.4 m by 3.6-5 m with a bed or a sofa, a table with chairs, shelves, a screen and a lamp."""
    random = random_for(seed, "room")
    left, right = -random.uniform(1.6, 2.2), random.uniform(1.6, 2.2)
    back, front, top = -0.6, random.uniform(3.0, 4.4), random.uniform(2.3, 2.7)
    put = _Builder(random)
    put.box("floor", (left, back, -_WALL), (right, front, 0), (0.45, 0.35, 0.25))
    put.box("ceiling", (left, back, top), (right, front, top + _WALL), (0.9, 0.9, 0.88))
    paint_color = random.uniform(0.6, 0.9, 3)
    put.box("wall", (left - _WALL, back, 0), (left, front, top), paint_color)
    put.box("wall", (right, back, 0), (right + _WALL, front, top), paint_color)
    put.box("wall", (left, front, 0), (right, front + _WALL, top), paint_color)
    put.box("wall", (left, back - _WALL, 0), (right, back, top), paint_color)
    middle = random.uniform(-0.5, 0.5)
    put.box("window", (middle - 0.6, front - 0.03, 1.0), (middle + 0.6, front + _WALL, 2.0), (0.7, 0.85, 0.95))
    put.box("door", (left, 0.9, 0), (left + 0.05, 1.8, 2.0))
    # Along the right wall: bed or sofa; along the far wall: shelves; between: a table with chairs.
    y = random.uniform(1.4, 1.8)
    if random.random() < 0.5:
        put.box("bed", (right - 1.0, y, 0.1), (right, min(front, y + 2.0), 0.5))
        put.box("pillow", (right - 0.8, y + 0.1, 0.5), (right - 0.2, y + 0.5, 0.62), (0.9, 0.9, 0.9))
    else:
        put.box("sofa", (right - 0.9, y, 0.05), (right, y + 1.8, 0.42))
        put.box("sofa", (right - 0.25, y, 0.42), (right, y + 1.8, 0.85))
    put.box("bookshelf", (left, front - 0.35, 0), (left + 0.9, front, random.uniform(1.4, 1.9)))
    put.box("cabinet", (right - 0.6, front - 0.45, 0), (right, front, 0.7))
    put.box("tvs", (right - 0.55, front - 0.3, 0.7), (right - 0.05, front - 0.22, 1.05), (0.05, 0.05, 0.06))
    x, y = random.uniform(-0.9, -0.5), random.uniform(1.6, 2.0)
    put.box("table", (x - 0.5, y - 0.35, 0.68), (x + 0.5, y + 0.35, 0.74))
    for dx in (-0.44, 0.44):
        for dy in (-0.3, 0.3):
            put.box("table", (x + dx - 0.03, y + dy - 0.03, 0), (x + dx + 0.03, y + dy + 0.03, 0.68))
    for side in range(int(random.integers(1, 3))):
        cx = x + (0.75 if side == 0 else -0.7)
        put.box("chair", (cx - 0.2, y - 0.2, 0.4), (cx + 0.2, y + 0.2, 0.46))
        put.box("chair", (cx - 0.2, y + 0.16, 0.46), (cx + 0.2, y + 0.2, 0.9))
        put.cylinder("chair", (cx, y, 0), 0.08, 0.4)
    put.cylinder("lamp", (x, y, 0.74), 0.09, 0.35)
    solids, colors = put.solids()
    return Room(solids, colors, (left, back, 0.0), (right, front, top), _camera_pose(random))


def _camera_pose(random: np.random.Generator) -> Tensor:
    """A hand-held camera at 1.1-1.4 m that looks along y and a little down."""
    yaw, pitch, roll = random.uniform(-0.2, 0.2), random.uniform(0.0, 0.2), random.uniform(-0.02, 0.02)
    ahead = np.array([np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), -np.sin(pitch)])
    right = np.cross(ahead, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    down = np.cross(ahead, right)
    right, down = np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.from_numpy(np.stack([right, down, ahead], 1))
    pose[2, 3] = random.uniform(1.1, 1.4)
    return pose


def room_voxels(room: Room) -> nyuv2.NyuVoxels:
    """The voxels of a room: solids where they are, free inside the room, 255 outside it and outside the view.

    The grid begins half a metre ahead of the camera, 2.4 m to its left, 5 cm below the floor, as NYU's do.
    """
    spec = GridSpec((-2.4, 0.5, -0.05), (VOXEL, VOXEL, VOXEL), (240, 240, 144), "world")
    owner = paint(room.solids, spec)
    ids = torch.cat([room.solids.label, room.solids.label.new_zeros(1)])[owner]
    axes = [
        low + (torch.arange(n, dtype=torch.float64) + 0.5) * VOXEL
        for low, n in zip(spec.lower, spec.shape, strict=True)
    ]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    # What the walls are made of belongs to the room.
    inside = torch.ones(spec.shape, dtype=torch.bool)
    for along, low, high in zip((x, y, z), room.lower, room.upper, strict=True):
        inside &= (along >= low - _WALL) & (along <= high + _WALL)
    camera = nyuv2.nyuv2_camera(room.cam2world)
    right, down, ahead = (row[0] * x + row[1] * y + row[2] * z + row[3] for row in camera.ego2cam[:3].tolist())
    focal = float(camera.intrinsics[0, 0])
    inside &= (ahead > 0) & (right.abs() <= 320 / focal * ahead) & (down.abs() <= 240 / focal * ahead)
    ids = torch.where(inside, ids, UNKNOWN)
    # [x, y, up] -> the file's [x, up, y]
    stored = np.ascontiguousarray(ids.numpy().transpose(0, 2, 1)).astype(np.uint8)
    return nyuv2.NyuVoxels(stored, torch.tensor(spec.lower, dtype=torch.float64), room.cam2world)


def room_depth(room: Room, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """What the camera sees of a room.

    Args:
        room: the room.
        stride: every so many pixels of 640 x 480.

    Returns:
        depth float64 [H, W] metres along the optical axis, and the picture uint8 [H, W, 3].
    """
    camera = nyuv2.nyuv2_camera(room.cam2world)
    rows, columns = torch.arange(0, camera.height, stride), torch.arange(0, camera.width, stride)
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    rays = camera.pixel_rays(torch.stack([u, v], -1).reshape(-1, 2))
    solids = room.solids.transformed(invert_rigid(room.cam2world))
    distance, index, normal = first_hit(solids, None, torch.zeros_like(rays), rays)
    depth = (distance / rays.norm(dim=1)).reshape(v.shape)
    # A lamp below the ceiling and light from all sides.
    points = transform_points(room.cam2world, rays * depth.reshape(-1, 1))
    to_lamp = torch.tensor([0.0, 1.5, room.upper[2] - 0.1], dtype=torch.float64) - points
    facing = (normal @ room.cam2world[:3, :3].T * to_lamp).sum(-1) / to_lamp.norm(dim=-1)
    light = (0.45 + 0.55 * facing.clamp_min(0)).numpy()
    picture = room.colors[index.clamp_min(0).numpy()] * light[:, None] * (index >= 0).numpy()[:, None]
    image = np.rint(255 * picture.clip(0, 1) ** (1 / 2.2)).astype(np.uint8).reshape(*v.shape, 3)
    return depth.numpy(), image


def write_room(room: Room, folder: str | os.PathLike, name: str) -> Path:
    """Write `NAME.png` (depth), `NAME_color.jpg` and `NAME.bin`, last; gives the `.bin`'s path."""
    path = Path(folder) / f"{name}.bin"
    depth, image = room_depth(room)
    nyuv2.write_depth(depth, path.with_suffix(".png"))
    atomic_write_image(path.with_name(f"{name}_color.jpg"), image, quality=92)
    nyuv2.write_nyuv2(room_voxels(room), path)
    return path


def write_rooms(root: str | os.PathLike, train: int = 3, test: int = 1, seed: int = 0) -> list[Path]:
    """Write `<root>/NYUtrain/NYU0001_0000.bin` ... and `NYUtest/`; rooms whose `.bin` exists are left as they are."""
    paths = []
    for number in range(train + test):
        folder = Path(root) / ("NYUtrain" if number < train else "NYUtest")
        path = folder / f"NYU{number + 1:04d}_0000.bin"
        paths.append(path if path.is_file() else write_room(make_room(seed + number), folder, path.stem))
    return paths
