"""A hand-laid street: the embedded default of ``bash infer.sh``, of ``syntheocc demo`` and of the benchmarks.

A two-lane street with parking lanes and a crossing, sidewalks, lawns, houses with gaps, trees, lamps and traffic, in
the SYNTHEOCC preset (500x500x40 voxels of 0.2 m in the LIDAR frame), seen by six cameras placed like those of
nuScenes. It needs no data set and is the same on every machine; `seed` moves the details (trees, house fronts, how
cars are parked), not the plan.

Everything is laid out in the ego frame (x forward, y left, z up, z = 0 on the road). The ego car drives on the right,
in the lane y in [-1.75, 1.75].
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from syntheocc.occupancy.cameras import NUSCENES_CAMERAS, Camera, CameraRig
from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.grids import SYNTHEOCC, OccupancyGrid

# Nominal mounting of the nuScenes LIDAR: 0.94 m ahead of the rear axle, 1.84 m up, its x axis to the right.
LIDAR2EGO = np.array([[0.0, 1.0, 0.0, 0.94], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.84], [0.0, 0.0, 0.0, 1.0]])

# Nominal cameras of nuScenes: (x, y, z) in metres, yaw in degrees (left positive), focal length in pixels.
_CAMERAS = {
    "CAM_FRONT_LEFT": ((1.52, 0.49, 1.51), 55.0, 1266.0),
    "CAM_FRONT": ((1.70, 0.0, 1.51), 0.0, 1266.0),
    "CAM_FRONT_RIGHT": ((1.52, -0.49, 1.51), -55.0, 1266.0),
    "CAM_BACK_RIGHT": ((1.02, -0.48, 1.57), -110.0, 1266.0),
    "CAM_BACK": ((0.03, 0.0, 1.57), 180.0, 809.0),
    "CAM_BACK_LEFT": ((1.02, 0.48, 1.57), 110.0, 1266.0),
}
IMAGE_HEIGHT, IMAGE_WIDTH = 900, 1600

# length, width, height in metres of the classes' usual members
_SIZES = {
    "car": (4.6, 1.9, 1.6),
    "truck": (7.6, 2.5, 3.2),
    "trailer": (6.0, 2.4, 3.0),
    "bus": (11.5, 2.9, 3.4),
    "construction_vehicle": (4.8, 2.1, 2.8),
    "bicycle": (1.8, 0.6, 1.7),
    "motorcycle": (2.1, 0.8, 1.7),
    "pedestrian": (0.6, 0.6, 1.75),
    "traffic_cone": (0.4, 0.4, 0.8),
    "barrier": (2.0, 0.5, 1.0),
}

# class, x, y, yaw in degrees, speed in m/s
_OBJECTS = (
    ("car", 15.5, 0.1, 0, 6.0),
    ("car", 10.5, 3.6, 180, 8.0),
    ("bus", -13.0, 3.7, 180, 7.0),
    ("truck", -13.5, 0.0, 0, 5.0),
    ("bus", 28.6, 15.0, 90, 0.0),
    ("car", 24.8, -13.0, -90, 4.0),
    ("car", 44.0, 3.5, 180, 8.0),
    ("truck", 40.0, -0.1, 0, 0.0),
    # parked, right and left
    ("car", 7.0, -3.05, 0, 0.0),
    ("car", -5.8, -3.0, 0, 0.0),
    ("car", -23.6, -3.1, 0, 0.0),
    ("car", -19.0, -3.0, 0, 0.0),
    ("car", 37.5, -3.0, 0, 0.0),
    ("car", 16.0, 6.5, 180, 0.0),
    ("car", 4.4, 6.5, 180, 0.0),
    ("car", -2.0, 6.4, 180, 0.0),
    ("car", -25.0, 6.5, 180, 0.0),
    ("trailer", -32.0, 6.4, 180, 0.0),
    # road works in the right parking lane, before the crossing
    ("construction_vehicle", 16.6, -3.0, 0, 0.0),
    ("barrier", 13.2, -1.9, 0, 0.0),
    ("barrier", 15.4, -1.9, 0, 0.0),
    ("barrier", 17.6, -1.9, 0, 0.0),
    ("traffic_cone", 11.6, -2.0, 0, 0.0),
    ("traffic_cone", 11.0, -2.8, 0, 0.0),
    ("traffic_cone", 10.6, -3.6, 0, 0.0),
    # two wheels
    ("bicycle", 6.8, -1.4, 0, 4.0),
    ("motorcycle", -6.8, 0.5, 0, 6.0),
    ("bicycle", 6.2, 10.2, 90, 0.0),
    # on the sidewalks and on the zebra crossing
    ("pedestrian", 9.4, -5.4, 0, 1.2),
    ("pedestrian", 10.2, -6.0, 0, 1.2),
    ("pedestrian", 4.3, -5.9, 180, 1.3),
    ("pedestrian", -4.2, -5.6, 180, 1.0),
    ("pedestrian", 20.6, 2.6, 90, 1.2),
    ("pedestrian", 20.2, -1.4, -90, 1.2),
    ("pedestrian", 8.4, 9.0, 0, 1.4),
    ("pedestrian", 0.8, 9.3, 0, 1.0),
    ("pedestrian", -6.0, 9.1, 180, 1.0),
    ("pedestrian", -6.8, 9.7, 180, 1.0),
)

# Road and what lies beside it, as x range, y range; later entries paint over earlier ones. Heights: road 0, curb 0.2.
_EDGE = 60.0
_GROUND = (
    ("terrain", (-_EDGE, _EDGE), (-_EDGE, _EDGE)),
    ("other_flat", (-24.0, -16.0), (10.7, 30.0)),
    ("other_flat", (33.0, 44.0), (-30.0, -7.2)),
    ("sidewalk", (-_EDGE, _EDGE), (-7.2, -4.2)),
    ("sidewalk", (-_EDGE, _EDGE), (7.7, 10.7)),
    ("sidewalk", (20.0, 34.0), (-_EDGE, _EDGE)),
    ("driveable_surface", (-_EDGE, _EDGE), (-4.2, 7.7)),
    ("driveable_surface", (22.5, 31.5), (-_EDGE, _EDGE)),
    ("driveable_surface", (-12.4, -9.0), (-22.0, -4.2)),
)

# Houses: x range, y range, height; the grid ends 4.84 m above the road, so that tall ones are cut off there.
_HOUSES = (
    ((9.5, 19.0), (-22.0, -9.4), 9.0),
    ((-2.5, 8.0), (-20.0, -9.0), 3.6),
    ((-8.4, -3.4), (-18.0, -10.2), 6.0),
    ((-27.0, -13.0), (-21.0, -9.2), 9.0),
    ((-48.0, -30.5), (-22.0, -9.0), 4.2),
    ((45.0, 49.0), (-24.0, -9.0), 9.0),
    ((34.6, 43.5), (-30.0, -20.0), 4.0),
    ((8.5, 19.0), (12.6, 24.0), 4.4),
    ((-4.5, 6.0), (12.9, 26.0), 9.0),
    ((-15.0, -7.5), (13.4, 24.0), 3.4),
    ((-40.0, -25.0), (12.6, 27.0), 9.0),
    ((35.0, 49.0), (12.6, 25.0), 9.0),
    ((10.0, 19.0), (28.0, 44.0), 3.8),
    ((8.0, 19.0), (-44.0, -27.0), 9.0),
    ((35.0, 46.0), (30.0, 46.0), 9.0),
)

# x, y of trees; the lawn strips and the gaps between the houses
_TREES = (
    (18.2, -6.7), (8.2, -8.0), (1.2, -7.9), (-8.6, -8.0), (-14.8, -7.8), (-23.0, -7.9), (-33.0, -7.8), (-43.0, -7.9),
    (19.0, 11.6), (11.0, 11.7), (7.2, 11.8), (-1.0, 11.7), (-6.2, 11.9), (-13.0, 11.8), (-27.5, 11.5), (-38.0, 11.6),
    (36.0, 11.6), (43.0, 11.6), (36.0, -7.9), (8.8, -13.0), (-20.0, 22.0), (7.3, 20.0), (-29.0, -13.0), (20.8, 20.0),
    (21.0, -17.0), (33.2, 20.0), (33.2, 27.0),
)  # fmt: skip

_LAMPS = ((13.0, -4.7), (-5.0, -4.7), (-24.0, -4.7), (19.6, 8.3), (2.0, 8.2), (-16.0, 8.2), (33.8, -4.8), (33.8, 8.4))


class Street(NamedTuple):
    """What :func:`example_street` returns: ``grid, rig, boxes``."""

    grid: OccupancyGrid
    rig: CameraRig
    boxes: Boxes


def nominal_rig(height: int = IMAGE_HEIGHT, width: int = IMAGE_WIDTH) -> CameraRig:
    """Six level pinhole cameras placed like those of nuScenes, in NUSCENES_CAMERAS order; 1600x900 by default."""
    cameras = {}
    for name in NUSCENES_CAMERAS:
        position, yaw_deg, focal = _CAMERAS[name]
        cos, sin = math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))
        cam2ego = torch.eye(4, dtype=torch.float64)
        # columns: the camera's x (right), y (down) and z (forward) axes in the ego frame
        cam2ego[:3, :3] = torch.tensor([[sin, 0.0, cos], [-cos, 0.0, sin], [0.0, -1.0, 0.0]], dtype=torch.float64)
        cam2ego[:3, 3] = torch.tensor(position, dtype=torch.float64)
        center_u, center_v = (IMAGE_WIDTH - 1) / 2, (IMAGE_HEIGHT - 1) / 2
        intrinsics = torch.tensor([[focal, 0, center_u], [0, focal, center_v], [0, 0, 1]], dtype=torch.float64)
        cameras[name] = Camera(intrinsics, cam2ego, IMAGE_HEIGHT, IMAGE_WIDTH)
    return CameraRig(cameras).resized(height, width)


class _Canvas:
    """The grid's labels and a brush that paints every voxel whose centre lies in a shape given in ego-frame metres."""

    def __init__(self):
        self.spec, self.taxonomy = SYNTHEOCC
        self.labels = np.full(self.spec.shape, self.taxonomy.free, dtype=np.uint8)
        self.ego2lidar = np.linalg.inv(LIDAR2EGO)
        self.lower, self.size = np.asarray(self.spec.lower), np.asarray(self.spec.voxel_size)

    def paint(
        self,
        name: str,
        low: tuple[float, float, float],
        high: tuple[float, float, float],
        local2ego: np.ndarray | None = None,
        inside: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Paint class `name` where low <= p < high (and `inside(p)`), p [..., 3] in the frame of `local2ego`."""
        local2lidar = self.ego2lidar if local2ego is None else self.ego2lidar @ local2ego
        corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1)
        corners = local2lidar[:3, :3] @ corners + local2lidar[:3, 3:]
        first = np.floor((corners.min(1) - self.lower) / self.size).astype(int).clip(0, self.spec.shape)
        last = np.ceil((corners.max(1) - self.lower) / self.size).astype(int).clip(0, self.spec.shape)
        if (first >= last).any():
            return
        block = self.labels[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
        index = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(first, last, strict=True)), indexing="ij"), -1)
        lidar2local = np.linalg.inv(local2lidar)
        points = (self.lower + (index + 0.5) * self.size) @ lidar2local[:3, :3].T + lidar2local[:3, 3]
        mask = ((points >= low) & (points < high)).all(-1)
        if inside is not None:
            mask &= inside(points)
        block[mask] = self.taxonomy.id_of(name)


def _pose(x: float, y: float, z: float, yaw: float) -> np.ndarray:
    """[4, 4] transform to the ego frame of something at (x, y, z) whose x axis points along `yaw` (radians)."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, -sin, 0, x], [sin, cos, 0, y], [0, 0, 1, z], [0, 0, 0, 1]], dtype=np.float64)


def _paint_ground(canvas: _Canvas) -> None:
    for name, (x0, x1), (y0, y1) in _GROUND:
        canvas.paint(name, (x0, y0, -0.2), (x1, y1, 0.0))
        if name == "sidewalk":  # one voxel of curb, which the road cuts away again where it crosses
            canvas.paint("sidewalk", (x0, y0, 0.0), (x1, y1, 0.2))
        elif name == "driveable_surface":
            canvas.paint(canvas.taxonomy.classes[canvas.taxonomy.free], (x0, y0, 0.0), (x1, y1, 0.2))


def _paint_house(canvas: _Canvas, x: tuple[float, float], y: tuple[float, float], height: float) -> None:
    """Walls 0.4 m thick, window niches every 3 m on the long sides, a flat roof (if the grid reaches that far)."""
    (x0, x1), (y0, y1) = x, y

    def shell(points: np.ndarray) -> np.ndarray:
        across = np.minimum(points[..., 0] - x0, x1 - points[..., 0])
        along = np.minimum(points[..., 1] - y0, y1 - points[..., 1])
        depth = np.minimum(np.minimum(across, along), height - points[..., 2])
        niche = (np.mod(points[..., 0] - x0, 3.0) - 1.5) ** 2 < 0.49
        niche &= (np.mod(points[..., 2], 3.0) > 1.0) & (np.mod(points[..., 2], 3.0) < 2.2) & (across > 0.8)
        return (depth < 0.4) & ~(niche & (depth < 0.2))

    canvas.paint("manmade", (x0, y0, 0.0), (x1, y1, height), inside=shell)


def _paint_tree(canvas: _Canvas, x: float, y: float, trunk: float, radius: float) -> None:
    """A trunk of 0.4 m and a crown, an ellipsoid that is a little flatter than wide."""
    canvas.paint("vegetation", (x - 0.2, y - 0.2, 0.0), (x + 0.2, y + 0.2, trunk + radius))
    middle = np.array([x, y, trunk + 0.8 * radius])
    radii = np.array([radius, radius, 0.85 * radius])
    canvas.paint(
        "vegetation",
        tuple(middle - radii),
        tuple(middle + radii),
        inside=lambda points: (((points - middle) / radii) ** 2).sum(-1) < 1,
    )


# Parts of an object in fractions of its box: (x0, x1), (y0, y1), (z0, z1), each 0..1; x forward, z up.
_PARTS = {
    "car": (
        ((0.0, 1.0), (0.0, 1.0), (0.18, 0.58)),
        ((0.12, 0.72), (0.06, 0.94), (0.58, 1.0)),
        ((0.12, 0.28), (0.0, 1.0), (0.0, 0.2)),
        ((0.72, 0.88), (0.0, 1.0), (0.0, 0.2)),
    ),
    "truck": (
        ((0.76, 1.0), (0.02, 0.98), (0.14, 0.84)),
        ((0.0, 0.72), (0.0, 1.0), (0.28, 1.0)),
        ((0.0, 0.95), (0.1, 0.9), (0.14, 0.3)),
        ((0.1, 0.28), (0.0, 1.0), (0.0, 0.28)),
        ((0.8, 0.92), (0.0, 1.0), (0.0, 0.28)),
    ),
    "trailer": (
        ((0.0, 0.92), (0.0, 1.0), (0.25, 1.0)),
        ((0.1, 0.35), (0.0, 1.0), (0.0, 0.28)),
        ((0.9, 1.0), (0.42, 0.58), (0.2, 0.32)),
    ),
    "bus": (
        ((0.0, 1.0), (0.0, 1.0), (0.1, 0.96)),
        ((0.3, 0.8), (0.2, 0.8), (0.96, 1.0)),
        ((0.12, 0.22), (0.0, 1.0), (0.0, 0.12)),
        ((0.76, 0.86), (0.0, 1.0), (0.0, 0.12)),
    ),
    "construction_vehicle": (
        ((0.0, 0.7), (0.0, 1.0), (0.0, 0.3)),
        ((0.0, 0.45), (0.1, 0.9), (0.3, 0.95)),
        ((0.4, 0.9), (0.4, 0.6), (0.72, 0.9)),
        ((0.86, 1.0), (0.25, 0.75), (0.1, 0.82)),
    ),
    "bicycle": (
        ((0.0, 0.34), (0.3, 0.7), (0.0, 0.38)),
        ((0.66, 1.0), (0.3, 0.7), (0.0, 0.38)),
        ((0.25, 0.75), (0.3, 0.7), (0.3, 0.5)),
        ((0.3, 0.62), (0.12, 0.88), (0.5, 0.85)),
        ((0.4, 0.62), (0.25, 0.75), (0.85, 1.0)),
    ),
    "pedestrian": (
        ((0.15, 0.85), (0.15, 0.85), (0.0, 0.5)),
        ((0.0, 1.0), (0.0, 1.0), (0.46, 0.84)),
        ((0.2, 0.8), (0.2, 0.8), (0.84, 1.0)),
    ),
    "traffic_cone": (((0.0, 1.0), (0.0, 1.0), (0.0, 0.4)), ((0.2, 0.8), (0.2, 0.8), (0.0, 1.0))),
    "barrier": (((0.0, 1.0), (0.0, 1.0), (0.0, 0.3)), ((0.0, 1.0), (0.2, 0.8), (0.3, 1.0))),
}
_PARTS["motorcycle"] = _PARTS["bicycle"]


def _paint_object(canvas: _Canvas, name: str, box2ego: np.ndarray, size: np.ndarray) -> None:
    for part in _PARTS[name]:
        low, high = ((np.array(part)[:, end] - 0.5) * size for end in (0, 1))
        canvas.paint(name, tuple(low), tuple(high), local2ego=box2ego)


def _height_of_ground(x: float, y: float) -> float:
    """0.2 m on a sidewalk, 0 elsewhere, after the table of grounds (the last entry that covers the point wins)."""
    covering = [name for name, (x0, x1), (y0, y1) in _GROUND if x0 <= x < x1 and y0 <= y < y1]
    return 0.2 if covering[-1] == "sidewalk" else 0.0


def example_street(seed: int = 0) -> Street:
    """Build the street.

    Args:
        seed: moves details (trees, parking, people); the plan stays. The same seed gives the same street.

    Returns:
        `Street(grid, rig, boxes)`: a SYNTHEOCC grid in the LIDAR frame with its grid2ego, a six-camera rig in
        NUSCENES_CAMERAS order (1600x900), and one box per object.

    Example:
        >>> grid, rig, boxes = example_street()
        >>> grid.spec.shape, len(rig), "bus" in boxes.names
        ((500, 500, 40), 6, True)
    """
    generator = torch.Generator().manual_seed(seed)

    def jitter(amount: float) -> float:
        return amount * (2 * torch.rand((), generator=generator, dtype=torch.float64).item() - 1)

    canvas = _Canvas()
    _paint_ground(canvas)
    for x_range, (y0, y1), height in _HOUSES:
        _paint_house(canvas, x_range, (y0, y1), height + jitter(0.4))
    for x, y in _TREES:
        _paint_tree(canvas, x + jitter(0.6), y + jitter(0.2), 1.9 + jitter(0.3), 1.7 + jitter(0.4))
    for x, y in _LAMPS:
        canvas.paint("manmade", (x - 0.15, y - 0.15, 0.0), (x + 0.15, y + 0.15, 6.0))
    # fence and hedge that close two of the gaps between houses
    canvas.paint("manmade", (-30.5, -9.4, 0.0), (-27.0, -9.0, 1.4))
    canvas.paint("vegetation", (6.0, 13.4, 0.0), (8.5, 14.2, 1.2))

    poses, sizes, velocities = [], [], []
    for name, x, y, yaw_deg, speed in _OBJECTS:
        yaw = math.radians(yaw_deg) + jitter(0.02 if speed or name != "pedestrian" else 0.5)
        x, y = x + jitter(0.25), y + jitter(0.08)
        size = np.array(_SIZES[name]) * (1 + jitter(0.03))
        box2ego = _pose(x, y, _height_of_ground(x, y) + size[2] / 2, yaw)
        _paint_object(canvas, name, box2ego, size)
        poses.append(box2ego)
        sizes.append(size)
        velocities.append((speed * math.cos(yaw), speed * math.sin(yaw)))
    count = len(poses)
    boxes = Boxes(
        box2ego=torch.from_numpy(np.stack(poses)),
        sizes=torch.from_numpy(np.stack(sizes)),
        names=tuple(name for name, *_ in _OBJECTS),
        velocities=torch.tensor(velocities, dtype=torch.float64),
        instance_tokens=tuple(f"street-{seed}-{i:02d}" for i in range(count)),
    )
    grid = OccupancyGrid(canvas.labels, canvas.spec, canvas.taxonomy, grid2ego=torch.from_numpy(LIDAR2EGO))
    return Street(grid, nominal_rig(), boxes)
