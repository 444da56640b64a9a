"""What stands in the world for good: buildings, trees, walls, lamps, traffic lights, signs and street furniture.

Each function adds solids in a local frame: origin on the ground, z up, x along the street where that matters.
Everything reaches a little below z = 0, because the ground under it slopes. Style follows from an asset family.

A solid with the label "free" is a cavity: it lies wholly inside another solid, so that no ray ever meets it, and tells
the labels that a building is hollow.
"""

import numpy as np

from syntheocc.worlds.families import random_for
from syntheocc.worlds.palette import Palette
from syntheocc.worlds.solids import Solids

__all__ = ["building", "bus_stop", "bush", "fence", "furniture", "hedge", "lamp", "sign", "traffic_light", "tree"]

_DEEP = 2.0  # metres that walls reach below the ground at their middle
_WALL = 0.45  # thickness of walls, metres


def _block(solids: Solids, low, high, material: int) -> None:
    """A hollow block: the solid, and the room inside."""
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    solids.box(low, high, material)
    if (high - low).min() > 3 * _WALL:
        category, label = solids.category, solids.label
        solids.category, solids.label = 0, 0
        solids.box(low + _WALL, high - _WALL, material)
        solids.category, solids.label = category, label


def building(
    solids: Solids, family_id: int, size: tuple[float, float], random: np.random.Generator, paint: Palette
) -> None:
    """A house of several parts.

    Args:
        solids: where it goes; its local frame has the house's middle as origin and the street towards -y.
        family_id: asset family, from which its style follows.
        size: along the street (x) and away from it (y), metres.
        random: draws this member's storeys and paint.
        paint: the scene's materials.
    """
    style = random_for(family_id, "style", "building")
    kind = ("block", "house", "shop", "tower", "hall", "terrace")[int(style.integers(6))]
    storey = style.uniform(2.8, 3.6)
    floors = {"block": (3, 6), "house": (1, 3), "shop": (1, 3), "tower": (7, 14), "hall": (2, 3), "terrace": (2, 4)}[
        kind
    ]
    height = storey * int(random.integers(*floors))
    half_x, half_y = size[0] / 2, size[1] / 2
    solids.use("static.manmade")
    facade, roof, glass = paint.pick("facade", random), paint.pick("roof", random), paint.pick("glass", random)
    _block(solids, (-half_x, -half_y, -_DEEP), (half_x, half_y, height), facade)
    if kind in ("house", "terrace"):
        # A gable roof: a box on its edge, sunk into the house so that only its upper half shows.
        rise = style.uniform(0.25, 0.42) * half_y
        for side in (-1, 1):
            slope = float(np.arctan2(rise, half_y))
            middle = (0.0, side * half_y / 2, height + rise / 2)
            half = (half_x + 0.3, np.hypot(half_y, rise) / 2 + 0.25, 0.12)
            turn = np.array(
                [[1, 0, 0], [0, np.cos(slope), side * np.sin(slope)], [0, -side * np.sin(slope), np.cos(slope)]]
            )
            solids.oriented_box(middle, half, turn, roof)
        for side in (-1, 1):
            solids.box(
                (side * half_x - 0.15, -half_y * 0.5, height),
                (side * half_x + 0.15, half_y * 0.5, height + rise * 0.5),
                facade,
            )
        chimney = half_x * random.uniform(-0.6, 0.6)
        solids.box((chimney - 0.4, 0.3, height), (chimney + 0.4, 1.1, height + rise + 0.8), paint.pick("wall", random))
    else:
        solids.box((-half_x - 0.15, -half_y - 0.15, height), (half_x + 0.15, half_y + 0.15, height + 0.3), roof)
        for _ in range(int(random.integers(0, 3))):
            x, y = half_x * random.uniform(-0.7, 0.7), half_y * random.uniform(-0.7, 0.7)
            solids.box(
                (x - 1.2, y - 1.0, height),
                (x + 1.2, y + 1.0, height + random.uniform(1.0, 2.4)),
                paint.pick("metal", random),
            )
    front = -half_y
    if kind == "shop":
        solids.box((-half_x + 0.4, front - 0.04, 0.4), (half_x - 0.4, front + 0.1, 2.4), glass)
        solids.box((-half_x + 0.2, front - 1.1, 2.6), (half_x - 0.2, front + 0.1, 2.85), paint.pick("cargo", random))
    elif kind in ("block", "tower"):
        wing = half_x * random.uniform(0.3, 0.6)
        x = random.uniform(-half_x + wing, half_x - wing)
        _block(
            solids,
            (x - wing, front - 0.8, -_DEEP),
            (x + wing, front + 0.5, height * random.uniform(0.5, 1.05)),
            paint.pick("facade", random),
        )
        for level in range(1, min(int(height / storey), 4)):
            x = random.uniform(-half_x + 1.5, half_x - 1.5)
            solids.box(
                (x - 1.3, front - 1.2, level * storey),
                (x + 1.3, front, level * storey + 1.0),
                paint.pick("wall", random),
            )
    elif kind == "hall":
        for i in range(int(random.integers(1, 4))):
            x = -half_x + (i + 0.5) * 2 * half_x / 4
            solids.box((x - 1.6, front - 0.06, 0), (x + 1.6, front + 0.1, 3.0), paint.pick("lacquer", random))
    door = random.uniform(-0.8, 0.8) * half_x
    solids.box((door - 0.55, front - 0.07, -0.3), (door + 0.55, front + 0.1, 2.15), paint.pick("lacquer", random))
    if random.random() < 0.45:
        x, z = half_x * random.uniform(-0.6, 0.6), random.uniform(2.6, max(2.7, height - 1.5))
        reach = random.uniform(0.8, 2.2)
        solids.box(
            (x - reach, front - 0.12, z - 0.5),
            (x + reach, front + 0.1, z + random.uniform(0.3, 2.0)),
            paint.pick("poster", random),
        )
    if kind in ("house", "terrace", "hall") and random.random() < 0.6:  # an annexe beside or behind
        x0 = half_x * (0.3 if random.random() < 0.5 else -0.95)
        top = (x0 + 0.65 * half_x, half_y + 2.5, height * 0.55)
        _block(solids, (x0, half_y - 0.5, -_DEEP), top, paint.pick("facade", random))


def tree(solids: Solids, family_id: int, random: np.random.Generator, paint: Palette, simple: bool = False) -> None:
    """A broad-leaved tree, a conifer, a poplar or a palm; `simple` leaves out the smaller boughs."""
    style = random_for(family_id, "style", "tree")
    kind = ("round", "spread", "conifer", "poplar", "round", "palm")[int(style.integers(6))]
    k = random.uniform(0.8, 1.3)
    leaves, bark = paint.pick("leaves", random), paint.pick("bark", random)
    solids.use("static.vegetation")
    trunk = style.uniform(0.13, 0.26) * k
    if kind == "conifer":
        height = style.uniform(6, 10) * k
        solids.cylinder((0, 0, 0.5), trunk, 3.0, bark)
        for i in range(1 if simple else 3):
            z0 = height * (0.12 + 0.24 * i)
            radius = 0.26 * height * (1 - 0.26 * i)
            solids.cylinder(
                (0, 0, z0 + 0.21 * height), radius, 0.42 * height * (2 if simple else 1), leaves, taper=1.0
            )
    elif kind == "palm":
        height = style.uniform(4.5, 7) * k
        solids.rod((0, 0, -1), (0.3, 0.1, height), trunk * 0.8, bark, taper=0.2)
        for angle in np.arange(1 if simple else 4) * np.pi / 4 + random.uniform(0, 1):
            solids.ellipsoid((0.3, 0.1, height), (2.2, 2.0 if simple else 0.42, 0.28), leaves, float(angle))
    elif kind == "poplar":
        height = style.uniform(7, 11) * k
        solids.cylinder((0, 0, 1.0), trunk, 4.0, bark)
        solids.ellipsoid((0, 0, height * 0.54), (1.5 * k, 1.5 * k, height * 0.46), leaves)
    else:
        bole, radius = style.uniform(1.5, 2.2) * k, style.uniform(2.0, 2.9) * k
        solids.cylinder((0, 0, bole / 2), trunk, bole + 2.0, bark, taper=0.25)
        flat = 0.65 if kind == "spread" else 0.9
        if simple:
            solids.ellipsoid((0, 0, bole + radius * flat * 0.8), (radius, radius, radius * flat), leaves)
            return
        # A core and four boughs of about its size, so that no crown is a ball.
        core = 0.78 * radius
        solids.ellipsoid((0, 0, bole + core * flat), (core, core, core * flat), leaves)
        turn = random.uniform(0, 2 * np.pi)
        for i in range(4):
            angle, part = turn + i * np.pi / 2 + random.uniform(-0.4, 0.4), random.uniform(0.42, 0.68) * radius
            away = random.uniform(0.4, 0.65) * radius
            z = bole + core * flat * random.uniform(0.5, 1.9)
            radii = (part, part * random.uniform(0.8, 1.2), part * flat)
            solids.ellipsoid((away * np.cos(angle), away * np.sin(angle), z), radii, leaves, float(angle))


def bush(solids: Solids, random: np.random.Generator, paint: Palette, simple: bool = False) -> None:
    """A shrub of one or two ellipsoids, 0.6 to 1.6 m high."""
    solids.use("static.vegetation")
    k = random.uniform(0.6, 1.2)
    for _ in range(1 if simple else 2):
        x, y = random.uniform(-0.5, 0.5, 2) * k
        solids.ellipsoid(
            (x, y, 0.5 * k), (0.95 * k, 0.85 * k, 0.8 * k), paint.pick("leaves", random), random.uniform(0, 3)
        )


def hedge(solids: Solids, length: float, random: np.random.Generator, paint: Palette) -> None:
    """A cut hedge along x."""
    solids.use("static.vegetation")
    half, height = random.uniform(0.3, 0.6), random.uniform(0.8, 1.9)
    solids.box((-length / 2, -half, -1), (length / 2, half, height), paint.pick("leaves", random))


def fence(solids: Solids, length: float, random: np.random.Generator, paint: Palette) -> None:
    """A wall or a fence along x, with posts."""
    solids.use("static.manmade")
    if random.random() < 0.5:
        material, height = paint.pick("wall", random), random.uniform(0.7, 2.2)
        solids.box((-length / 2, -0.15, -1), (length / 2, 0.15, height), material)
    else:
        material, height = paint.pick("fence", random), random.uniform(0.9, 1.8)
        solids.box((-length / 2, -0.03, 0.1), (length / 2, 0.03, height), material)
        for x in np.linspace(-length / 2, length / 2, max(2, int(length / 2.5))):
            solids.box((x - 0.06, -0.07, -1), (x + 0.06, 0.07, height + 0.1), paint.pick("metal", random))


def lamp(solids: Solids, family_id: int, random: np.random.Generator, paint: Palette) -> None:
    """A street lamp whose arm reaches over the road, towards -y."""
    style = random_for(family_id, "style", "lamp")
    height, arm = style.uniform(5.0, 8.5), style.uniform(0.6, 2.2)
    metal = paint.pick("metal", random)
    solids.use("static.manmade")
    solids.cylinder((0, 0, height / 2 - 0.5), 0.1, height + 1.0, metal, taper=0.3)
    solids.rod((0, 0, height), (0, -arm, height + 0.15), 0.06, metal)
    solids.box((-0.16, -arm - 0.45, height + 0.08), (0.16, -arm + 0.2, height + 0.22), metal)
    solids.box((-0.13, -arm - 0.4, height + 0.03), (0.13, -arm + 0.1, height + 0.08), paint.pick("lamp"))


def traffic_light(solids: Solids, green: bool, random: np.random.Generator, paint: Palette) -> None:
    """A traffic light whose lamps look towards -x (the traffic that drives along x) and whose mast reaches to +y."""
    metal, dark = paint.pick("metal", random), paint.pick("tyre")
    solids.use("static.manmade")
    reach = random.uniform(2.0, 4.0) if random.random() < 0.5 else 0.0
    height = 5.6 if reach else 3.2
    solids.cylinder((0, 0, height / 2 - 0.5), 0.09, height + 1.0, metal)
    if reach:
        solids.rod((0, 0, height), (0, reach, height), 0.06, metal)
    solids.box((-0.16, reach - 0.18, height - 0.95), (0.12, reach + 0.18, height + 0.15), dark)
    z = height - 0.75 if green else height - 0.05
    solids.cylinder((-0.17, reach, z), 0.12, 0.06, paint.pick("green_light" if green else "red_light"), axis="x")


def sign(solids: Solids, family_id: int, random: np.random.Generator, paint: Palette) -> None:
    """A road sign or a large guide board, facing -x."""
    style = random_for(family_id, "style", "sign")
    metal, plate = paint.pick("metal", random), paint.pick("sign", random)
    solids.use("static.manmade")
    kind = ("round", "square", "guide", "round")[int(style.integers(4))]
    height = style.uniform(2.3, 3.0)
    if kind == "guide":
        half = style.uniform(0.8, 1.3)
        for y in (-0.7 * half, 0.7 * half):
            solids.cylinder((0, y, height / 2), 0.06, height + 1.0, metal)
        solids.box((-0.1, -half, height - 0.3), (-0.04, half, height + 0.7), plate)
        return
    solids.cylinder((0, 0, height / 2 - 0.5), 0.04, height + 1.0, metal)
    if kind == "round":
        solids.cylinder((-0.06, 0, height - 0.35), 0.35, 0.04, plate, axis="x")
    else:
        solids.box((-0.08, -0.32, height - 0.7), (-0.03, 0.32, height - 0.05), plate)


def bus_stop(solids: Solids, random: np.random.Generator, paint: Palette) -> None:
    """A shelter that opens towards -y, 3.6 m along x."""
    glass, metal = paint.pick("glass", random), paint.pick("metal", random)
    solids.use("static.manmade")
    solids.box((-1.8, 0.55, 0.2), (1.8, 0.62, 2.3), glass)
    solids.box((-1.9, -0.75, 2.3), (1.9, 0.75, 2.42), metal)
    for x in (-1.75, 1.75):
        solids.box((x - 0.05, 0.5, -1), (x + 0.05, 0.65, 2.35), metal)
    solids.box((1.7, -0.4, 0.3), (1.8, 0.6, 2.2), paint.pick("poster", random))
    solids.box((-1.2, 0.1, 0.4), (1.2, 0.5, 0.5), paint.pick("fence", random))


def furniture(solids: Solids, family_id: int, random: np.random.Generator, paint: Palette) -> None:
    """A bench, a letter box, a street cabinet, a planter, a litter bin on a post: "others" or manmade."""
    kind = ("bench", "letter_box", "cabinet", "planter", "litter_bin")[int(random.integers(5))]
    k = random_for(family_id, "style", "furniture").uniform(0.85, 1.2)
    if kind == "cabinet":
        solids.use("static.manmade").box(
            (-0.5 * k, -0.25, -0.5), (0.5 * k, 0.25, 1.2 * k), paint.pick("plastic", random)
        )
        return
    solids.use("static.other")
    if kind == "bench":
        solids.box((-0.85 * k, -0.25, 0.38), (0.85 * k, 0.25, 0.46), paint.pick("fence", random))
        solids.box((-0.85 * k, 0.2, 0.45), (0.85 * k, 0.27, 0.85), paint.pick("fence", random))
        for x in (-0.7 * k, 0.7 * k):
            solids.box((x - 0.06, -0.22, -0.3), (x + 0.06, 0.22, 0.4), paint.pick("metal", random))
    elif kind == "letter_box":
        solids.box((-0.3, -0.25, -0.3), (0.3, 0.25, 1.3 * k), paint.pick("lacquer", random))
    elif kind == "planter":
        solids.box((-0.7 * k, -0.45, -0.3), (0.7 * k, 0.45, 0.6), paint.pick("wall", random))
        solids.use("static.vegetation").ellipsoid((0, 0, 0.75), (0.65 * k, 0.4, 0.4), paint.pick("leaves", random))
    else:
        solids.cylinder((0, 0, 0.2), 0.24 * k, 1.5, paint.pick("plastic", random))
