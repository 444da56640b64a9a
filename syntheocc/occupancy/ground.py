"""Ground from one lidar sweep: its height everywhere, and which of it is road, sidewalk or terrain.

Works in a frame whose z is up to within a few degrees (ego, or the lidar's own); heights are metres along that z.
Legend: P points, X Y cells of the map.

The rules, which only a map or a learned model could replace:

* **Height.** Lowest return of each 1 m cell, kept where it agrees with a smooth surface that starts as the plane the
  car stands on and is fitted again four times. Ground points lie within `tolerance` of that surface.
* **Map.** Mean height of the ground points in cells of 0.4 m. A cell without points takes after the nearest cell that
  has some, when that one is no farther than about half the spacing between neighbouring scan lines at that range (at
  most `reach` metres), and when some ground was seen farther out in its direction: shadows behind cars are filled, the
  ground behind a wall is not made up.
* **Road** is what is connected to the cells under the ego car and under vehicles without crossing a curb (a step of
  more than `curb` metres between neighbouring cells) through passages at least three cells wide; and dark ground
  elsewhere that is no higher than that road (the other carriageway, the road beyond a gap), because a sidewalk lies a
  curb above it.
* The rest of the ground is **terrain** where it reflects much (plants return about half of the near infrared, asphalt
  and concrete a tenth), else **sidewalk**. Without intensities nothing is terrain.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["GroundMap", "GroundRules", "map_ground"]

ROAD, SIDEWALK, TERRAIN, NOTHING = 0, 1, 2, 255


@dataclass(frozen=True, kw_only=True)
class GroundRules:
    """Thresholds of the rules; metres where nothing else is said.

    Args:
        tolerance: how far above or below the surface a return still is ground.
        cell: edge of a map cell.
        reach: the farthest that ground is continued into unseen cells.
        blind_radius: around the sensor, within which no scan line meets the ground and the map is closed.
        curb: a step between neighbouring cells that ends the road.
        bright: intensity (nuScenes' 0..255) above which ground is terrain, not pavement.
        line_spacing: angle between neighbouring scan lines, radians (HDL-32E: 1.33 degrees).
    """

    tolerance: float = 0.25
    cell: float = 0.4
    reach: float = 6.0
    blind_radius: float = 4.5
    curb: float = 0.08
    bright: float = 20.0
    line_spacing: float = 0.0232


@dataclass(frozen=True, eq=False)
class GroundMap:
    """What is known of the ground.

    Args:
        is_ground: bool [P], which points lie on it.
        lower: x and y of the map's corner, metres.
        cell: edge of a cell, metres.
        height: float64 [X, Y], z of the ground, NaN where there is none.
        kind: uint8 [X, Y]: 0 road, 1 sidewalk, 2 terrain, 255 none.
        surface: float64 [X, Y], the smooth surface, known everywhere.
    """

    is_ground: np.ndarray
    lower: tuple[float, float]
    cell: float
    height: np.ndarray
    kind: np.ndarray
    surface: np.ndarray

    def above(self, points: np.ndarray) -> np.ndarray:
        """Height of points [P, 3] over the smooth surface, metres [P]."""
        return points[:, 2] - _bilinear(self.surface, points[:, :2], self.lower, self.cell)

    def cells_of(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map indices of positions [..., 2], clipped to the map."""
        index = np.floor((xy - np.array(self.lower)) / self.cell).astype(int)
        limit = np.array(self.height.shape) - 1
        index = np.clip(index, 0, limit)
        return index[..., 0], index[..., 1]


def map_ground(
    points: np.ndarray,
    candidates: np.ndarray,
    plane: np.ndarray,
    sensor: np.ndarray,
    lower: tuple[float, float],
    upper: tuple[float, float],
    road_seeds: np.ndarray,
    intensity: np.ndarray | None = None,
    rules: GroundRules = GroundRules(),  # noqa: B008 (frozen)
) -> GroundMap:
    """Find the ground of a sweep.

    Args:
        points: float [P, 3] metres.
        candidates: bool [P], points that may be ground (not inside boxes, not on the ego car).
        plane: (a, b, c): the car stands on z = a*x + b*y + c.
        sensor: the lidar's position [3].
        lower: the map's lower x and y.
        upper: the map's upper x and y.
        road_seeds: [K, 2] positions that lie on the road (under the ego car, under vehicles).
        intensity: float [P], 0..255, None unknown.
        rules: thresholds.

    Returns:
        A `GroundMap`. With no candidates the ground is the plane around the car.
    """
    from scipy import ndimage

    low = np.asarray(lower, dtype=np.float64)
    shape = np.ceil((np.asarray(upper) - low) / rules.cell - 1e-9).astype(int)
    xy = low + (np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"), -1) + 0.5) * rules.cell
    inside = ((points[:, :2] >= low) & (points[:, :2] < np.asarray(upper))).all(1) & candidates
    surface = _smooth_surface(points[inside], plane, low, shape, rules, xy)

    height_over = points[:, 2] - _bilinear(surface, points[:, :2], lower, rules.cell)
    is_ground = inside & (np.abs(height_over) < rules.tolerance)
    ground = points[is_ground]
    flat = _flat_cells(ground, low, shape, rules.cell)
    count = np.bincount(flat, minlength=shape.prod()).reshape(shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        height = np.bincount(flat, ground[:, 2], shape.prod()).reshape(shape) / count
    seen = count > 0
    known, nearest = _reachable(seen, xy, sensor, plane, rules)

    height = np.where(seen, height, xy @ plane[:2] + plane[2])[nearest]

    # The step a cell makes, without the slope of the land around it.
    relief = height - surface
    top = ndimage.maximum_filter(np.where(known, relief, -np.inf), 3)
    bottom = ndimage.minimum_filter(np.where(known, relief, np.inf), 3)
    road = _connected(known & (top - bottom < rules.curb), road_seeds, low, rules.cell)

    brightness = np.zeros(shape)
    if intensity is not None:
        total = np.bincount(flat, np.minimum(intensity[is_ground], 4 * rules.bright), shape.prod()).reshape(shape)
        weight = ndimage.gaussian_filter(count.astype(float), 1.0)
        brightness = (ndimage.gaussian_filter(total, 1.0) / np.maximum(weight, 1e-9))[nearest]
    base = xy @ plane[:2] + plane[2]
    # Farther out fewer points hold the heights; from 33 m on this is a curb's height and no sidewalk is told apart.
    distance = np.hypot(xy[..., 0] - sensor[0], xy[..., 1] - sensor[1])
    slack = 0.5 * rules.curb + 1e-4 * distance**2
    for _ in range(3):
        weight = ndimage.gaussian_filter(road.astype(float), 10.0 / rules.cell) + 1e-9
        road_level = base + ndimage.gaussian_filter(np.where(road, height - base, 0.0), 10.0 / rules.cell) / weight
        lower_or_equal = known & (brightness < rules.bright) & (height - road_level < slack)
        road |= ndimage.binary_opening(lower_or_equal, np.ones((3, 3)))
    road = ndimage.binary_closing(road, np.ones((3, 3))) & known

    kind = np.where(road, ROAD, np.where(brightness > rules.bright, TERRAIN, SIDEWALK))
    kind = np.where(known, kind, NOTHING).astype(np.uint8)
    height = np.where(known, height, np.nan)
    return GroundMap(is_ground, (float(low[0]), float(low[1])), rules.cell, height, kind, surface)


def _connected(passable: np.ndarray, seeds: np.ndarray, low: np.ndarray, cell: float) -> np.ndarray:
    """The cells [X, Y] that seeds [K, 2] reach over passable ground at least three cells wide."""
    from scipy import ndimage

    regions, _ = ndimage.label(ndimage.binary_opening(passable, np.ones((3, 3))))
    index = ((seeds - low) / cell).astype(int)
    index = index[((index >= 0) & (index < regions.shape)).all(1)]
    ids = np.unique(regions[tuple(index.T)])
    return np.isin(regions, ids[ids > 0])


def _smooth_surface(
    points: np.ndarray, plane: np.ndarray, low: np.ndarray, shape: np.ndarray, rules: GroundRules, xy: np.ndarray
) -> np.ndarray:
    """The smooth surface [X, Y] through the lowest returns, fitted from the car's plane outward."""
    from scipy import ndimage

    expected = xy @ plane[:2] + plane[2]
    origin_range = np.hypot(points[:, 0], points[:, 1])
    # Reflections come back from below the ground; a street rises or falls by at most some six percent.
    points = points[points[:, 2] > points[:, :2] @ plane[:2] + plane[2] - 0.4 - 0.06 * origin_range]
    factor = max(1, round(1.0 / rules.cell))
    coarse = -(-shape // factor)
    edge = factor * rules.cell
    flat = _flat_cells(points, low, coarse, edge)
    lowest = np.full(coarse.prod(), np.inf)
    np.minimum.at(lowest, flat, points[:, 2])
    lowest = lowest.reshape(coarse)
    centre = low + (np.stack(np.meshgrid(np.arange(coarse[0]), np.arange(coarse[1]), indexing="ij"), -1) + 0.5) * edge
    base = centre @ plane[:2] + plane[2]
    surface = base.copy()
    tolerance = 0.3 + 0.02 * np.hypot(centre[..., 0], centre[..., 1])
    for _ in range(4):
        accepted = np.isfinite(lowest) & (np.abs(lowest - surface) < tolerance)
        rest = np.where(accepted, lowest - base, 0.0)
        # Wide blurs reach where narrow ones have no evidence; a trace of the plane keeps the far corners finite.
        total, weight = np.zeros(coarse), np.full(coarse, 1e-6)
        for sigma, trust in ((2.0, 1.0), (6.0, 1e-2), (20.0, 1e-4)):
            total += trust * ndimage.gaussian_filter(rest, sigma / edge)
            weight += trust * ndimage.gaussian_filter(accepted.astype(float), sigma / edge)
        surface = base + total / weight
        tolerance = np.full(coarse, rules.tolerance)
    departure = _bilinear(surface - base, xy.reshape(-1, 2), (low[0], low[1]), edge)
    return expected + departure.reshape(shape)


def _reachable(
    seen: np.ndarray, xy: np.ndarray, sensor: np.ndarray, plane: np.ndarray, rules: GroundRules
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Which cells [X, Y] count as ground once gaps and shadows are closed, and the seen cell that each takes after."""
    from scipy import ndimage

    offset = xy - sensor[:2]
    distance = np.hypot(offset[..., 0], offset[..., 1])
    blind = distance < rules.blind_radius
    if not seen.any():
        own = np.indices(seen.shape)
        return blind, (np.asarray(own[0]), np.asarray(own[1]))
    gap, nearest = ndimage.distance_transform_edt(~seen, return_indices=True)
    above = max(float(sensor[2] - (sensor[:2] @ plane[:2] + plane[2])), 0.5)
    # Lines that differ by an angle a meet flat ground r*r*a/h apart.
    allowed = np.clip(1.5 * rules.cell + 0.6 * distance**2 * rules.line_spacing / above, 0.0, rules.reach)
    sector = ((np.arctan2(offset[..., 1], offset[..., 0]) / (2 * np.pi) + 0.5) * 360).astype(int) % 360
    farthest = np.zeros(360)
    np.maximum.at(farthest, sector[seen], distance[seen])
    farthest = ndimage.maximum_filter1d(farthest, 3, mode="wrap")
    allowed[distance < 1.5 * rules.blind_radius] = rules.reach
    known = seen | blind | ((gap * rules.cell <= allowed) & (distance <= farthest[sector]))
    return known, (nearest[0], nearest[1])


def _flat_cells(points: np.ndarray, low: np.ndarray, shape: np.ndarray, cell: float) -> np.ndarray:
    index = np.clip(((points[:, :2] - low) / cell).astype(int), 0, shape - 1)
    return index[:, 0] * shape[1] + index[:, 1]


def _bilinear(values: np.ndarray, xy: np.ndarray, lower: tuple[float, float], cell: float) -> np.ndarray:
    """Values [X, Y] of cell centres at positions [P, 2]; constant beyond the border."""
    from scipy import ndimage

    return ndimage.map_coordinates(values, ((xy - np.asarray(lower)) / cell - 0.5).T, order=1, mode="nearest")
