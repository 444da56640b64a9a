"""Puts up what stands for good: curbs, houses on their lots, street trees, lamps, lights, signs, a skyline."""

import numpy as np
import torch

from syntheocc.worlds import assets
from syntheocc.worlds.families import ASSET_FAMILIES, family
from syntheocc.worlds.footprints import Footprints
from syntheocc.worlds.ground import Ground
from syntheocc.worlds.layout import Crossing, Plan, Road, edge_distances, rounded_edge
from syntheocc.worlds.lots import Lot
from syntheocc.worlds.palette import Palette
from syntheocc.worlds.primitives import Primitives
from syntheocc.worlds.solids import Solids, pose

__all__ = ["Furnisher", "beside"]

_CURB = 0.13  # metres that a curb stone stands above road and sidewalk


def beside(road: Road, s: float, side: int, out: float) -> tuple[float, float, float]:
    """x, y of a point `out` metres beyond the curb at s, on the left (side +1) or right, and the road's heading."""
    yaw = float(road.path.yaws(np.float64(s)))
    x, y = road.path.points(np.float64(s)) + side * (road.half_width + out) * np.array([-np.sin(yaw), np.cos(yaw)])
    return float(x), float(y), yaw


class Furnisher:
    """Collects the static solids of a scene.

    Args:
        plan, lots, ground: where things may stand.
        paint: the scene's materials.
        split: whose asset families to use.
        random: draws everything.
        taken: places that are taken; what stands at the sidewalk is added.
    """

    def __init__(
        self,
        plan: Plan,
        lots: list[Lot],
        ground: Ground,
        paint: Palette,
        split: str,
        random: np.random.Generator,
        taken: Footprints,
    ):
        self.plan, self.lots, self.ground, self.paint, self.random, self.taken = (
            plan,
            lots,
            ground,
            paint,
            random,
            taken,
        )
        draw = lambda n: [family(random, split, ASSET_FAMILIES) for _ in range(n)]  # noqa: E731
        self.houses, self.trees, self.lamp, self.signs = draw(5), draw(3), draw(1)[0], draw(3)
        self.solids = Solids("static.manmade")
        self.way = plan.ego.planar(self.taken.times)[:, :2]

    def run(self) -> Primitives:
        """Everything, in the world frame."""
        self._curbs()
        for lot in self.lots:
            self._lot(lot)
        for index in range(len(self.plan.roads)):
            self._street(index)
        for crossing in self.plan.crossings:
            self._lights(crossing)
        self._skyline()
        return self.solids.primitives()

    def at(self, x: float, y: float, yaw: float) -> Solids:
        """The builder with its local frame on the ground at (x, y)."""
        z = float(self.ground.height(torch.tensor([x, y], dtype=torch.float64)))
        self.solids.local2frame = pose(x, y, z, yaw)
        return self.solids

    def inside(self, x: float, y: float, margin: float = 0.0) -> bool:
        """Whether a point lies in the area, at least `margin` from its border."""
        point = np.array([x, y])
        return bool((point > self.plan.lower + margin).all() and (point < self.plan.upper - margin).all())

    def clear(self, x: float, y: float) -> float:
        """Metres from the nearest curb, corners rounded."""
        edges = edge_distances(self.plan, np.array([x]), np.array([y]))[2]
        return float(rounded_edge(edges, self.plan.corner_radius)[0])

    def claim(self, x: float, y: float, yaw: float, half: tuple[float, float]) -> bool:
        """Take the place if nothing stands there."""
        return self.taken.claim(np.array([x, y, yaw]), half, 0.15)

    def far(self, x: float, y: float) -> bool:
        """Whether a point is so far from the ego car's way that a tree may be a ball on a stick."""
        return float(np.hypot(self.way[:, 0] - x, self.way[:, 1] - y).min()) > 55.0

    def _tree(self, x: float, y: float, yaw: float) -> None:
        kind, simple = int(self.random.choice(self.trees)), self.far(x, y)
        assets.tree(self.at(x, y, yaw), kind, self.random, self.paint, simple)

    def _curb_stone(self, x: float, y: float, yaw: float, half: float, material: int) -> None:
        slope = self.ground.gradient(torch.tensor([x, y], dtype=torch.float64)).numpy()
        pitch = -float(np.arctan(slope @ np.array([np.cos(yaw), np.sin(yaw)])))
        self.at(x, y, yaw).use("sidewalk").box((-half, -0.1, -0.2), (half, 0.1, _CURB), material, pitch=pitch)

    def _curbs(self) -> None:
        stone, plan = self.paint.pick("curb", self.random), self.plan
        for index, road in enumerate(plan.roads):
            for side in (1, -1):
                s = road.span[0]
                while s < road.span[1]:
                    # Stones are long where the curb is straight, and far away there are none.
                    bent = bool(np.abs(road.path.curvatures(np.array([s, s + 7.0]))).max())
                    step = 2.5 if bent else 7.0
                    x, y, yaw = beside(road, s + step / 2, side, 0.1)
                    ends = [beside(road, s + e, side, 0.1) for e in (0.0, step)]
                    points = np.array([ends[0][:2], (x, y), ends[1][:2]])
                    edges = np.delete(edge_distances(plan, points[:, 0], points[:, 1])[2], index, 0)
                    if (
                        self.inside(x, y)
                        and not self.far(x, y)
                        and (not len(edges) or edges.min() > plan.corner_radius - 0.3)
                    ):
                        half = float(np.hypot(*(points[2] - points[0]))) / 2
                        self._curb_stone(x, y, yaw, half, stone)
                    s += step
        for crossing in plan.crossings:
            self._corner_curbs(crossing, stone)

    def _corner_curbs(self, crossing: Crossing, stone: int) -> None:
        """Four chords of the rounded curb on each corner of a crossing."""
        main, other, r = self.plan.roads[0], self.plan.roads[crossing.other], self.plan.corner_radius
        yaws = float(main.path.yaws(crossing.s)), float(other.path.yaws(crossing.other_s))
        normals = [np.array([-np.sin(yaw), np.cos(yaw)]) for yaw in yaws]
        for a in (1, -1):
            for b in (1, -1):
                reach = np.array([a * (main.half_width + r), b * (other.half_width + r)])
                center = np.array(crossing.point) + np.linalg.solve(np.stack(normals), reach)
                start, end = np.arctan2(*(-a * normals[0])[::-1]), np.arctan2(*(-b * normals[1])[::-1])
                turn = (end - start + np.pi) % (2 * np.pi) - np.pi
                for k in range(4):
                    angle = start + turn * (k + 0.5) / 4
                    x, y = center + (r - 0.1) * np.array([np.cos(angle), np.sin(angle)])
                    if self.inside(x, y):
                        self._curb_stone(float(x), float(y), angle + np.pi / 2, r * abs(turn) / 8, stone)

    def _lot(self, lot: Lot) -> None:
        random, paint = self.random, self.paint
        half = np.array(lot.size) / 2
        if lot.house is not None:
            x, y = lot.place(0.0, lot.house_y)
            self.taken.add(np.array([x, y, lot.yaw]), (lot.house[0] / 2, lot.house[1] / 2 + 1.0))
            assets.building(self.at(x, y, lot.yaw), int(random.choice(self.houses)), lot.house, random, paint)
        trees = {"park": 7, "yard": 3, "house": 1, "tower": 1, "plaza": 1}.get(lot.kind, 0)
        for _ in range(int(random.integers(trees, trees + 2))):
            x, y = lot.place(*(random.uniform(-0.85, 0.85, 2) * half))
            if self.claim(x, y, 0.0, (0.5, 0.5)):
                self._tree(x, y, random.uniform(0, 6))
        for _ in range(int(random.integers(0, {"park": 7, "yard": 5, "house": 4}.get(lot.kind, 1)))):
            x, y = lot.place(*(random.uniform(-0.9, 0.9, 2) * half))
            if self.claim(x, y, 0.0, (0.7, 0.7)):
                assets.bush(self.at(x, y, 0.0), random, paint, self.far(x, y))
        if lot.row == 0 and lot.kind in ("house", "yard", "park") and random.random() < 0.45:
            length = lot.size[0] * random.uniform(0.5, 0.95)
            x, y = lot.place(random.uniform(-0.5, 0.5) * (lot.size[0] - length), -half[1] + 0.4)
            if self.clear(x, y) > self.plan.roads[lot.road].sidewalk + 0.3 and self.claim(
                x, y, lot.yaw, (length / 2, 0.5)
            ):
                make = assets.hedge if random.random() < 0.5 else assets.fence
                make(self.at(x, y, lot.yaw), length, random, paint)

    def _street(self, index: int) -> None:
        """Trees, lamps, signs and benches along the sidewalks of a road."""
        random, paint, road = self.random, self.paint, self.plan.roads[index]
        gap_lamp, gap_tree = random.uniform(22, 32), random.uniform(7, 13)
        tree_out = road.sidewalk + road.verge / 2 if road.verge > 1.0 else 0.8
        rows = (
            ("lamp", gap_lamp, 0.45),
            ("tree", gap_tree, tree_out),
            ("sign", 38.0, 0.5),
            ("bench", 26.0, road.sidewalk - 0.5),
            ("bush", 12.0, road.sidewalk + road.verge / 2),
            ("shelter", 120.0, road.sidewalk - 0.9),
        )
        for side in (1, -1):
            for kind, gap, out in rows:
                s = road.span[0] + random.uniform(0, gap)
                while s < road.span[1]:
                    x, y, yaw = beside(road, s, side, out)
                    s += gap * random.uniform(0.75, 1.25)
                    # On the other side, "towards the road" is the other way about.
                    yaw += np.pi * (side < 0)
                    if not self.inside(x, y, 2.0) or abs(self.clear(x, y) - out) > 0.3:
                        continue
                    others = np.delete(edge_distances(self.plan, np.array([x]), np.array([y]))[2], index, 0)
                    if len(others) and others.min() < self.plan.corner_radius + 3.5:
                        continue
                    half = {"shelter": (2.0, 0.8), "bench": (0.9, 0.5), "bush": (0.8, 0.8)}.get(kind, (0.3, 0.3))
                    if kind == "shelter" and road.sidewalk < 3.0 or not self.claim(x, y, yaw, half):
                        continue
                    solids = self.at(x, y, yaw)
                    if kind == "lamp":
                        assets.lamp(solids, self.lamp, random, paint)
                    elif kind == "tree":
                        self._tree(x, y, yaw)
                    elif kind == "sign":
                        # Whoever drives on this side comes along -x of this frame.
                        assets.sign(self.at(x, y, yaw + np.pi), int(random.choice(self.signs)), random, paint)
                    elif kind == "bench":
                        assets.furniture(solids, self.lamp, random, paint)
                    elif kind == "bush":
                        assets.bush(solids, random, paint, self.far(x, y))
                    else:
                        assets.bus_stop(solids, random, paint)

    def _lights(self, crossing: Crossing) -> None:
        """A traffic light on the right of every stop line."""
        plan = self.plan
        for index, center in ((0, crossing.s), (crossing.other, crossing.other_s)):
            road, cross = plan.roads[index], plan.roads[crossing.other if index == 0 else 0]
            back = cross.half_width + plan.corner_radius + 3.5
            green = plan.ego_road_green == (index == 0)
            for sign in (1, -1):
                x, y, yaw = beside(road, center - sign * back, -sign, 0.5)
                yaw += np.pi * (sign < 0)
                if self.inside(x, y) and self.clear(x, y) > 0.2 and self.claim(x, y, yaw, (0.25, 0.25)):
                    assets.traffic_light(self.at(x, y, yaw), green, self.random, self.paint)

    def _skyline(self) -> None:
        """High houses and tree tops outside the area, which only pictures see."""
        random, center = self.random, (self.plan.lower + self.plan.upper) / 2
        half = (self.plan.upper - self.plan.lower) / 2
        for i in range(28):
            angle = 2 * np.pi * (i + random.uniform(0, 0.8)) / 28
            direction = np.array([np.cos(angle), np.sin(angle)])
            # To the border of the area along this direction, and some way beyond.
            reach = (half / np.maximum(np.abs(direction), 1e-6)).min() + random.uniform(18, 60)
            x, y = center + reach * direction
            if edge_distances(self.plan, np.array([x]), np.array([y]))[2].min() < 22.0:
                continue
            solids = self.at(float(x), float(y), random.uniform(0, np.pi))
            if random.random() < 0.6:
                wide, high = random.uniform(7, 16), random.uniform(8, 38)
                solids.use("static.manmade").box((-wide, -8, -8), (wide, 8, high), self.paint.pick("facade", random))
            else:
                top = random.uniform(4, 9)
                solids.use("static.vegetation")
                solids.ellipsoid((0, 0, top * 0.3), (random.uniform(6, 14), 6, top), self.paint.pick("leaves", random))
