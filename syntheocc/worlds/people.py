"""Models of pedestrians, bicycles and motorcycles, with and without riders."""

import numpy as np

from syntheocc.worlds.families import random_for
from syntheocc.worlds.palette import Palette
from syntheocc.worlds.solids import Solids
from syntheocc.worlds.vehicles import Model, fitted

__all__ = ["cycle", "pedestrian"]


def pedestrian(
    family_id: int, random: np.random.Generator, paint: Palette, walking: bool = True, worker: bool = False
) -> Model:
    """A person of legs, torso, arms and head; some carry a bag, wear a skirt, a hat or (workers) a vest and helmet.

    Args:
        family_id: asset family, from which build and stride follow.
        random: draws size and clothes.
        paint: the scene's materials.
        walking: legs and arms apart as in a step.
        worker: category human.pedestrian.construction_worker.
    """
    style = random_for(family_id, "style", "pedestrian")
    child = not worker and random.random() < 0.08
    category = "human.pedestrian." + ("construction_worker" if worker else "child" if child else "adult")
    height = random.uniform(1.05, 1.4) if child else random.uniform(1.55, 1.92)
    girth = style.uniform(0.9, 1.15) * random.uniform(0.92, 1.1) * height / 1.75
    hip, shoulder = 0.5 * height, 0.82 * height
    top, trousers = paint.pick("vest" if worker else "cloth", random), paint.pick("cloth", random)
    skin = paint.pick("skin", random)
    body = Solids(category)
    stride = height * style.uniform(0.12, 0.18) if walking else 0.02
    for side in (-1, 1):
        foot = side * stride
        body.rod((foot, side * 0.1 * girth, 0.0), (0, side * 0.09 * girth, hip + 0.05), 0.085 * girth, trousers)
        body.box(
            (foot - 0.1, side * 0.1 * girth - 0.05, 0),
            (foot + 0.16, side * 0.1 * girth + 0.05, 0.09),
            paint.pick("tyre"),
        )
        hand = (-side * stride * 0.9 + 0.05, side * 0.27 * girth, 0.47 * height)
        body.rod((0, side * 0.21 * girth, shoulder), hand, 0.06 * girth, top)
    # Shoulders are wider than the waist: a cone that stands on its narrow end.
    middle, torso = (hip + shoulder) / 2 + 0.02, shoulder - hip + 0.1
    body.cylinder((0, 0, middle), (0.15 * girth, 0.24 * girth), torso, top, taper=0.25, upside_down=True)
    if not worker and style.random() < 0.35:
        body.cylinder((0, 0, hip - 0.1 * height), (0.2 * girth, 0.24 * girth), 0.3 * height, trousers, taper=0.35)
    body.ellipsoid((0.01, 0, 0.925 * height), (0.1, 0.085, 0.075 * height), skin)
    head = "vest" if worker else "cloth"
    if worker or random.random() < 0.7:  # hair or hat
        body.ellipsoid((-0.015, 0, 0.955 * height), (0.115, 0.1, 0.045 * height), paint.pick(head, random))
    if random.random() < 0.35:
        body.box(
            (-0.34 * girth, -0.16, 0.55 * height), (-0.13 * girth, 0.16, 0.8 * height), paint.pick("cloth", random)
        )
    return fitted(body, category)


def cycle(name: str, family_id: int, random: np.random.Generator, paint: Palette, rider: bool) -> Model:
    """A bicycle or a motorcycle; the rider, if any, is part of it, as in nuScenes.

    Args:
        name: "bicycle" or "motorcycle".
        family_id: asset family, from which proportions follow.
        random: draws size and paint.
        paint: the scene's materials.
        rider: whether somebody sits on it.
    """
    style = random_for(family_id, "style", name)
    category = f"vehicle.{name}"
    body = Solids(category)
    k = style.uniform(0.94, 1.06) * random.uniform(0.97, 1.03)
    lacquer, tyre, metal = paint.pick("lacquer", random), paint.pick("tyre"), paint.pick("metal", random)
    heavy = name == "motorcycle"
    radius, base = (0.31 * k, 0.68 * k) if heavy else (0.34 * k, 0.52 * k)
    for x in (-base, base):
        body.cylinder((x, 0, radius), radius, 0.16 if heavy else 0.07, tyre, axis="y")
    bar, seat = ((0.42 * k, 1.02 * k), (-0.3 * k, 0.8 * k)) if heavy else ((0.4 * k, 1.0 * k), (-0.2 * k, 0.92 * k))
    body.rod((base, 0, radius), (bar[0], 0, bar[1]), 0.06 if heavy else 0.035, metal)
    body.cylinder((bar[0] - 0.03, 0, bar[1]), 0.035, (0.75 if heavy else 0.56) * k, metal, axis="y")
    if heavy:
        body.box((-0.35 * k, -0.17, 0.25 * k), (0.32 * k, 0.17, 0.6 * k), metal)
        body.ellipsoid((0.15 * k, 0, 0.78 * k), (0.32 * k, 0.17, 0.17 * k), lacquer)
        body.box((-0.72 * k, -0.14, 0.66 * k), (-0.05 * k, 0.14, 0.8 * k), paint.pick("tyre"))
        body.box((base - 0.3 * k, -0.12, 2 * radius), (base + 0.12 * k, 0.12, 2 * radius + 0.06), lacquer)
        body.box((bar[0] + 0.02, -0.09, bar[1] - 0.2), (bar[0] + 0.12, 0.09, bar[1] - 0.02), paint.pick("headlamp"))
        if style.random() < 0.4:
            body.box((-0.95 * k, -0.2, 0.8 * k), (-0.6 * k, 0.2, 1.1 * k), paint.pick("plastic", random))
    else:
        crank = (-0.05 * k, 0, 0.3 * k)
        body.rod(crank, (seat[0], 0, seat[1]), 0.03, lacquer)
        body.rod(crank, (bar[0] - 0.03, 0, bar[1] - 0.2), 0.035, lacquer)
        body.rod((seat[0], 0, seat[1] - 0.2), (bar[0] - 0.03, 0, bar[1] - 0.18), 0.03, lacquer)
        body.rod((-base, 0, radius), crank, 0.03, metal)
        body.rod((-base, 0, radius), (seat[0], 0, seat[1] - 0.15), 0.025, metal)
        body.box((seat[0] - 0.14, -0.08, seat[1]), (seat[0] + 0.14, 0.08, seat[1] + 0.07), tyre)
        if style.random() < 0.35:
            body.box((base - 0.05, -0.18, 0.75 * k), (base + 0.3, 0.18, 1.0 * k), paint.pick("metal", random))
    if rider:
        _rider(body, bar, seat, heavy, random, paint)
    return fitted(body, category)


def _rider(body: Solids, bar, seat, heavy: bool, random: np.random.Generator, paint: Palette) -> None:
    top, trousers = paint.pick("cloth", random), paint.pick("cloth", random)
    hip = (seat[0], seat[1] + 0.12)
    neck = (seat[0] + (0.2 if heavy else 0.28), hip[1] + 0.56)
    body.rod((hip[0], 0, hip[1] - 0.1), (neck[0], 0, neck[1]), 0.19, top, taper=0.1)
    for side in (-1, 1):
        knee = (hip[0] + 0.4, side * 0.17, hip[1] - 0.12 - 0.1 * (side > 0))
        foot = (hip[0] + 0.18, side * 0.17, (0.32 if heavy else 0.22) + 0.08 * (side < 0))
        body.rod((hip[0], side * 0.1, hip[1]), knee, 0.09, trousers)
        body.rod(knee, foot, 0.075, trousers)
        body.rod((neck[0], side * 0.2, neck[1] - 0.08), (bar[0] - 0.05, side * 0.24, bar[1] + 0.05), 0.06, top)
    body.ellipsoid((neck[0] + 0.06, 0, neck[1] + 0.2), (0.13, 0.11, 0.15), paint.pick("skin", random))
    helmet = "plastic" if heavy or random.random() < 0.5 else "cloth"
    body.ellipsoid((neck[0] + 0.03, 0, neck[1] + 0.27), (0.16, 0.14, 0.12), paint.pick(helmet, random))
