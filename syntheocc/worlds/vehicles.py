"""Models of cars, trucks, buses, trailers and construction vehicles, each of several solids.

A model is built standing on z = 0 with x forward and then fitted into its box. Proportions and style follow from an
asset family; one member differs from the next in size (a few percent) and paint.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from syntheocc.worlds.families import random_for
from syntheocc.worlds.palette import Palette
from syntheocc.worlds.primitives import Primitives
from syntheocc.worlds.solids import Solids

__all__ = ["Model", "VEHICLES", "fitted", "vehicle"]


@dataclass(frozen=True, eq=False)
class Model:
    """Solids around the centre of their box, its size (length, width, height; metres), and the nuScenes category."""

    primitives: Primitives
    size: tuple[float, float, float]
    category: str


def fitted(solids: Solids, category: str) -> Model:
    """Move solids so that their tight bounding box is centred on the origin."""
    parts = solids.primitives()
    lower, upper = (bound.numpy() for bound in parts.bounds())
    lower, upper = lower.min(0), upper.max(0)
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.from_numpy(-(lower + upper) / 2)
    # A hair more than the bounds, so that rounding leaves no corner outside.
    length, width, height = (float(v) + 1e-6 for v in upper - lower)
    return Model(parts.transformed(shift), (length, width, height), category)


def _lights(body: Solids, paint: Palette, front: float, back: float, width: float, z: float) -> None:
    for side in (-1, 1):
        y = side * (width / 2 - 0.22)
        body.box((front - 0.04, y - 0.17, z - 0.07), (front + 0.02, y + 0.17, z + 0.07), paint.pick("headlamp"))
        body.box((back - 0.02, y - 0.12, z - 0.1), (back + 0.04, y + 0.12, z + 0.12), paint.pick("taillamp"))


def _axles(body: Solids, places: list[float], radius: float, width: float, material: int) -> None:
    # One drum across the car shows the same two wheels as two discs would; it stands out by 2 cm, so that whole wheels
    # show on the sides.
    for x in places:
        body.cylinder((x, 0, radius), radius, width + 0.04, material, axis="y")


def car(style: np.random.Generator, random: np.random.Generator, paint: Palette) -> Solids:
    """Hatchback, saloon, estate, SUV or van."""
    kind = ("hatch", "saloon", "estate", "suv", "van", "saloon")[int(style.integers(6))]
    length = {"hatch": 4.0, "saloon": 4.75, "estate": 4.8, "suv": 4.7, "van": 5.0}[kind] * style.uniform(0.95, 1.06)
    width = {"hatch": 1.75, "saloon": 1.85, "estate": 1.85, "suv": 1.95, "van": 1.98}[kind] * style.uniform(0.97, 1.04)
    height = {"hatch": 1.5, "saloon": 1.46, "estate": 1.52, "suv": 1.75, "van": 1.98}[kind] * style.uniform(0.97, 1.05)
    scale = random.uniform(0.97, 1.03)
    length, width, height = length * scale, width * scale, height * scale
    belt = height * style.uniform(0.54, 0.6) * (0.95 if kind == "van" else 1)
    clear, radius = 0.2 + 0.08 * (kind == "suv"), 0.31 + 0.05 * (kind in ("suv", "van"))
    back, front = {
        "hatch": (-0.47, 0.22), "saloon": (-0.33, 0.18), "estate": (-0.48, 0.2), "suv": (-0.47, 0.2),
        "van": (-0.49, 0.34),
    }[kind]  # fmt: skip
    back, front = back * length, front * length
    lacquer, glass = paint.pick("lacquer", random), paint.pick("glass", random)
    body = Solids("vehicle.car")
    body.box((-length / 2, -width / 2, clear), (length / 2, width / 2, belt * 0.9), lacquer)
    body.box((-length / 2 + 0.1, -width / 2 + 0.1, belt * 0.85), (front + 0.45, width / 2 - 0.1, belt), lacquer)
    inset = width * 0.07
    rake = style.uniform(0.25, 0.5) if kind != "van" else 0.15
    body.box((back, -width / 2 + inset, belt), (front - rake, width / 2 - inset, height - 0.07), glass)
    body.box((back + 0.1, -width / 2 + inset, height - 0.08), (front - rake, width / 2 - inset, height), lacquer)
    # Wind screen: a slanted pane between the bonnet and the roof.
    rise = height - belt
    body.box(
        (front - rake / 2 - 0.15, -width / 2 + inset, belt - 0.05),
        (front - rake / 2 + 0.1, width / 2 - inset, belt + 0.92 * rise),
        glass,
        pitch=-float(np.arctan2(rake, rise)) * 0.8,
    )
    _axles(body, [-0.3 * length, 0.31 * length], radius, width, paint.pick("tyre"))
    _lights(body, paint, length / 2, -length / 2, width, belt * 0.75)
    return body


def truck(style: np.random.Generator, random: np.random.Generator, paint: Palette) -> Solids:
    """Box truck, tipper, tanker, tractor or pickup."""
    kind = ("box", "tipper", "pickup", "tanker", "box", "tractor")[int(style.integers(6))]
    scale = random.uniform(0.97, 1.03)
    width = (2.05 if kind == "pickup" else 2.5) * style.uniform(0.97, 1.03) * scale
    length = (
        {"box": 7.6, "tipper": 7.0, "pickup": 5.6, "tanker": 7.8, "tractor": 5.8}[kind]
        * style.uniform(0.95, 1.1)
        * scale
    )
    lacquer, cargo = paint.pick("lacquer", random), paint.pick("cargo", random)
    glass, tyre, metal = paint.pick("glass", random), paint.pick("tyre"), paint.pick("metal", random)
    body = Solids("vehicle.truck")
    front = length / 2
    if kind == "pickup":
        height = 1.9 * style.uniform(0.96, 1.06)
        body.box((-length / 2, -width / 2, 0.35), (front, width / 2, 1.05), lacquer)
        body.box((-0.25 * length, -width / 2 + 0.1, 1.0), (0.2 * length, width / 2 - 0.1, height - 0.08), glass)
        body.box((-0.25 * length, -width / 2 + 0.1, height - 0.1), (0.17 * length, width / 2 - 0.1, height), lacquer)
        _axles(body, [-0.3 * length, 0.32 * length], 0.38, width, tyre)
        _lights(body, paint, front, -length / 2, width, 0.85)
        return body
    cab = style.uniform(1.7, 2.3)
    top = style.uniform(2.5, 2.9)
    body.box((front - cab, -width / 2 + 0.03, 0.5), (front, width / 2 - 0.03, top), lacquer)
    body.box((front - 0.1, -width / 2 + 0.15, top * 0.56), (front + 0.03, width / 2 - 0.15, top * 0.88), glass)
    body.box((front - cab * 0.6, -width / 2, top * 0.58), (front - 0.25, width / 2, top * 0.85), glass)
    body.box((-length / 2, -width / 2 + 0.25, 0.55), (front - cab, width / 2 - 0.25, 0.95), metal)
    rear, bed = -length / 2, front - cab - 0.15
    if kind == "box":
        body.box((rear, -width / 2, 0.95), (bed, width / 2, style.uniform(3.1, 3.7)), cargo)
    elif kind == "tipper":
        body.box((rear, -width / 2, 0.95), (bed, width / 2, 2.2), cargo)
        body.ellipsoid(
            ((rear + bed) / 2, 0, 2.15), ((bed - rear) * 0.42, width * 0.42, 0.5), paint.pick("terrain", random)
        )
    elif kind == "tanker":
        body.cylinder(((rear + bed) / 2, 0, 2.0), (1.05, width / 2 - 0.1), bed - rear, cargo, axis="x")
    else:
        body.cylinder((rear + 1.1, 0, 1.05), 0.5, 0.25, metal)
    _axles(body, [rear + 0.16 * length, rear + 0.31 * length, front - 0.19 * length], 0.5, width, tyre)
    _lights(body, paint, front, rear, width, 0.8)
    return body


def bus(style: np.random.Generator, random: np.random.Generator, paint: Palette) -> Solids:
    """A city bus or coach; one in four bends."""
    bendy = bool(style.random() < 0.25)
    length = (17.0 if bendy else 11.2) * style.uniform(0.96, 1.06) * random.uniform(0.98, 1.02)
    width, height = style.uniform(2.5, 2.75), style.uniform(3.0, 3.6)
    coach, glass, tyre = paint.pick("coach", random), paint.pick("glass", random), paint.pick("tyre")
    body = Solids("vehicle.bus.bendy" if bendy else "vehicle.bus.rigid")
    front, rear = length / 2, -length / 2
    low, high = height * style.uniform(0.42, 0.5), height * 0.82
    sections = [(rear, front)] if not bendy else [(rear, rear + 0.42 * length), (rear + 0.48 * length, front)]
    for x0, x1 in sections:
        body.box((x0, -width / 2, 0.32), (x1, width / 2, height), coach)
        body.box((x0 + 0.5, -width / 2 - 0.015, low), (x1 - 0.5, width / 2 + 0.015, high), glass)
    if bendy:
        body.box((sections[0][1], -width / 2 + 0.12, 0.45), (sections[1][0], width / 2 - 0.12, height - 0.12), tyre)
    body.box((front - 0.1, -width / 2 + 0.1, low * 0.85), (front + 0.02, width / 2 - 0.1, high), glass)
    body.box((front - 0.05, -width * 0.36, high), (front + 0.03, width * 0.36, high + 0.3), paint.pick("lamp"))
    body.box((rear * 0.4, -0.7, height), (rear * 0.4 + 2.2, 0.7, height + 0.22), paint.pick("metal", random))
    for x in (front - 1.3, front - 3.4):
        body.box((x - 0.6, -width / 2 - 0.02, 0.4), (x + 0.6, -width / 2 + 0.2, high), glass)
    wheels = [rear + 2.6, front - 2.4] + ([rear + 0.55 * length] if bendy else [])
    _axles(body, wheels, 0.48, width, tyre)
    _lights(body, paint, front, rear, width, 0.75)
    return body


def trailer(style: np.random.Generator, random: np.random.Generator, paint: Palette) -> Solids:
    """A semitrailer with a container or tarpaulin, a flat bed with a load, or a small box trailer."""
    kind = ("box", "flat", "small", "box", "tank", "small")[int(style.integers(6))]
    length = (5.2 if kind == "small" else 10.5) * style.uniform(0.92, 1.1) * random.uniform(0.98, 1.02)
    width = (2.1 if kind == "small" else 2.5) * style.uniform(0.97, 1.02)
    cargo, tyre, metal = paint.pick("cargo", random), paint.pick("tyre"), paint.pick("metal", random)
    body = Solids("vehicle.trailer")
    front, rear = length / 2, -length / 2
    floor = 0.7 if kind == "small" else 1.1
    body.box((rear, -width / 2 + 0.05, floor - 0.22), (front, width / 2 - 0.05, floor), metal)
    if kind == "tank":
        body.cylinder((0, 0, floor + 1.05), (1.1, width / 2), length, cargo, axis="x")
    elif kind == "flat":
        x = rear + 0.3
        while x < front - 1.2:
            step = random.uniform(1.0, 2.6)
            load = (min(x + step, front - 0.1), width / 2 * random.uniform(0.6, 1), floor + random.uniform(0.4, 1.6))
            body.box((x, -load[1], floor), load, paint.pick("cargo", random))
            x += step + 0.1
    else:
        body.box((rear, -width / 2, floor), (front, width / 2, floor + style.uniform(1.7, 2.7)), cargo)
    wheels = [rear + 1.2, rear + 2.4] if kind != "small" else [-0.3]
    _axles(body, wheels, 0.48 if kind != "small" else 0.34, width, tyre)
    if kind == "small":
        body.rod((front, 0, floor - 0.1), (front + 1.0, 0, floor - 0.15), 0.06, metal)
    else:
        for side in (-1, 1):
            body.box((front - 2.6, side * 0.8 - 0.07, 0.05), (front - 2.4, side * 0.8 + 0.07, floor), metal)
    for side in (-1, 1):
        body.box((rear - 0.02, side * 0.9 - 0.15, 0.75), (rear + 0.03, side * 0.9 + 0.15, 0.9), paint.pick("taillamp"))
    return body


def construction(style: np.random.Generator, random: np.random.Generator, paint: Palette) -> Solids:
    """An excavator, a wheel loader, a roller or a fork lift."""
    kind = ("excavator", "loader", "roller", "excavator", "forklift", "loader")[int(style.integers(6))]
    k = style.uniform(0.85, 1.15) * random.uniform(0.98, 1.02)
    machine, glass = paint.pick("machine", random), paint.pick("glass", random)
    tyre, metal = paint.pick("tyre"), paint.pick("metal", random)
    body = Solids("vehicle.construction")
    if kind == "excavator":
        for side in (-1, 1):
            body.box((-1.5 * k, side * 1.1 * k - 0.3, 0.0), (1.5 * k, side * 1.1 * k + 0.3, 0.8 * k), tyre)
        body.cylinder((0, 0, 0.9 * k), 0.8 * k, 0.4 * k, metal)
        body.box((-1.7 * k, -1.25 * k, 1.0 * k), (1.0 * k, 1.25 * k, 1.9 * k), machine)
        body.box((-0.3 * k, 0.2 * k, 1.8 * k), (1.1 * k, 1.2 * k, 2.9 * k), glass)
        body.box((-0.35 * k, 0.15 * k, 2.85 * k), (1.15 * k, 1.25 * k, 2.95 * k), machine)
        elbow = (2.4 * k, -0.2 * k, style.uniform(3.0, 3.6) * k)
        wrist = (3.7 * k, -0.2 * k, style.uniform(1.0, 1.8) * k)
        body.rod((0.8 * k, -0.2 * k, 1.6 * k), elbow, 0.24 * k, machine)
        body.rod(elbow, wrist, 0.18 * k, machine)
        x, y, z = wrist
        body.box((x - 0.5 * k, y - 0.55 * k, z - 0.8 * k), (x + 0.3 * k, y + 0.55 * k, z), metal)
    elif kind == "loader":
        _axles(body, [-1.5 * k, 1.3 * k], 0.72 * k, 2.3 * k, tyre)
        body.box((-2.6 * k, -0.95 * k, 0.8 * k), (0.2 * k, 0.95 * k, 1.8 * k), machine)
        body.box((-0.9 * k, -0.75 * k, 1.7 * k), (0.6 * k, 0.75 * k, 3.0 * k), glass)
        body.box((-1.0 * k, -0.8 * k, 2.95 * k), (0.7 * k, 0.8 * k, 3.1 * k), machine)
        for side in (-1, 1):
            body.rod((0.3 * k, side * 0.6 * k, 1.5 * k), (2.6 * k, side * 0.6 * k, 0.7 * k), 0.14 * k, machine)
        body.box((2.4 * k, -1.25 * k, 0.15 * k), (3.4 * k, 1.25 * k, 1.0 * k), metal)
    elif kind == "roller":
        body.cylinder((1.4 * k, 0, 0.65 * k), 0.65 * k, 1.8 * k, metal, axis="y")
        _axles(body, [-1.3 * k], 0.65 * k, 1.8 * k, tyre)
        body.box((-2.0 * k, -0.8 * k, 0.7 * k), (0.6 * k, 0.8 * k, 1.5 * k), machine)
        body.box((0.5 * k, -1.0 * k, 0.55 * k), (2.2 * k, -0.9 * k, 0.8 * k), machine)
        body.box((0.5 * k, 0.9 * k, 0.55 * k), (2.2 * k, 1.0 * k, 0.8 * k), machine)
        body.box((-0.8 * k, -0.7 * k, 1.5 * k), (0.4 * k, 0.7 * k, 2.5 * k), glass)
        body.box((-0.9 * k, -0.8 * k, 2.5 * k), (0.5 * k, 0.8 * k, 2.65 * k), machine)
    else:
        _axles(body, [-0.9 * k, 0.8 * k], 0.42 * k, 1.3 * k, tyre)
        body.box((-1.4 * k, -0.65 * k, 0.35 * k), (0.8 * k, 0.65 * k, 1.2 * k), machine)
        body.box((-0.8 * k, -0.6 * k, 1.2 * k), (0.5 * k, 0.6 * k, 2.2 * k), glass)
        body.box((-0.9 * k, -0.65 * k, 2.2 * k), (0.6 * k, 0.65 * k, 2.3 * k), machine)
        for side in (-1, 1):
            body.box((0.8 * k, side * 0.35 - 0.06, 0.1), (0.95 * k, side * 0.35 + 0.06, 2.7 * k), metal)
            body.box((0.9 * k, side * 0.35 - 0.07, 0.1), (2.1 * k, side * 0.35 + 0.07, 0.2), metal)
    return body


_Maker = Callable[[np.random.Generator, np.random.Generator, Palette], Solids]
VEHICLES: dict[str, _Maker] = {
    "car": car,
    "truck": truck,
    "bus": bus,
    "trailer": trailer,
    "construction_vehicle": construction,
}


def vehicle(name: str, family_id: int, random: np.random.Generator, paint: Palette) -> Model:
    """A vehicle of a class.

    Args:
        name: a key of `VEHICLES`.
        family_id: asset family, from which its style follows.
        random: draws this member's size and paint.
        paint: the scene's materials.
    """
    solids = VEHICLES[name](random_for(family_id, "style", name), random, paint)
    category = {"bus": "vehicle.bus.rigid", "construction_vehicle": "vehicle.construction"}.get(
        name, f"vehicle.{name}"
    )
    if name == "bus" and random_for(family_id, "style", name).random() < 0.25:
        category = "vehicle.bus.bendy"
    return fitted(solids, category)
