"""A semantic occupancy grid from one lidar sweep and the boxes of its key frame.

A stand-in where no label file exists: what the sweep saw, made dense enough to condition on. The rules, in order:

1. Returns from the ego car's own body are dropped (`EGO_BODY`).
2. **Boxes** with at least one return fill their inside with their class; so do the returns within 0.1 m of a box.
3. **Ground** (`ground`): road, sidewalk or terrain, one voxel thick, at the ground's height.
4. **The rest** is vegetation where a point's neighbourhood scatters in all directions, manmade where it is a surface
   or a line (poles); the vote of the neighbours decides.
5. **Between scan lines**: neighbouring returns of the same direction and class at nearly the same range belong to one
   surface, and the voxels between them take its class.

Voxels of boxes win over the rest and the ground over both. What was never seen stays free.
Legend: P points, N boxes, X Y Z voxels.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.grids import SYNTHEOCC, GridSpec, OccupancyGrid
from syntheocc.occupancy.ground import NOTHING, GroundMap, GroundRules, map_ground
from syntheocc.occupancy.taxonomy import Taxonomy
from syntheocc.occupancy.transforms import invert_rigid, rigid_transform, transform_points

__all__ = ["EGO_BODY", "BuildingRules", "ReturnClasses", "build_occupancy", "classify_returns", "is_ego_body"]

# The nuScenes car (and its roof rack) in ego, metres, with a hand's breadth around it: the origin is the rear axle.
EGO_BODY = ((-1.1, -1.1, -0.5), (3.4, 1.1, 2.4))
MAX_RINGS = 1024
_STANDING = ("driveable_surface", "sidewalk", "terrain", "manmade", "vegetation")
VEHICLES = ("car", "truck", "bus", "trailer", "construction_vehicle", "motorcycle")


@dataclass(frozen=True, kw_only=True)
class BuildingRules:
    """Thresholds of the rules.

    Args:
        box_margin: metres around a box within which returns belong to it.
        min_points: returns a box needs to be drawn (boxes whose count is unknown are counted here).
        neighbors: points that a neighbourhood holds.
        scatter: share of the smallest eigenvalue in a neighbourhood's covariance above which it is vegetation.
        same_surface: neighbouring returns at ranges that differ by less than this share (plus 0.3 m) are one surface.
        max_gap: the longest gap between neighbouring returns that is closed, metres.
        ground: the ground's own rules.
    """

    box_margin: float = 0.1
    min_points: int = 1
    neighbors: int = 16
    scatter: float = 0.03
    same_surface: float = 0.04
    max_gap: float = 2.0
    ground: GroundRules = field(default_factory=GroundRules)


def build_occupancy(
    points_lidar: Any,
    boxes: Boxes | None,
    lidar2ego: Any,
    spec: GridSpec = SYNTHEOCC.spec,
    taxonomy: Taxonomy = SYNTHEOCC.taxonomy,
    rules: BuildingRules = BuildingRules(),  # noqa: B008 (frozen)
) -> OccupancyGrid:
    """Build the grid of one key frame.

    Args:
        points_lidar: [P, 3..5] metres in the lidar frame; column 3 is the intensity (0..255), without which no
            ground is terrain, column 4 the ring (scan line), without which rule 5 is left out.
        boxes: the frame's boxes in ego, or None for none.
        lidar2ego: [4, 4].
        spec: a grid in the "lidar" or "ego" frame.
        taxonomy: must know driveable_surface, sidewalk, terrain, manmade and vegetation. Boxes whose name it lacks are
            left out, and what is inside them is treated like the rest.
        rules: thresholds.

    Returns:
        An `OccupancyGrid`, in the lidar frame with `grid2ego = lidar2ego`.

    Raises:
        ValueError: points of another shape or that are not finite, rings that are none, a grid in another frame, a
            class that is missing.
    """
    points = np.asarray(points_lidar.numpy() if isinstance(points_lidar, torch.Tensor) else points_lidar)
    if points.dtype.kind not in "fiu" or points.ndim != 2 or points.shape[1] < 3 or not np.isfinite(points).all():
        raise ValueError(f"a sweep is finite numbers [P, 3..5], got {points.dtype} {list(points.shape)}")
    if points.shape[1] >= 5 and not ((points[:, 4] >= 0) & (points[:, 4] < MAX_RINGS)).all():
        low, high = points[:, 4].min(), points[:, 4].max()
        raise ValueError(
            f"column 4 of a sweep is the ring, 0..{MAX_RINGS - 1}, got {low:g}..{high:g}; leave it out where the "
            "sensor has none"
        )
    if spec.frame not in ("lidar", "ego"):
        raise ValueError(f"occupancy is built in the lidar's or the ego frame, not in {spec.frame!r}")
    road, sidewalk, terrain, _, _ = (taxonomy.id_of(name) for name in _STANDING)
    lidar2ego = rigid_transform(lidar2ego, "lidar2ego")
    grid2ego = lidar2ego if spec.frame == "lidar" else torch.eye(4, dtype=torch.float64)
    ego2grid = invert_rigid(grid2ego)

    in_ego = transform_points(lidar2ego, torch.from_numpy(points[:, :3].astype(np.float64)))
    on_body = is_ego_body(in_ego)
    in_ego, points = in_ego[~on_body], points[~on_body.numpy()]
    in_grid = transform_points(ego2grid, in_ego).numpy()
    sensor = transform_points(ego2grid, lidar2ego[None, :3, 3]).numpy()[0]

    intensity = points[:, 3] if points.shape[1] >= 4 else None
    boxes = None if boxes is None else boxes.filter(lambda name: name in taxonomy.classes)
    ruled = classify_returns(
        in_ego, boxes, sensor, ego2grid, spec.lower[:2], spec.upper[:2], taxonomy, intensity, rules
    )
    boxes, owner, label, ground = ruled.boxes, ruled.owner, ruled.label, ruled.ground
    class_of_kind = np.full(256, taxonomy.free, dtype=np.uint8)
    class_of_kind[:3] = road, sidewalk, terrain

    labels = torch.full(spec.shape, taxonomy.free, dtype=torch.uint8)
    placed = label != taxonomy.free
    if points.shape[1] >= 5:
        between, classes = _between_lines(in_grid[placed], label[placed], points[placed, 4], sensor, spec, rules)
        _put(labels, spec, between, classes)
    order = np.argsort(owner[placed] >= 0, kind="stable")  # boxes last: they win
    _put(labels, spec, in_grid[placed][order], label[placed][order])
    if boxes is not None and len(boxes):
        _fill_boxes(labels, spec, boxes, ego2grid, taxonomy)
    _lay_ground(labels, spec, ground, class_of_kind)
    return OccupancyGrid(labels, spec, taxonomy, grid2ego)


@dataclass(frozen=True, eq=False)
class ReturnClasses:
    """What the rules say of a sweep's returns.

    Args:
        label: uint8 [P]; free for the ground, and for returns from below it (reflections).
        owner: int64 [P], the box that holds a return, -1 none.
        boxes: the boxes that have enough returns.
        ground: the ground, in the frame that was asked for.
    """

    label: np.ndarray
    owner: np.ndarray
    boxes: Boxes | None
    ground: GroundMap


def is_ego_body(in_ego: torch.Tensor) -> torch.Tensor:
    """Which points [P, 3] (ego, metres) are returns from the own car's body; bool [P]."""
    return ((in_ego >= torch.tensor(EGO_BODY[0])) & (in_ego <= torch.tensor(EGO_BODY[1]))).all(-1)


def classify_returns(
    in_ego: torch.Tensor,
    boxes: Boxes | None,
    sensor: np.ndarray,
    ego2grid: torch.Tensor,
    lower: tuple[float, float],
    upper: tuple[float, float],
    taxonomy: Taxonomy,
    intensity: np.ndarray | None = None,
    rules: BuildingRules = BuildingRules(),  # noqa: B008 (frozen)
) -> ReturnClasses:
    """The classes of one sweep's returns by rules 2 to 4.

    Args:
        in_ego: float64 [P, 3] metres, without the own car's body.
        boxes: in ego, of classes that the taxonomy knows; or None.
        sensor: [3], the lidar's position in the frame of the map.
        ego2grid: [4, 4] to the frame of the map, whose z is up to within a few degrees.
        lower: x and y of the map's corner in that frame.
        upper: the other corner.
        taxonomy: what labels mean.
        intensity: [P], 0..255.
        rules: thresholds.
    """
    in_grid = transform_points(ego2grid, in_ego).numpy()
    owner = np.full(len(in_grid), -1)
    if boxes is not None and len(boxes):
        inside = boxes.contains(in_ego, rules.box_margin)
        boxes, inside = boxes.filter(inside.sum(1) >= rules.min_points), inside[inside.sum(1) >= rules.min_points]
        for i, mask in enumerate(inside.numpy()):
            owner[mask] = i

    # The car stands on ego z = 0; here that plane as heights over the grid's x and y.
    normal, foot = ego2grid[:3, 2].numpy(), ego2grid[:3, 3].numpy()
    plane = np.array([-normal[0] / normal[2], -normal[1] / normal[2], normal @ foot / normal[2]])
    seeds = _road_seeds(boxes, ego2grid)
    ground = map_ground(in_grid, owner < 0, plane, sensor, lower, upper, seeds, intensity, rules.ground)

    manmade, vegetation = taxonomy.id_of("manmade"), taxonomy.id_of("vegetation")
    label = np.full(len(in_grid), taxonomy.free, dtype=np.uint8)
    rest = (owner < 0) & ~ground.is_ground & (ground.above(in_grid) > 0)
    label[rest] = np.where(_scatter(in_grid[rest], rules.neighbors) > rules.scatter, vegetation, manmade)
    if boxes is not None and len(boxes):
        label[owner >= 0] = np.array([taxonomy.id_of(name) for name in boxes.names], dtype=np.uint8)[owner[owner >= 0]]
    return ReturnClasses(label, owner, boxes, ground)


def _road_seeds(boxes: Boxes | None, ego2grid: torch.Tensor) -> np.ndarray:
    """Positions [K, 2] on the road: under the ego car, and under the vehicles that stand on their wheels."""
    body = torch.cartesian_prod(
        torch.arange(EGO_BODY[0][0], EGO_BODY[1][0], 0.4), torch.arange(EGO_BODY[0][1], EGO_BODY[1][1], 0.4)
    ).double()
    places = [torch.cat([body, torch.zeros(len(body), 1, dtype=torch.float64)], 1)]
    if boxes is not None:
        places.append(boxes.filter(lambda name: name in VEHICLES).centers)
    return transform_points(ego2grid, torch.cat(places)).numpy()[:, :2]


def _scatter(points: np.ndarray, neighbors: int) -> np.ndarray:
    """How much of a neighbourhood's variance lies across its own surface: [P], 0 flat or straight, 1/3 a ball.

    The smallest eigenvalue's share of the covariance's trace (Pauly et al. 2002, "surface variation"), averaged over
    the neighbours.
    """
    from scipy.spatial import cKDTree

    if len(points) <= neighbors:
        return np.zeros(len(points))
    _, index = cKDTree(points).query(points, k=neighbors)
    around = points[index]
    around = around - around.mean(1, keepdims=True)
    values = np.linalg.eigvalsh(np.einsum("pki,pkj->pij", around, around))
    variation = values[:, 0] / np.maximum(values.sum(1), 1e-12)
    return variation[index].mean(1)


def _between_lines(
    points: np.ndarray, label: np.ndarray, ring: np.ndarray, sensor: np.ndarray, spec: GridSpec, rules: BuildingRules
) -> tuple[np.ndarray, np.ndarray]:
    """Points [M, 3] on the straight lines between returns of neighbouring rings, and their classes [M]."""
    offset = points - sensor
    distance = np.linalg.norm(offset, axis=1)
    # 0.36 degrees: a little more than a 20 Hz sweep's own spacing, so that columns have few holes.
    column = ((np.arctan2(offset[:, 1], offset[:, 0]) / (2 * np.pi) + 0.5) * 1000).astype(int) % 1000
    ring = ring.astype(int)
    image = np.full((ring.max(initial=0) + 2, 1000), -1)
    # Where two returns share a cell the nearer one is kept (written last).
    far_first = np.argsort(-distance, kind="stable")
    image[ring[far_first], column[far_first]] = far_first
    below, above = image[:-1].ravel(), image[1:].ravel()
    pair = (below >= 0) & (above >= 0)
    below, above = below[pair], above[pair]
    gap = np.linalg.norm(points[below] - points[above], axis=1)
    near = np.minimum(distance[below], distance[above])
    same = (label[below] == label[above]) & (gap < rules.max_gap)
    same &= np.abs(distance[below] - distance[above]) < 0.3 + rules.same_surface * near
    below, above, gap = below[same], above[same], gap[same]
    steps = np.ceil(gap / (0.7 * min(spec.voxel_size))).astype(int)
    which = np.repeat(np.arange(len(steps)), steps)
    first = np.repeat(np.cumsum(steps) - steps, steps)
    share = ((np.arange(len(which)) - first + 0.5) / steps[which])[:, None]
    return points[below[which]] * (1 - share) + points[above[which]] * share, label[below[which]]


def _put(labels: torch.Tensor, spec: GridSpec, points: np.ndarray, classes: np.ndarray) -> None:
    """Write the classes of points into their voxels; the later point wins."""
    index, inside = spec.index_of(torch.from_numpy(points))
    kept = index[inside].numpy()
    labels.numpy()[tuple(kept.T)] = classes[inside.numpy()]


def _fill_boxes(
    labels: torch.Tensor, spec: GridSpec, boxes: Boxes, ego2grid: torch.Tensor, taxonomy: Taxonomy
) -> None:
    """Give every voxel whose centre lies in a box (plus a quarter voxel, so that thin boxes show) the box's class."""
    margin = 0.25 * min(spec.voxel_size)
    lower, size = torch.tensor([spec.lower, spec.voxel_size], dtype=torch.float64)
    for name, box2ego, box_size, corners in zip(boxes.names, boxes.box2ego, boxes.sizes, boxes.corners(), strict=True):
        box2grid = ego2grid @ box2ego
        corners = (transform_points(ego2grid, corners) - lower) / size
        first = corners.amin(0).floor().long().clamp_min(0)
        last = torch.minimum(corners.amax(0).floor().long(), torch.tensor(spec.shape) - 1)
        if bool((last < first).any()):
            continue
        axes = [torch.arange(int(a), int(b) + 1) for a, b in zip(first, last, strict=True)]
        index = torch.cartesian_prod(*axes)
        local = transform_points(invert_rigid(box2grid), lower + (index + 0.5) * size)
        index = index[(local.abs() <= box_size / 2 + margin).all(-1)]
        labels[index[:, 0], index[:, 1], index[:, 2]] = taxonomy.id_of(name)


def _lay_ground(labels: torch.Tensor, spec: GridSpec, ground: GroundMap, class_of_kind: np.ndarray) -> None:
    """Put the ground's class into the voxel at its height, in every column of the grid that has ground."""
    columns = spec.centers()[:, :, 0, :2].numpy()
    i, j = ground.cells_of(columns)
    kind, height = ground.kind[i, j], ground.height[i, j]
    level = np.floor((np.nan_to_num(height) - spec.lower[2]) / spec.voxel_size[2]).astype(int)
    x, y = np.nonzero((kind != NOTHING) & (level >= 0) & (level < spec.shape[2]))
    labels.numpy()[x, y, level[x, y]] = class_of_kind[kind[x, y]]
