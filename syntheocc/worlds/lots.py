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
        kind: "house", "tower", "park", "yard", "parking" or "plaza".
        x, y, yaw: of its middle, metres and radians.
        size: along the street and away from it, metres.
        house: size of the building, None for none; its middle is `house_y` metres further from the street.
        road: index of the road that it lies at.
        row: 0 at the sidewalk, 1 behind that.
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

    def place(self, x: float, y: float) -> tuple[float, float]:
        """World (x, y) of a point of the lot's local frame."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return self.x + x * cos - y * sin, self.y + x * sin + y * cos


_FRONT = (("house", 0.56), ("park", 0.16), ("yard", 0.1), ("parking", 0.11), ("plaza", 0.07))
_BACK = (("tower", 0.6), ("park", 0.25), ("house", 0.15))


def _pick(random: np.random.Generator, table: tuple[tuple[str, float], ...]) -> str:
    names, weights = zip(*table, strict=True)
    return str(random.choice(names, p=np.array(weights) / sum(weights)))


def make_lots(plan: Plan, random: np.random.Generator) -> list[Lot]:
    """Lots along every road, two rows deep, none on a sidewalk or on another lot."""
    taken = Footprints(np.zeros(1))
    lots: list[Lot] = []
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 7), np.linspace(-1, 1, 5)), -1).reshape(-1, 2)
    widest = max(road.sidewalk for road in plan.roads)
    for row in (0, 1):
        for index, road in enumerate(plan.roads):
            for side in (1, -1):
                s = road.span[0] + random.uniform(0, 8)
                while s < road.span[1]:
                    length = random.uniform(11, 24) if row == 0 else random.uniform(16, 34)
                    depth = random.uniform(11, 17) if row == 0 else random.uniform(14, 24)
                    near = road.half_width + road.sidewalk + road.verge * (row == 0)
                    middle = near + depth / 2 + (row * random.uniform(18, 24))
                    at = s + length / 2
                    yaw = float(road.path.yaws(at))
                    x, y = road.path.points(at) + side * middle * np.array([-np.sin(yaw), np.cos(yaw)])
                    yaw += np.pi * (side < 0)
                    kind = _pick(random, _FRONT if row == 0 else _BACK)
                    house, house_y = None, 0.0
                    if kind in ("house", "tower"):
                        house = (length * random.uniform(0.78, 0.98), depth * random.uniform(0.6, 0.85))
                        house_y = random.uniform(-0.4, 0.3) * (depth - house[1])
                    lot = Lot(kind, float(x), float(y), yaw, (length, depth), house, house_y, index, row)
                    half = (length / 2, depth / 2)
                    corners = np.array([lot.place(u * half[0], v * half[1]) for u, v in grid])
                    inside = (corners > plan.lower - 40).all() and (corners < plan.upper + 40).all()
                    step = length + random.uniform(0.4, 4.0)
                    if inside:
                        edges = edge_distances(plan, corners[:, 0], corners[:, 1])[2]
                        clear = (rounded_edge(edges, plan.corner_radius) > widest + 0.2).all()
                        if clear and taken.claim(np.array([x, y, yaw]), half):
                            lots.append(lot)
                        elif row == 0:
                            step = 4.0
                    s += step
    return lots
