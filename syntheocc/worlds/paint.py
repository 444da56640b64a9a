"""The ground's raster: road, lane paint, sidewalk, islands, lots; and the surface under it.

Cells are worked on in tiles near the roads only; everything else is terrain and lots. Legend: M tiles, R roads.
"""

import numpy as np
import torch

from syntheocc.worlds.ground import MAX_SLOPE, Ground
from syntheocc.worlds.layout import Plan, Road, edge_distances, rounded_edge
from syntheocc.worlds.lots import Lot
from syntheocc.worlds.palette import Palette
from syntheocc.worlds.taxonomy import WORLD_TAXONOMY

__all__ = ["CELL", "hills", "paint_ground"]

CELL = 0.1  # metres
_TILE = 64  # cells along the edge of a tile
ROAD, FLAT, SIDEWALK, TERRAIN = (
    WORLD_TAXONOMY.id_of(name) for name in ("driveable_surface", "other_flat", "sidewalk", "terrain")
)


def hills(random: np.random.Generator) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Base height, ramp and waves of a `Ground` whose slope stays below MAX_SLOPE."""
    slopes = np.array(
        [random.uniform(0, 0.5), random.uniform(0, 0.6), random.uniform(0, 0.3), random.uniform(0, 0.12)]
    )
    slopes *= MAX_SLOPE * random.uniform(0.35, 0.98) / slopes.sum()
    heading = random.uniform(0, 2 * np.pi, 4)
    lengths = np.array([random.uniform(250, 500), random.uniform(110, 220), random.uniform(45, 80)])
    number = 2 * np.pi / lengths
    waves = np.stack(
        [slopes[1:] / number, number * np.cos(heading[1:]), number * np.sin(heading[1:]), random.uniform(0, 6.28, 3)],
        -1,
    )
    ramp = slopes[0] * np.array([np.cos(heading[0]), np.sin(heading[0])])
    return float(random.uniform(-3, 12)), torch.from_numpy(ramp), torch.from_numpy(waves)


def _paint_lanes(road: Road, s: np.ndarray, d: np.ndarray, line: np.ndarray, dashed_middle: bool) -> None:
    """Mark in `line` (bool, in place) where a road's lines are, away from crossings."""
    side = np.abs(d)
    dash = np.mod(s, 9.0) < 3.0
    for i in range(1, road.lanes_per_side):
        line |= (np.abs(side - road.median - i * road.lane_width) < 0.07) & dash
    if road.median:
        line |= np.abs(side - road.median - 0.2) < 0.07
    elif dashed_middle:
        line |= (side < 0.07) & dash
    else:
        line |= np.abs(side - 0.14) < 0.06
    if road.parking:
        line |= (np.abs(side - road.carriageway) < 0.06) & (np.mod(s, 2.0) < 1.0)
        line |= (np.mod(s, 6.0) < 0.12) & (side > road.carriageway)
    else:
        line |= np.abs(side - road.carriageway + 0.25) < 0.07


def paint_ground(plan: Plan, lots: list[Lot], paint: Palette, random: np.random.Generator) -> Ground:
    """The ground of a plan.

    Args:
        plan: roads and area.
        lots: what lies beside them.
        paint: the scene's materials.
        random: draws hills, materials and repairs.
    """
    tiles = np.ceil((plan.upper - plan.lower) / (CELL * _TILE)).astype(int)
    # Behind the lots lie meadows or paved yards.
    label, use = (ROAD, "patch") if plan.paved else (TERRAIN, "terrain")
    labels = np.full((tiles[0] * _TILE, tiles[1] * _TILE), label, dtype=np.uint8)
    materials = np.full(labels.shape, paint.pick(use, random), dtype=np.uint8)
    for lot in lots:
        _paint_lot(plan, lot, labels, materials, paint, random)
    # Which tiles come near a road.
    edge = CELL * _TILE
    first = np.stack(np.meshgrid(np.arange(tiles[0]), np.arange(tiles[1]), indexing="ij"), -1).reshape(-1, 2)
    middle = plan.lower + (first + 0.5) * edge
    near = edge_distances(plan, middle[:, 0], middle[:, 1])[2].min(0)
    widest = max(road.sidewalk + road.verge for road in plan.roads) + plan.corner_radius
    first = first[near < widest + 0.75 * edge]
    choice = _Choice(plan, paint)
    for part in np.array_split(first, max(1, len(first) // 128)):
        cell = np.arange(_TILE, dtype=np.float32) * CELL + CELL / 2
        x = (plan.lower[0] + part[:, 0] * edge).astype(np.float32)[:, None, None] + cell[:, None] + 0 * cell
        y = (plan.lower[1] + part[:, 1] * edge).astype(np.float32)[:, None, None] + cell[None, :] + 0 * cell[:, None]
        _paint_tiles(plan, x, y, part * _TILE, labels, materials, choice)
    base, ramp, waves = hills(random)
    origin = (float(plan.lower[0]), float(plan.lower[1]))
    return Ground(torch.from_numpy(labels), torch.from_numpy(materials), origin, base, ramp, waves, CELL)


class _Choice:
    """Which materials the roads of one scene have; drawn once."""

    def __init__(self, plan: Plan, paint: Palette):
        random = np.random.default_rng(plan.style * 7919 + len(paint.materials))
        self.road = [paint.pick("road", random) for _ in plan.roads]
        self.sidewalk = [paint.pick("sidewalk", random) for _ in plan.roads]
        self.verge = [paint.pick("terrain" if random.random() < 0.7 else "sidewalk", random) for _ in plan.roads]
        self.island, self.curb = paint.pick("other_flat", random), paint.pick("curb", random)
        self.line, self.hole = paint.pick("lane_paint", random), paint.pick("metal", random)
        self.zebra = random.random() < 0.8
        self.dashed = random.random() < 0.6
        self.bike_lane = paint.pick("other_flat", random) if random.random() < 0.3 else None
        spans = [road.span for road in plan.roads]
        # Repairs: road, s0, s1, d0, d1, material; some reach over the sidewalk.
        self.repairs = []
        for _ in range(40):
            i = int(random.integers(len(spans)))
            s, d = random.uniform(*spans[i]), random.uniform(-1.1, 1.1) * plan.roads[i].half_width
            long, wide = (random.uniform(4, 25), 0.7) if random.random() < 0.5 else random.uniform(0.8, 3.5, 2)
            self.repairs.append((i, s, s + long, d, d + wide, paint.pick("patch", random)))
        self.holes = [
            (i, random.uniform(*spans[i]), random.uniform(-3, 3)) for i in range(len(spans)) for _ in range(8)
        ]


def _paint_tiles(plan, x, y, corner, labels, materials, choice: _Choice) -> None:
    """Paint tiles x, y [M, 64, 64] whose first cells are `corner` [M, 2] into the rasters."""
    s, d, edges = edge_distances(plan, x, y)
    curb = rounded_edge(edges, plan.corner_radius)
    nearest = edges.argmin(0)
    label = np.zeros(x.shape, np.uint8)
    material = np.zeros(x.shape, np.uint8)
    widths = np.array([road.sidewalk for road in plan.roads])[nearest]
    verges = np.array([road.verge for road in plan.roads])[nearest]
    on_road, on_walk = curb < 0, (curb >= 0) & (curb < widths)
    on_verge = (curb >= widths) & (curb < widths + verges)
    label[on_road], label[on_walk], label[on_verge] = ROAD, SIDEWALK, TERRAIN
    for table, where in ((choice.road, on_road), (choice.sidewalk, on_walk), (choice.verge, on_verge)):
        material[where] = np.array(table, dtype=np.uint8)[nearest[where]]
    # A verge that is paved belongs to the sidewalk.
    paved = np.array([m == choice.sidewalk[i] for i, m in enumerate(choice.verge)])
    label[on_verge & paved[nearest]] = SIDEWALK
    # Repairs and holes are small: each is looked for in the few tiles that reach it.
    low, high = (np.stack([extreme(v, (-2, -1)) for v in (s, d)]) for extreme in (np.min, np.max))  # [2, R, M]
    for i, s0, s1, d0, d1, patch in choice.repairs:
        t = _reached(low[:, i], high[:, i], (s0, d0), (s1, d1))
        st, dt = s[i, t], d[i, t]
        inside = (st > s0) & (st < s1) & (dt > d0) & (dt < d1) & (on_road[t] | on_walk[t]) & (nearest[t] == i)
        material[t] = np.where(inside, np.uint8(patch), material[t])
    material[on_walk & (curb < 0.18)] = choice.curb
    line = np.zeros(x.shape, bool)
    for i, road in enumerate(plan.roads):
        others = np.delete(edges, i, 0)
        clear = others.min(0) if len(others) else np.full(x.shape, 1e3, np.float32)
        here = (edges[i] < 0) & (clear > plan.corner_radius + 4.0)
        if not here.any() and not (edges[i] < 0).any():
            continue
        if choice.bike_lane is not None and not road.parking:
            strip = here & (np.abs(d[i]) > road.carriageway - 1.3) & (np.abs(d[i]) < road.carriageway - 0.3)
            material[strip] = choice.bike_lane
        marks = np.zeros(x.shape, bool)
        _paint_lanes(road, s[i], d[i], marks, choice.dashed)
        line |= marks & here
        if road.median:
            island = here & (np.abs(d[i]) < road.median)
            label[island], material[island] = FLAT, choice.island
            material[island & (np.abs(d[i]) > road.median - 0.18)] = choice.curb
        if len(others):
            r = plan.corner_radius
            across = (edges[i] < -0.2) & (np.abs(clear - r - 1.7) < 1.5)
            if choice.zebra:
                line |= across & (np.mod(d[i], 1.0) < 0.5)
            else:
                line |= (edges[i] < 0) & (np.abs(np.abs(clear - r - 1.7) - 1.4) < 0.08)
            # Traffic keeps right: it comes towards a crossing on the side where s and d have opposite signs.
            crossing = [c for c in plan.crossings if i in (0, c.other)]
            coming = np.zeros(x.shape, bool)
            for c in crossing:
                at = c.s if i == 0 else c.other_s
                coming |= (np.abs(s[i] - at) < 45) & ((s[i] - at) * d[i] > 0)
            stop = coming & (edges[i] < -road.parking) & (np.abs(clear - r - 4.3) < 0.2) & (np.abs(d[i]) > road.median)
            line |= stop
    for i, s0, d0 in choice.holes:
        t = _reached(low[:, i], high[:, i], (s0 - 0.35, d0 - 0.35), (s0 + 0.35, d0 + 0.35))
        hole = on_road[t] & (np.hypot(s[i, t] - s0, d[i, t] - d0) < 0.34)
        material[t] = np.where(hole, np.uint8(choice.hole), material[t])
    material[line & on_road] = choice.line
    painted = curb < widths + verges
    rows = corner[:, 0, None, None] + np.arange(_TILE)[:, None]
    columns = corner[:, 1, None, None] + np.arange(_TILE)[None, :]
    rows, columns = np.broadcast_arrays(rows, columns)
    labels[rows[painted], columns[painted]] = label[painted]
    materials[rows[painted], columns[painted]] = material[painted]


def _reached(low: np.ndarray, high: np.ndarray, lower: tuple, upper: tuple) -> np.ndarray:
    """Indices of the tiles that may hold points between two corners; extremes of s and d of every tile [2, M]."""
    corners = np.array([lower, upper])[..., None]
    return np.flatnonzero(((high > corners[0]) & (low < corners[1])).all(0))


def _paint_lot(plan: Plan, lot: Lot, labels, materials, paint: Palette, random: np.random.Generator) -> None:
    """A lot's yard, and 0 (no ground) where its house stands: nobody sees the ground there."""
    use = {"parking": "road", "court": "road", "plaza": "other_flat"}.get(lot.kind, "terrain")
    if lot.kind in ("house", "tower"):
        use = str(random.choice(["sidewalk", "road", "terrain"], p=[0.25, 0.4, 0.35]))
    material = paint.pick(use, random)
    label = {"road": ROAD, "other_flat": FLAT, "sidewalk": SIDEWALK}.get(use, TERRAIN)
    _paint_rectangle(plan, lot, (0.0, 0.0), lot.size, label, material, labels, materials)
    if lot.kind == "parking":
        line = paint.pick("lane_paint", random)
        for x in np.arange(-lot.size[0] / 2 + 0.2, lot.size[0] / 2, 2.7):
            y = lot.size[1] / 2 - 2.6
            _paint_rectangle(plan, lot, (float(x), y), (0.12, 5.0), label, line, labels, materials)
        # The way in, over verge and sidewalk.
        deep = plan.roads[lot.road].verge
        _paint_rectangle(plan, lot, (0.0, -(lot.size[1] + deep) / 2), (6.0, deep), label, material, labels, materials)
    if lot.house is not None:
        # The walls stand half a cell further out than the hole.
        size = (lot.house[0] - 0.3, lot.house[1] - 0.3)
        _paint_rectangle(plan, lot, (0.0, lot.house_y), size, 0, material, labels, materials)


def _paint_rectangle(plan, lot: Lot, center, size, label: int, material: int, labels, materials) -> None:
    """Paint a rectangle given in a lot's local frame (middle and size, metres) into the rasters."""
    middle = np.array(lot.place(*center))
    reach = np.hypot(*size) / 2
    low = np.floor((middle - reach - plan.lower) / CELL).astype(int).clip(0, labels.shape)
    high = np.ceil((middle + reach - plan.lower) / CELL).astype(int).clip(0, labels.shape)
    if (low >= high).any():
        return
    x = plan.lower[0] + (np.arange(low[0], high[0]) + 0.5) * CELL - middle[0]
    y = plan.lower[1] + (np.arange(low[1], high[1]) + 0.5) * CELL - middle[1]
    cos, sin = np.cos(lot.yaw), np.sin(lot.yaw)
    u, v = x[:, None] * cos + y[None] * sin, y[None] * cos - x[:, None] * sin
    inside = (np.abs(u) <= size[0] / 2) & (np.abs(v) <= size[1] / 2)
    labels[low[0] : high[0], low[1] : high[1]][inside] = label
    materials[low[0] : high[0], low[1] : high[1]][inside] = material
