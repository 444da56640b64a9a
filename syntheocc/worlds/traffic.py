"""Casts a scene: vehicles in their lanes and parking bays, cycles, people, road works, and what lies about.

Everybody is drawn, compared with all who have a place at the times of `Footprints`, and dropped if there is a clash.
"""

import numpy as np

from syntheocc.worlds.actors import Actor, Parked, SpeedProfile, Travel
from syntheocc.worlds.families import ASSET_FAMILIES, family
from syntheocc.worlds.footprints import Footprints
from syntheocc.worlds.furnish import beside
from syntheocc.worlds.ground import Ground
from syntheocc.worlds.layout import Lane, Plan, Road, edge_distances, rounded_edge, stratified
from syntheocc.worlds.lots import Lot
from syntheocc.worlds.palette import Palette
from syntheocc.worlds.paths import Offset, Path
from syntheocc.worlds.people import cycle, pedestrian
from syntheocc.worlds.props import barrier, bicycle_rack, bin_or_cart, cone, debris
from syntheocc.worlds.vehicles import Model, vehicle

__all__ = ["Cast"]

_NEAR = 62.0  # metres from the ego car's way within which actors are cast


class Cast:
    """Collects the actors of a scene.

    Args:
        seed, split: of the scene.
        plan, lots, ground: where there is room.
        paint: the scene's materials.
        random: draws everything.
        taken: places and ways that are taken, the ego car's among them.
    """

    def __init__(
        self,
        seed: int,
        split: str,
        plan: Plan,
        lots: list[Lot],
        ground: Ground,
        paint: Palette,
        random: np.random.Generator,
        taken: Footprints,
    ):
        self.seed, self.split, self.plan, self.lots, self.ground = seed, split, plan, lots, ground
        self.paint, self.random, self.taken = paint, random, taken
        self.actors: list[Actor] = []
        self.way = plan.ego.planar(taken.times)[:, :2]

    def run(self) -> tuple[Actor, ...]:
        """Everybody; the large ones first, so that they find room."""
        self._road_works()
        self._large_ones()
        for index, road in enumerate(self.plan.roads):
            for lane in road.lanes:
                self._lane(index, road, lane)
        self._parking()
        self._cycles()
        self._people()
        self._litter()
        return tuple(self.actors)

    def family(self) -> int:
        """An asset family of the split."""
        return family(self.random, self.split, ASSET_FAMILIES)

    def near(self, x: float, y: float, reach: float = _NEAR) -> bool:
        """Whether a point lies within `reach` metres of the ego car's way."""
        return bool((np.hypot(self.way[:, 0] - x, self.way[:, 1] - y) < reach).any())

    def place(self, model: Model, motion: Parked | Travel, attribute: str, margin: float = 0.3) -> bool:
        """Cast a model if its way is free at all times."""
        planar = motion.planar(self.taken.times if motion.moves else np.zeros(()))
        if not self.taken.claim(planar, (model.size[0] / 2, model.size[1] / 2), margin):
            return False
        token = self.random.bytes(16).hex()
        self.actors.append(Actor(token, model.category, model.size, model.primitives, motion, self.ground, attribute))
        return True

    def stand(self, model: Model, x: float, y: float, yaw: float, attribute: str = "", margin: float = 0.1) -> bool:
        """Cast something that stays where it is."""
        return self.place(model, Parked(x, y, yaw), attribute, margin)

    # Vehicles that drive

    def _vehicle(self, name: str) -> Model:
        return vehicle(name, self.family(), self.random, self.paint)

    def _stop_line(self, index: int, sign: int) -> list[tuple[float, float]]:
        """Where a lane of a road stops before and ends its crossings, metres along the way it is driven."""
        lines = []
        for crossing in self.plan.crossings:
            if index in (0, crossing.other):
                at, other = (crossing.s, crossing.other) if index == 0 else (crossing.other_s, 0)
                half = self.plan.roads[other].half_width + self.plan.corner_radius
                lines.append((sign * at - half - 4.5, sign * at + half))
        return sorted(lines)

    def _lane(self, index: int, road: Road, lane: Lane) -> None:
        """A stream of vehicles: it flows where the light is green, else it queues before the stop line."""
        random = self.random
        way = road.lane_path(lane, 0.0)
        low, high = sorted(lane.sign * s for s in road.span)
        green = self.plan.ego_road_green == (index == 0)
        speed = random.uniform(5.0, 12.5)
        ego = self.plan.ego
        behind_ego = isinstance(ego.path, Offset) and index == 0 and abs(ego.path.d - lane.d) < 0.1
        s = low + random.uniform(0, 25)
        while s < high:
            kind = str(random.choice(["car", "truck", "motorcycle"], p=[0.92, 0.05, 0.03]))
            model = (
                self._vehicle(kind) if kind != "motorcycle" else cycle(kind, self.family(), random, self.paint, True)
            )
            profile = SpeedProfile((0.0,), (speed * random.uniform(0.97, 1.03),), s)
            line = next((line for line in self._stop_line(index, lane.sign) if s < line[1]), None)
            step = model.size[0] + random.uniform(12.0, 55.0)
            if behind_ego:
                profile = SpeedProfile(ego.profile.times, ego.profile.speeds, s)
            elif not green and line is not None:
                if s > line[0] - 30:
                    # The queue: the first stands at the line.
                    profile = SpeedProfile((0.0,), (0.0,), line[0] - model.size[0] / 2 - random.uniform(0.3, 1.5))
                    queue = profile.start
                    for _ in range(int(random.integers(0, 3))):
                        queue -= model.size[0] / 2 + random.uniform(3.5, 5.5)
                        self._drive(self._vehicle("car"), way, SpeedProfile((0.0,), (0.0,), queue))
                    s = line[1]
                else:
                    halt = random.uniform(2.0, 5.0)
                    ease = SpeedProfile((halt - 3, halt + 2.5), (speed, 0.0))
                    gap = line[0] - random.uniform(22, 30) - float(ease.distance(1e3))
                    profile = SpeedProfile(ease.times, ease.speeds, gap)
            self._drive(model, way, profile)
            s += step

    def _drive(self, model: Model, way: Offset | Path, profile: SpeedProfile, margin: float = 0.45) -> bool:
        middle = way.points(profile.distance(self.taken.times[len(self.taken.times) // 2]))
        if not self.near(float(middle[0]), float(middle[1]), 85.0):
            return False
        base = 0.58 * min(model.size[0], 8.0)
        cycles = model.category in ("vehicle.bicycle", "vehicle.motorcycle")
        attribute = "cycle.with_rider" if cycles else "vehicle.moving"
        return self.place(model, Travel(way, profile, base), attribute, margin)

    def _large_ones(self) -> None:
        """Buses, trucks, trailers: as many a scene as the classes' shares ask for, near the ego car's way."""
        counts = {
            "bus": int(stratified(self.seed, "bus") < 0.4),
            "trailer": int(stratified(self.seed, "trailer") < 0.7),
            "truck": 1 + int(stratified(self.seed, "truck") < 0.6),
        }
        for name, count in counts.items():
            for _ in range(count):
                model = self._vehicle(name)
                for _ in range(60):
                    if self._place_large(name, model):
                        break

    def _place_large(self, name: str, model: Model) -> bool:
        random = self.random
        index = int(random.integers(len(self.plan.roads))) if random.random() < 0.4 else 0
        road = self.plan.roads[index]
        lane = road.lanes[int(random.integers(len(road.lanes)))]
        s = random.uniform(*road.span)
        if name == "trailer" and random.random() < 0.5:  # drawn by a truck
            way, speed = road.lane_path(lane, 0.0), random.uniform(4, 11)
            tractor = self._vehicle("truck")
            ahead = lane.sign * s + (model.size[0] + tractor.size[0]) / 2 + 0.4
            x, y = way.points(np.float64(lane.sign * s))
            if not self.near(x, y, 40.0) or not self._drive(model, way, SpeedProfile((0.0,), (speed,), lane.sign * s)):
                return False
            self._drive(tractor, way, SpeedProfile((0.0,), (speed,), ahead), 0.05)
            return True
        x, y, yaw = beside(road, s, -lane.sign, -road.parking / 2 if road.parking else -0.9 * model.size[1])
        if not self.near(x, y, 40.0):
            return False
        yaw += np.pi * (lane.sign < 0)
        if (name == "trailer" or random.random() < 0.5) and road.parking and self._off_crossing(index, x, y):
            return self.stand(model, x, y, yaw, "vehicle.parked", 0.15)
        if name == "trailer":
            return self._in_yard(model)
        profile = SpeedProfile((0.0,), (random.uniform(4, 11),), lane.sign * s)
        return self._drive(model, road.lane_path(lane, 0.0), profile)

    def _in_yard(self, model: Model) -> bool:
        random = self.random
        yards = [lot for lot in self.lots if lot.kind in ("parking", "yard") and self.near(lot.x, lot.y, 45.0)]
        if not yards:
            return False
        lot = yards[int(random.integers(len(yards)))]
        x, y = lot.place(0.0, random.uniform(-0.25, 0.25) * lot.size[1])
        return model.size[0] < lot.size[0] and self.stand(model, x, y, lot.yaw, "vehicle.parked")

    def _off_crossing(self, index: int, x: float, y: float, room: float = 6.0) -> bool:
        others = np.delete(edge_distances(self.plan, np.array([x]), np.array([y]))[2], index, 0)
        return not len(others) or float(others.min()) > self.plan.corner_radius + room

    # Vehicles that stand

    def _parking(self) -> None:
        random = self.random
        for index, road in enumerate(self.plan.roads):
            share = random.uniform(0.1, 0.32)
            for side in (1, -1):
                s = road.span[0]
                while road.parking and s < road.span[1]:
                    x, y, yaw = beside(
                        road, s + random.uniform(-0.3, 0.3), side, -road.parking / 2 + random.uniform(-0.1, 0.1)
                    )
                    s += 6.3
                    if random.random() > share or not self.near(x, y) or not self._off_crossing(index, x, y):
                        continue
                    yaw += np.pi * (side > 0) + random.normal(0, 0.015)
                    model = self._vehicle("car" if random.random() < 0.97 else "truck")
                    if model.size[0] < 6.1 or random.random() < 0.3:
                        self.stand(model, x, y, yaw, "vehicle.parked", 0.12)
        for lot in self.lots:
            if lot.kind != "parking" or not self.near(lot.x, lot.y):
                continue
            for u in np.arange(-lot.size[0] / 2 + 1.6, lot.size[0] / 2 - 1.2, 2.7):
                if random.random() < 0.4:
                    x, y = lot.place(float(u), lot.size[1] / 2 - 2.7)
                    yaw = lot.yaw + random.choice([0.5, -0.5]) * np.pi + random.normal(0, 0.02)
                    self.stand(self._vehicle("car"), x, y, yaw, "vehicle.parked", 0.12)

    def _cycles(self) -> None:
        random = self.random
        for name, riding, standing in (("bicycle", 2, 1), ("motorcycle", 1, 2)):
            for moving in [True] * riding + [False] * standing:
                model = cycle(name, self.family(), random, self.paint, rider=moving)
                for _ in range(12):
                    index = int(random.integers(len(self.plan.roads)))
                    road = self.plan.roads[index]
                    side, s = int(random.choice([-1, 1])), random.uniform(*road.span)
                    x, y, yaw = beside(road, s, side, random.uniform(0.5, max(0.6, road.sidewalk - 0.8)))
                    if not self.near(x, y, 40.0) or not self._off_crossing(index, x, y, 0.0):
                        continue
                    if not moving:
                        turn = random.uniform(0, 2 * np.pi)
                        if self.stand(model, x, y, turn, "cycle.without_rider"):
                            break
                        continue
                    speed = random.uniform(2.5, 6.0) if name == "bicycle" else random.uniform(5, 12)
                    d = -(road.carriageway - 0.8)
                    way = Offset(road.path, d if side < 0 else -d, side > 0)
                    if self._drive(model, way, SpeedProfile((0.0,), (speed,), -side * s), 0.25):
                        break

    # People and small things

    def _people(self) -> None:
        random, plan = self.random, self.plan
        for crossing in plan.crossings:
            self._on_zebra(0, crossing.s, crossing.other)
            self._on_zebra(crossing.other, crossing.other_s, 0)
        wanted, tries = int(random.integers(30, 46)), 0
        while wanted > 0 and tries < 400:
            tries += 1
            index = int(random.integers(len(plan.roads)))
            road = plan.roads[index]
            side, s = int(random.choice([-1, 1])), random.uniform(*road.span)
            out = random.uniform(0.5, road.sidewalk - 0.3)
            x, y, yaw = beside(road, s, side, out)
            if not self.near(x, y, 42.0) or not self._off_crossing(index, x, y, -plan.corner_radius + road.sidewalk):
                continue
            walking = random.random() < 0.72
            for k in range(int(random.choice([1, 1, 1, 2, 3]))):
                model = pedestrian(self.family(), random, self.paint, walking)
                if walking:
                    sign = 1 if random.random() < 0.5 else -1
                    way = Offset(road.path, side * (road.half_width + out), sign < 0)
                    profile = SpeedProfile((0.0,), (random.uniform(0.7, 1.7),), sign * s + 0.9 * k)
                    wanted -= self.place(model, Travel(way, profile, 0.3), "pedestrian.moving", 0.12)
                else:
                    u, v = random.uniform(-0.8, 0.8, 2)
                    clear = rounded_edge(
                        edge_distances(plan, np.array([x + u]), np.array([y + v]))[2], plan.corner_radius
                    )
                    if clear[0] > 0.3:
                        yaw = random.uniform(0, 2 * np.pi)
                        wanted -= self.stand(model, x + u, y + v, yaw, "pedestrian.standing", 0.12)

    def _on_zebra(self, index: int, at: float, other: int) -> None:
        """People who cross a road beside a crossing: they wait, walk, and stay on the far side."""
        random, road = self.random, self.plan.roads[index]
        back = self.plan.roads[other].half_width + self.plan.corner_radius + 1.7
        for sign in (1, -1):
            for _ in range(int(random.integers(0, 5))):
                side, s = int(random.choice([-1, 1])), at + sign * back + random.uniform(-1.0, 1.0)
                wait, speed = random.uniform(0.5, 1.3), random.uniform(0.9, 1.6)
                x, y, yaw = beside(road, s, -side, wait)
                if not self.near(x, y, 45.0):
                    continue
                way = Path(x, y, yaw + side * np.pi / 2, ())
                starts = random.uniform(-2 * road.half_width / speed, self.taken.times[-1] - 3.0)
                # Easing in and out over 0.8 s covers 0.4 s' worth of way each.
                arrives = starts + (2 * road.half_width + 2 * wait) / speed
                walk = SpeedProfile((starts - 0.8, starts, arrives, arrives + 0.8), (0.0, speed, speed, 0.0))
                walk = SpeedProfile(walk.times, walk.speeds, -float(walk.distance(starts)))
                model = pedestrian(self.family(), random, self.paint)
                self.place(model, Travel(way, walk, 0.3), "pedestrian.moving", 0.2)

    def _road_works(self) -> None:
        """Barriers and cones around a machine in a yard or in a parking lane, and a second row of barriers."""
        random, plan = self.random, self.plan
        machine = stratified(self.seed, "machine") < 0.8
        for number in range(2):
            for _ in range(40):
                index = int(random.integers(len(plan.roads)))
                road = plan.roads[index]
                side, s = int(random.choice([-1, 1])), random.uniform(*road.span)
                out = -road.parking / 2 if road.parking else road.sidewalk + max(road.verge / 2, 1.0)
                x, y, _ = beside(road, s, side, out)
                if self.near(x, y, 26.0) and self._off_crossing(index, x, y, 14.0):
                    self._works_at(road, s, side, out, machine and number == 0)
                    break

    def _works_at(self, road: Road, s: float, side: int, out: float, machine: bool) -> None:
        random, kind, cones = self.random, self.family(), self.family()
        if machine:
            x, y, yaw = beside(road, s, side, out)
            model = self._vehicle("construction_vehicle")
            self.stand(model, x, y, yaw + np.pi * (random.random() < 0.5), "vehicle.stopped", 0.0)
        edge = out - 1.35 if out < 0 else out + 1.6
        for k in range(int(random.integers(6, 11))):
            model = barrier(kind, random, self.paint)
            x, y, yaw = beside(road, s + (k - 4) * (model.size[1] + 0.15), side, edge)
            self.stand(model, x, y, yaw + np.pi / 2, "", 0.0)
        for k in range(int(random.integers(5, 10))):
            u = (k // 2 + 4.2) * (1 if k % 2 else -1) * 2.2
            x, y, _ = beside(road, s + u, side, out + random.uniform(-0.9, 0.9))
            self.stand(cone(cones, random, self.paint), x, y, random.uniform(0, 6), "", 0.05)
        for _ in range(2):
            x, y, _ = beside(road, s + random.uniform(-6, 6), side, out + random.uniform(-0.6, 0.6))
            model = pedestrian(self.family(), random, self.paint, walking=False, worker=True)
            self.stand(model, x, y, random.uniform(0, 6), "pedestrian.standing")

    def _litter(self) -> None:
        random, plan = self.random, self.plan
        makers = [bin_or_cart] * 8 + [debris] * 3 + [bicycle_rack] + [cone] * 5
        for make in makers:
            for _ in range(10):
                index = int(random.integers(len(plan.roads)))
                road = plan.roads[index]
                side, s = int(random.choice([-1, 1])), random.uniform(*road.span)
                x, y, yaw = beside(road, s, side, road.sidewalk - random.uniform(0.3, 0.7))
                if not self.near(x, y, 42.0) or not self._off_crossing(index, x, y, 0.0):
                    continue
                yaw += random.choice([-0.5, 0.5]) * np.pi
                if self.stand(make(self.family(), random, self.paint), x, y, yaw):
                    break
