"""The plan of a street: roads with their cross-sections, crossings, and the ego car's way through it.

Traffic keeps to the right. A road's centre line is a `Path`; `d` counts metres to its left. Across it, from the middle
outwards, lie: median, lanes, a parking lane, sidewalk, a verge, then the lots.
"""

from dataclasses import dataclass

import numpy as np

from syntheocc.worlds.actors import SpeedProfile, Travel
from syntheocc.worlds.families import LAYOUT_FAMILIES, family, random_for
from syntheocc.worlds.paths import Offset, Path, fillet

__all__ = ["Crossing", "LAYOUTS", "Lane", "Plan", "Road", "edge_distances", "make_plan", "rounded_edge", "stratified"]

LAYOUTS = ("straight", "curve", "turn_right", "stop", "bend", "turn_left")
MAX_SPEED = 15.0  # m/s
_BEHIND = 110.0  # metres of road behind the ego car's start
_AHEAD = 130.0  # and beyond its end


def stratified(seed: int, purpose: str) -> float:
    """A number in 0..1 that is spread evenly over consecutive seeds (a golden-ratio walk), for rare things."""
    return float((random_for(0, "stratified", purpose).random() + seed * 0.6180339887498949) % 1.0)


@dataclass(frozen=True)
class Lane:
    """One lane of a road: its middle lies at `d`; sign is +1 where traffic follows the centre line, else -1."""

    d: float
    sign: int


@dataclass(frozen=True, eq=False)
class Road:
    """A road and its cross-section, metres; both sides are alike."""

    path: Path
    lanes_per_side: int
    lane_width: float
    median: float  # half width of the island in the middle, 0 for none
    parking: float  # width of the parking lane, 0 for none
    sidewalk: float
    verge: float

    @property
    def carriageway(self) -> float:
        """Half width of median and lanes."""
        return self.median + self.lanes_per_side * self.lane_width

    @property
    def half_width(self) -> float:
        """From the middle to the curb."""
        return self.carriageway + self.parking

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Right-hand lanes first, from the middle outwards."""
        offsets = [self.median + (i + 0.5) * self.lane_width for i in range(self.lanes_per_side)]
        return tuple(Lane(-d, 1) for d in offsets) + tuple(Lane(d, -1) for d in offsets)

    @property
    def span(self) -> tuple[float, float]:
        """The s between which things are put along the road."""
        return (-130.0, 130.0) if self.path.length <= 130.0 else (0.0, self.path.length)

    def lane_path(self, lane: Lane, s: float) -> Offset:
        """The lane's middle as it is driven; its s = 0 lies at s of the centre line."""
        return Offset(self.path, lane.d, lane.sign < 0, s)


@dataclass(frozen=True)
class Crossing:
    """Where road 0 meets road `other`: the point, s on both, and the radius of the curb's corners."""

    point: tuple[float, float]
    other: int
    s: float
    other_s: float


@dataclass(frozen=True, eq=False)
class Plan:
    """A layout.

    Args:
        kind: one of LAYOUTS.
        style: layout family.
        roads: the first is the one that the ego car starts on.
        crossings: of the first road with the others.
        corner_radius: of the curbs at crossings, metres.
        ego: the ego car's way.
        ego_road_green: whether the lights of road 0 are green.
        paved: whether the land behind the lots is paved.
        lower, upper: corners of the area, metres.
    """

    kind: str
    style: int
    roads: tuple[Road, ...]
    crossings: tuple[Crossing, ...]
    corner_radius: float
    ego: Travel
    ego_road_green: bool
    paved: bool
    lower: np.ndarray
    upper: np.ndarray


def _cross_section(style: np.random.Generator, path: Path, side_street: bool) -> Road:
    lanes = 1 if side_street or style.random() < 0.45 else 2
    return Road(
        path=path,
        lanes_per_side=lanes,
        lane_width=style.uniform(3.2, 3.8),
        median=style.uniform(0.7, 1.7) if not side_street and style.random() < 0.35 else 0.0,
        parking=style.uniform(2.2, 2.6) if style.random() < 0.7 else 0.0,
        sidewalk=style.uniform(2.2, 4.2),
        verge=style.uniform(0.5, 4.0),
    )


def _main_path(kind: str, way: float, speed: float, random: np.random.Generator) -> Path:
    yaw = float(random.integers(4)) * np.pi / 2 + random.uniform(-0.2, 0.2)
    if kind in ("curve", "bend"):
        radius = max(45.0, speed**2 / 2.0) * random.uniform(1.0, 1.6)
        turn, sign = random.uniform(0.45, 1.1), random.choice([-1.0, 1.0])
        pieces = [(_BEHIND + 0.2 * way + 12, 0.0), (radius * turn, sign / radius)]
        if kind == "bend":
            pieces += [(random.uniform(5, 25), 0.0), (radius * turn * 0.8, -sign / radius)]
        pieces.append((_AHEAD + way, 0.0))
    else:
        pieces = [(_BEHIND + way + _AHEAD, 0.0)]
    return Path(0.0, 0.0, yaw, tuple(pieces))


def _meet(p: np.ndarray, u: np.ndarray, q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where the lines p + a u and q + b v meet."""
    a = np.linalg.solve(np.stack([u, -v], -1), q - p)[0]
    return p + a * u


def _turning_ego(kind: str, road: Road, cross: Road, s: float, radius: float) -> tuple[Path, float]:
    """The ego car's way around the corner, and the s on it where the arc begins."""
    yaw, other = float(road.path.yaws(s)), float(cross.path.yaws(0.0))
    right = kind == "turn_right"
    lane = road.lanes[road.lanes_per_side - 1 if right else 0]
    # A right turn goes against the cross street's direction, on that direction's right-hand side.
    target = cross.lanes[-1 if right else 0]
    u, v = np.array([np.cos(yaw), np.sin(yaw)]), np.array([np.cos(other), np.sin(other)])
    p = road.path.points(s) + lane.d * np.array([-u[1], u[0]])
    q = cross.path.points(0.0) + target.d * np.array([-v[1], v[0]])
    corner = _meet(p, u, q, v)
    return fillet(corner - 100 * u, corner, corner + target.sign * v * 180, radius if right else radius + 4.5)


def _profile(kind: str, speed: float, random: np.random.Generator) -> SpeedProfile:
    if kind.startswith("turn"):
        slow, at = random.uniform(3.5, 4.6), random.uniform(2.6, 4.5)
        return SpeedProfile((at - 3.2, at, at + 3.6, at + 7.5), (speed, slow, slow, random.uniform(7, 12)))
    if kind == "stop":
        halt = random.uniform(3.0, 5.5)
        if random.random() < 0.5:
            return SpeedProfile((halt - 4.5, halt), (speed, 0.0))
        return SpeedProfile((halt - 1, halt + 5.0), (0.0, speed))
    return SpeedProfile((1.0, 6.0), (speed, float(np.clip(speed + random.uniform(-3, 3), 2.0, MAX_SPEED - 0.5))))


def edge_distances(plan: Plan, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where points lie against every road.

    Args:
        plan: the layout, R roads.
        x: [...] metres.
        y: [...] metres.

    Returns:
        s and d along and across each road, and metres outside its curb (negative on the road), each [R, ...].
    """
    s, d = (np.stack(v) for v in zip(*(road.path.locate(x, y) for road in plan.roads), strict=True))
    half = np.array([road.half_width for road in plan.roads], s.dtype).reshape(-1, *[1] * np.ndim(x))
    return s, d, np.abs(d) - half


def rounded_edge(edges: np.ndarray, radius: float) -> np.ndarray:
    """Metres outside the curb of all roads together, with corners rounded off; edges [R, ...] as above."""
    joined = edges.min(0)
    for other in edges[1:]:
        both = (edges[0] < radius) & (other < radius)
        joined = np.where(both, np.minimum(joined, radius - np.hypot(radius - edges[0], radius - other)), joined)
    return joined


def make_plan(seed: int, split: str, duration: float) -> Plan:
    """A plan from a seed.

    Args:
        seed: of the scene.
        split: whose layout families to use.
        duration: seconds that the ego car drives.
    """
    random = random_for(seed, "layout", split)
    style_id = family(random, split, LAYOUT_FAMILIES)
    style = random_for(style_id, "style", "layout")
    kind = LAYOUTS[seed % len(LAYOUTS)]
    corner = style.uniform(5.5, 8.0)
    top = {"curve": 12.0, "bend": 11.0, "turn_left": 11.0, "turn_right": 11.0}.get(kind, 14.5)
    speed = random.uniform(5.0, top)
    profile = _profile(kind, speed, random)
    way = float(profile.distance(duration) - profile.distance(0.0))
    main = _cross_section(style, _main_path(kind, way, speed, random), side_street=False)
    if kind in ("curve", "bend"):
        places = [_BEHIND + random.uniform(-35, 0.15 * way)]
        if random.random() < 0.6:
            places.append(main.path.length - _AHEAD - way * random.uniform(0.0, 0.5) + 35)
    elif kind == "stop":
        places = [_BEHIND + random.uniform(0.6, 0.9) * way + 25]
    else:
        places = [_BEHIND + (random.uniform(0.25, 0.8) * way if kind == "straight" else 45.0)]
        if random.random() < 0.5:
            places.append(places[0] + random.uniform(75, 100))
    roads, crossings = [main], []
    for i, s in enumerate(places):
        yaw = float(main.path.yaws(s)) + np.pi / 2 + random.uniform(-0.15, 0.15)
        point = main.path.points(s)
        # A path goes on straight both ways, so a cross street may have its s = 0 where it meets the first road.
        path = Path(float(point[0]), float(point[1]), yaw, ((130.0, 0.0),))
        roads.append(_cross_section(style, path, side_street=bool(i) or style.random() < 0.6))
        crossings.append(Crossing((float(point[0]), float(point[1])), len(roads) - 1, s, 0.0))
    if kind.startswith("turn"):
        path, arc = _turning_ego(kind, main, roads[1], places[0], corner + 1.5)
        start = arc - 2.0 - float(profile.distance(profile.times[1]) - profile.distance(0.0))
        ego_path: Path | Offset = path
    else:
        lane = main.lanes[int(random.integers(main.lanes_per_side))]
        ego_path = main.lane_path(lane, 0.0)
        start = _BEHIND
        if kind == "stop":
            line = places[0] - roads[1].half_width - corner - 4.5
            moving_off = profile.speeds[0] == 0.0
            start = line - 3.2 - (0.0 if moving_off else float(profile.distance(profile.times[-1])))
    ego = Travel(ego_path, SpeedProfile(profile.times, profile.speeds, start), wheelbase=2.6)
    seen = ego.planar(np.linspace(-1.5, duration + 1.5, 60))[:, :2]
    return Plan(
        kind=kind,
        style=style_id,
        roads=tuple(roads),
        crossings=tuple(crossings),
        corner_radius=corner,
        ego=ego,
        ego_road_green=kind != "stop" or profile.speeds[0] == 0.0,
        paved=stratified(seed, "paved") < 0.5,
        lower=np.floor(seen.min(0) - 75.0),
        upper=np.ceil(seen.max(0) + 75.0),
    )
