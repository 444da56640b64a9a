"""Lots along the roads: what lies behind the sidewalk, house by house."""

from dataclasses import dataclass

import numpy as np

from syntheocc.worlds.footprints import Footprints
from syntheocc.worlds.layout import Plan, edge_distances, rounded_edge

__all__ = ["Lot", "make_lots"]


@dataclass(frozen=True)
class Lot:
    """A rectangle at (x, y) whose local x runs along the street and whose local y leads away from it.

    Args:
        kind: "house", "tower", "park", "yard", "parking", "court" or "plaza".
        x, y, yaw: of its middle, metres and radians.
        size: along the street and away from it, metres.
        house: size of the building, None for none; its middle is `house_y` metres further from the street.
        road: index of the road that it lies at.
        row: 0 at the sidewalk, 1 and 2 behind that.
    """

    kind: str
    x: float
    y: float
    yaw: float
    size: tuple[float, float]
    house: tuple[float, float] | None
    house_y: float
    road: int
    row: int

    def place(self, x, y):
        """World x and y of points x, y [...] of the lot's local frame, metres."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return self.x + x * cos - y * sin, self.y + x * sin + y * cos


_FRONT = (("house", 0.55), ("park", 0.18), ("yard", 0.08), ("parking", 0.16), ("plaza", 0.03))
_BACK = (("tower", 0.46), ("park", 0.22), ("court", 0.32))


def _pick(random: np.random.Generator, table: tuple[tuple[str, float], ...]) -> str:
    names, weights = zip(*table, strict=True)
    return str(random.choice(names, p=np.array(weights) / sum(weights)))


def make_lots(plan: Plan, random: np.random.Generator) -> list[Lot]:
    """Lots along every road, three rows deep, none on a sidewalk or on another lot."""
    taken = Footprints(np.zeros(1))
    lots: list[Lot] = []
    for row in range(3):
        for index, road in enumerate(plan.roads):
            for side in (1, -1):
                s = road.span[0] + random.uniform(0, 8)
                while s < road.span[1]:
                    lot = _draw(plan, index, side, row, s, random)
                    fits = _inside(plan, lot) and _off_roads(plan, lot)
                    if fits and taken.claim(np.array([lot.x, lot.y, lot.yaw]), (lot.size[0] / 2, lot.size[1] / 2)):
                        lots.append(lot)
                        s += lot.size[0] + random.uniform(0.4, 4.0)
                    else:
                        s += 5.0
    return lots


def _draw(plan: Plan, index: int, side: int, row: int, s: float, random: np.random.Generator) -> Lot:
    """A lot that begins at s of a road, on its left (side +1) or right."""
    road = plan.roads[index]
    length = random.uniform(11, 24) if row == 0 else random.uniform(14, 30)
    depth = random.uniform(11, 17) if row == 0 else random.uniform(13, 22)
    near = road.half_width + road.sidewalk
    middle = near + depth / 2 + (road.verge if row == 0 else random.uniform(16, 20) + 22.0 * (row - 1))
    yaw = float(road.path.yaws(np.float64(s + length / 2)))
    x, y = road.path.points(np.float64(s + length / 2)) + side * middle * np.array([-np.sin(yaw), np.cos(yaw)])
    kind = _pick(random, _FRONT if row == 0 else _BACK)
    house, house_y = None, 0.0
    if kind in ("house", "tower"):
        house = (length * random.uniform(0.8, 0.98), depth * random.uniform(0.65, 0.9))
        house_y = random.uniform(-0.4, 0.3) * (depth - house[1])
    yaw += np.pi * (side < 0)
    return Lot(kind, float(x), float(y), yaw, (length, depth), house, house_y, index, row)


_GRID = np.stack(np.meshgrid(np.linspace(-0.5, 0.5, 7), np.linspace(-0.5, 0.5, 5)), -1).reshape(-1, 2)


def _inside(plan: Plan, lot: Lot) -> bool:
    middle = np.array([lot.x, lot.y])
    return bool((middle > plan.lower - 25).all() and (middle < plan.upper + 25).all())


def _off_roads(plan: Plan, lot: Lot) -> bool:
    """Whether a lot lies clear of every road and sidewalk."""
    x, y = lot.place(_GRID[:, 0] * lot.size[0], _GRID[:, 1] * lot.size[1])
    edges = edge_distances(plan, x, y)[2]
    widest = max(road.sidewalk for road in plan.roads)
    return bool((rounded_edge(edges, plan.corner_radius) > widest + 0.2).all())
