"""Models of the small things that nuScenes boxes: cones, barriers, bins, debris, bicycle racks, pushable carts."""

import numpy as np

from syntheocc.worlds.families import random_for
from syntheocc.worlds.palette import Palette
from syntheocc.worlds.solids import Solids
from syntheocc.worlds.vehicles import Model, fitted

__all__ = ["barrier", "bin_or_cart", "cone", "debris", "bicycle_rack"]


def cone(family_id: int, random: np.random.Generator, paint: Palette) -> Model:
    """A traffic cone on its foot, or a slim post; with or without a reflecting band."""
    style = random_for(family_id, "style", "cone")
    height, radius = style.uniform(0.55, 1.05), style.uniform(0.14, 0.2)
    material = paint.pick("cone", random)
    body = Solids("movable_object.trafficcone")
    body.box((-1.3 * radius, -1.3 * radius, 0), (1.3 * radius, 1.3 * radius, 0.05), material)
    slim = style.random() < 0.25
    body.cylinder((0, 0, height / 2), radius * (0.6 if slim else 1), height, material, taper=0.1 if slim else 0.8)
    if style.random() < 0.7:
        wide = radius * (0.62 if slim else 0.72)
        body.cylinder((0, 0, 0.52 * height), wide, 0.18 * height, paint.pick("band"), taper=0.0 if slim else 0.2)
    return fitted(body, "movable_object.trafficcone")


def barrier(family_id: int, random: np.random.Generator, paint: Palette) -> Model:
    """Two metres or so of barrier, its length across x as nuScenes counts it: width (y) is the long side."""
    style = random_for(family_id, "style", "barrier")
    kind = ("concrete", "boards", "water", "concrete")[int(style.integers(4))]
    length, height = style.uniform(1.8, 2.6), style.uniform(0.85, 1.1)
    material = paint.pick("barrier", random)
    body = Solids("movable_object.barrier")
    if kind == "boards":
        for z in (0.45, 0.8):
            body.box((-0.06, -length / 2, z * height), (0.06, length / 2, (z + 0.2) * height), material)
        for side in (-1, 1):
            y = side * (length / 2 - 0.2)
            body.box((-0.05, y - 0.05, 0), (0.05, y + 0.05, height), paint.pick("metal", random))
            body.box((-0.28, y - 0.08, 0), (0.28, y + 0.08, 0.12), paint.pick("tyre"))
    else:
        wide = style.uniform(0.5, 0.62)
        body.box((-wide / 2, -length / 2, 0), (wide / 2, length / 2, 0.3 * height), material)
        body.box((-wide * 0.32, -length / 2, 0.25 * height), (wide * 0.32, length / 2, 0.55 * height), material)
        body.box((-wide * 0.2, -length / 2, 0.5 * height), (wide * 0.2, length / 2, height), material)
        if kind == "water":
            band = paint.pick("plastic", random)
            body.box(
                (-wide * 0.22, -length / 2 + 0.1, 0.72 * height), (wide * 0.22, length / 2 - 0.1, 0.88 * height), band
            )
    return fitted(body, "movable_object.barrier")


def bin_or_cart(family_id: int, random: np.random.Generator, paint: Palette) -> Model:
    """A wheeled bin, a container or a shopping cart: movable_object.pushable_pullable."""
    style = random_for(family_id, "style", "bin")
    kind = ("bin", "container", "bin", "cart")[int(style.integers(4))]
    body = Solids("movable_object.pushable_pullable")
    material, dark = paint.pick("plastic", random), paint.pick("tyre")
    if kind == "cart":
        metal = paint.pick("metal", random)
        body.box((-0.45, -0.28, 0.4), (0.4, 0.28, 0.95), metal)
        body.box((-0.5, -0.28, 0.12), (0.45, 0.28, 0.2), metal)
        for side in (-1, 1):
            body.rod((-0.45, side * 0.25, 0.15), (-0.5, side * 0.25, 1.05), 0.03, metal)
        body.cylinder((0.3, 0, 0.1), 0.1, 0.5, dark, axis="y")
        body.cylinder((-0.35, 0, 0.1), 0.1, 0.5, dark, axis="y")
    else:
        long, wide, high = (0.62, 0.58, 1.05) if kind == "bin" else (0.95, 1.4, 1.3)
        k = style.uniform(0.92, 1.15)
        long, wide, high = long * k, wide * k, high * k
        body.box((-long / 2, -wide / 2, 0.1), (long / 2, wide / 2, high - 0.1), material)
        body.box(
            (-long / 2 - 0.05, -wide / 2 - 0.02, high - 0.1),
            (long / 2 + 0.05, wide / 2 + 0.02, high),
            paint.pick("plastic", random),
        )
        body.cylinder((-long / 2 + 0.1, 0, 0.12), 0.12, wide * 0.95, dark, axis="y")
    return fitted(body, "movable_object.pushable_pullable")


def debris(family_id: int, random: np.random.Generator, paint: Palette) -> Model:
    """Boxes and bags that somebody left: movable_object.debris."""
    style = random_for(family_id, "style", "debris")
    body = Solids("movable_object.debris")
    for _ in range(int(style.integers(2, 5))):
        x, y, size = random.uniform(-0.5, 0.5), random.uniform(-0.5, 0.5), random.uniform(0.2, 0.42)
        if random.random() < 0.5:
            yaw = random.uniform(0, 3)
            body.box(
                (x - size, y - size * 0.7, 0),
                (x + size, y + size * 0.7, 1.2 * size),
                paint.pick("plastic", random),
                yaw,
            )
        else:
            body.ellipsoid((x, y, size * 0.75), (size, size * 0.8, size * 0.75), paint.pick("plastic", random))
    return fitted(body, "movable_object.debris")


def bicycle_rack(family_id: int, random: np.random.Generator, paint: Palette) -> Model:
    """A row of hoops: static_object.bicycle_rack."""
    style = random_for(family_id, "style", "rack")
    body = Solids("static_object.bicycle_rack")
    metal, count, gap = paint.pick("metal", random), int(style.integers(3, 6)), style.uniform(0.7, 0.95)
    for i in range(count):
        y = (i - (count - 1) / 2) * gap
        for x in (-0.4, 0.4):
            body.rod((x, y, 0), (x, y, 0.8), 0.04, metal)
        body.rod((-0.4, y, 0.8), (0.4, y, 0.8), 0.04, metal)
    return fitted(body, "static_object.bicycle_rack")
