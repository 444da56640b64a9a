"""What things are painted with: pools of materials that a scene draws from, by use.

Class is not colour: the pools overlap on purpose. Grey asphalt covers roads, sidewalks, yards and flat roofs; concrete
is sidewalk, wall, barrier and traffic island; the same lacquers are on cars, bins, doors, jackets and posters; a wall
may carry a poster in the colours of leaves. Colours are linear RGB, 0..1.
"""

import colorsys

import numpy as np

from syntheocc.worlds.families import TEXTURE_LOOKS
from syntheocc.worlds.materials import VARIANTS, Material

__all__ = ["USES", "Palette"]

Color = tuple[float, float, float]


def _grey(random: np.random.Generator, low: float, high: float, tint: float = 0.06) -> Color:
    value = random.uniform(low, high)
    red, green, blue = (float(np.clip(value * (1 + random.uniform(-tint, tint)), 0, 1)) for _ in range(3))
    return red, green, blue


def _hue(random: np.random.Generator, hue: tuple[float, float], saturation, value) -> Color:
    rgb = colorsys.hsv_to_rgb(random.uniform(*hue) % 1.0, random.uniform(*saturation), random.uniform(*value))
    # HSV is chosen by eye, that is in sRGB; 2.2 makes it linear.
    red, green, blue = (float(channel**2.2) for channel in rgb)
    return red, green, blue


def _any(random: np.random.Generator) -> Color:
    """Any colour that things are lacquered, dyed or printed in; greys as often as on real cars."""
    if random.random() < 0.5:
        return _grey(random, 0.015, 0.75, 0.04)
    return _hue(random, (0, 1), (0.3, 0.95), (0.2, 0.95))


def _earth(random: np.random.Generator) -> Color:
    return _hue(random, (0.05, 0.14), (0.15, 0.5), (0.3, 0.75))


def _green(random: np.random.Generator) -> Color:
    """Leaves and grass: greens, and autumn's yellow, red and brown."""
    hue = (0.2, 0.36) if random.random() < 0.7 else (0.03, 0.17)
    return _hue(random, hue, (0.3, 0.8), (0.25, 0.6))


# use -> alternatives: (weight, pattern, first colour, second colour, scale_m, roughness, reflectivity)
_GREY_DARK = lambda r: _grey(r, 0.03, 0.16)  # noqa: E731
_GREY_MID = lambda r: _grey(r, 0.12, 0.4)  # noqa: E731
_GREY_LIGHT = lambda r: _grey(r, 0.35, 0.8)  # noqa: E731
_BRICK = lambda r: _hue(r, (0.0, 0.1), (0.3, 0.7), (0.35, 0.75))  # noqa: E731
_PANE = lambda r: _hue(r, (0.5, 0.65), (0.1, 0.5), (0.12, 0.4))  # noqa: E731
_ORANGE = lambda r: _hue(r, (0.02, 0.11), (0.75, 1.0), (0.75, 1.0))  # noqa: E731
_PASTEL = lambda r: _hue(r, (0, 1), (0.08, 0.4), (0.4, 0.95))  # noqa: E731
_WALL = lambda r: [_GREY_MID, _GREY_LIGHT, _BRICK, _earth, _PASTEL][int(r.integers(5))](r)  # noqa: E731

_ASPHALT = (3, "asphalt", _GREY_DARK, _GREY_MID, 4.0, 0.85, 0.12)
_CONCRETE = (2, "noise", _GREY_MID, _GREY_LIGHT, 5.0, 0.9, 0.3)
_SLABS = (2, "slabs", _GREY_MID, _GREY_DARK, 3.0, 0.9, 0.3)
_PAVERS = (1, "bricks", _BRICK, _GREY_MID, 2.0, 0.9, 0.3)
_GRASS = (3, "grass", _green, _earth, 4.0, 1.0, 0.4)
_LACQUER = (4, "plain", _any, _any, 2.0, 0.25, 0.35)
_POSTER = (1, "poster", _any, _any, 3.0, 0.5, 0.4)

USES: dict[str, tuple[tuple, ...]] = {
    "road": ((8, *_ASPHALT[1:]), (1, *_SLABS[1:]), (1, *_CONCRETE[1:])),
    "patch": (_ASPHALT, _CONCRETE, _SLABS),
    "lane_paint": (
        (4, "paint", lambda r: _grey(r, 0.55, 0.85), _GREY_DARK, 3.0, 0.7, 0.7),
        (1, "paint", lambda r: _hue(r, (0.1, 0.15), (0.5, 0.9), (0.7, 0.95)), _GREY_DARK, 3.0, 0.7, 0.7),
    ),
    "sidewalk": (
        _SLABS,
        _PAVERS,
        (2, *_ASPHALT[1:]),
        _CONCRETE,
        (1, "checker", _GREY_MID, _GREY_LIGHT, 2.4, 0.9, 0.3),
    ),
    "curb": (_CONCRETE, (1, "plain", _GREY_LIGHT, None, 1.0, 0.9, 0.35)),
    "terrain": (
        (4, *_GRASS[1:]),
        (2, "noise", _earth, _GREY_MID, 6.0, 1.0, 0.35),
        (1, "leaves", _green, _earth, 3.0, 1.0, 0.4),
        (1, "asphalt", _earth, _GREY_MID, 3.0, 1.0, 0.3),
    ),
    "other_flat": (
        _SLABS,
        _PAVERS,
        _CONCRETE,
        _ASPHALT,
        (1, *_GRASS[1:]),
        (1, "paint", _any, _GREY_DARK, 4.0, 0.8, 0.4),
    ),
    "facade": (
        (6, "windows", _WALL, _PANE, 12.0, 0.75, 0.35),
        (2, "bricks", _BRICK, _GREY_LIGHT, 3.0, 0.9, 0.35),
        (2, "noise", _WALL, None, 8.0, 0.9, 0.35),
        (1, "stripes", _WALL, _WALL, 3.0, 0.7, 0.35),
        (1, "checker", _WALL, _WALL, 6.0, 0.7, 0.35),
        (0.5, "leaves", _green, _earth, 5.0, 1.0, 0.4),
    ),
    "roof": ((2, "stripes", _BRICK, _GREY_DARK, 1.5, 0.8, 0.25), _ASPHALT, _CONCRETE, (1, *_GRASS[1:])),
    "wall": (_CONCRETE, _PAVERS, _POSTER, (1, "plain", _WALL, None, 2.0, 0.9, 0.35), (1, *_SLABS[1:])),
    "fence": (
        (2, "stripes", _earth, _GREY_DARK, 1.0, 0.9, 0.3),
        (1, "checker", _GREY_MID, _any, 1.5, 0.6, 0.4),
        _LACQUER,
    ),
    "poster": (_POSTER,),
    "sign": ((2, "poster", _any, _any, 1.2, 0.5, 1.4), (1, "plain", _any, None, 1.0, 0.4, 1.4)),
    "lacquer": (_LACQUER, (1, "noise", _any, None, 4.0, 0.3, 0.35)),
    "cargo": (
        (3, *_LACQUER[1:]),
        (2, *_POSTER[1:]),
        (1, "stripes", _any, _any, 1.5, 0.5, 0.4),
        (1, "noise", _any, _any, 4.0, 0.8, 0.3),
    ),
    "coach": (
        (2, *_LACQUER[1:]),
        (2, "poster", _any, _any, 5.0, 0.35, 0.4),
        (1, "stripes", _any, _any, 4.0, 0.35, 0.4),
    ),
    "machine": ((2, "plain", _ORANGE, None, 2.0, 0.5, 0.35), (1, *_LACQUER[1:])),
    "glass": ((1, "plain", _PANE, None, 2.0, 0.08, 0.06),),
    "tyre": ((1, "plain", lambda r: _grey(r, 0.012, 0.05), None, 1.0, 0.9, 0.08),),
    "metal": (
        (2, "plain", _GREY_MID, None, 2.0, 0.45, 0.45),
        (1, "plain", _GREY_LIGHT, None, 2.0, 0.4, 0.5),
        (1, *_LACQUER[1:]),
    ),
    "leaves": ((1, "leaves", _green, _green, 2.5, 1.0, 0.45),),
    "bark": ((1, "noise", _earth, _GREY_MID, 1.0, 1.0, 0.3), (1, "stripes", _earth, _GREY_DARK, 0.6, 1.0, 0.3)),
    "cloth": (
        (3, "plain", _any, None, 1.0, 1.0, 0.4),
        (1, "checker", _any, _any, 0.5, 1.0, 0.4),
        (1, "stripes", _any, _any, 0.5, 1.0, 0.4),
        (1, "noise", _any, _any, 0.8, 1.0, 0.4),
    ),
    "skin": ((1, "plain", lambda r: _hue(r, (0.03, 0.08), (0.25, 0.6), (0.3, 0.95)), None, 1.0, 0.8, 0.4),),
    "vest": ((1, "plain", lambda r: _hue(r, (0.05, 0.22), (0.8, 1.0), (0.8, 1.0)), None, 1.0, 0.9, 1.2),),
    "cone": (
        (3, "plain", _ORANGE, None, 1.0, 0.6, 0.6),
        (2, "plain", _any, None, 1.0, 0.6, 0.6),
        (1, "noise", _GREY_MID, _ORANGE, 1.0, 0.8, 0.3),
    ),
    "band": ((1, "plain", _GREY_LIGHT, None, 1.0, 0.5, 1.4),),
    "barrier": (
        (3, *_CONCRETE[1:]),
        (2, "stripes", _GREY_LIGHT, _ORANGE, 0.8, 0.6, 0.8),
        (2, *_LACQUER[1:]),
        (1, *_POSTER[1:]),
        (1, *_PAVERS[1:]),
    ),
    "plastic": (
        (3, "plain", _any, None, 1.0, 0.6, 0.35),
        (1, *_POSTER[1:]),
        (1, "noise", _any, _GREY_MID, 1.0, 0.9, 0.3),
    ),
}  # fmt: skip
# How many materials of a use a scene has, 3 unless told.
_POOL = {"road": 2, "lane_paint": 1, "curb": 1, "glass": 2, "tyre": 1, "skin": 4, "vest": 2, "band": 1}
_POOL |= {"facade": 9, "lacquer": 10, "cloth": 12, "leaves": 5, "plastic": 5, "cargo": 5, "barrier": 3, "sign": 4}
_LAMPS = {"headlamp": (1.0, 0.95, 0.85), "taillamp": (0.8, 0.03, 0.02), "lamp": (1.0, 0.85, 0.6)}
_LAMPS |= {"red_light": (0.9, 0.03, 0.02), "green_light": (0.02, 0.7, 0.25)}


class Palette:
    """The materials of one scene; `pick(use)` gives an index into `materials`.

    Args:
        random: the stream that everything is drawn from.
        split: its texture looks are the only ones used.
    """

    def __init__(self, random: np.random.Generator, split: str):
        self.materials: list[Material] = []
        self._random, self._looks = random, TEXTURE_LOOKS[split]
        self._pools: dict[str, list[int]] = {}

    def _add(self, material: Material) -> int:
        self.materials.append(material)
        return len(self.materials) - 1

    def _make(self, use: str) -> int:
        random = self._random
        alternatives = USES[use]
        weights = np.array([row[0] for row in alternatives], dtype=np.float64)
        _, pattern, first, second, scale, roughness, reflectivity = alternatives[
            int(random.choice(len(alternatives), p=weights / weights.sum()))
        ]
        look = int(random.choice(self._looks))
        base = first(random)
        return self._add(
            Material(
                base_color=base,
                second_color=second(random) if second else None,
                pattern=pattern,
                scale_m=float(scale * random.uniform(0.8, 1.25)),
                roughness=float(np.clip(roughness * random.uniform(0.8, 1.15), 0.03, 1)),
                reflectivity=float(reflectivity * random.uniform(0.7, 1.3)),
                seed=int(random.integers(1000)) * VARIANTS + look,
                name=use,
            )
        )

    def pool(self, use: str) -> list[int]:
        """Indices of all materials of a use, made at the first call."""
        if use not in self._pools:
            if use in _LAMPS:
                lamp = Material(_LAMPS[use], roughness=0.3, reflectivity=0.9, emission=1.0, name=use)
                self._pools[use] = [self._add(lamp)]
            else:
                self._pools[use] = [self._make(use) for _ in range(_POOL.get(use, 3))]
        return self._pools[use]

    def pick(self, use: str, random: np.random.Generator | None = None) -> int:
        """One material of a use, drawn with `random` (the palette's own stream when left out)."""
        pool = self.pool(use)
        return int(pool[int((random or self._random).integers(len(pool)))])
