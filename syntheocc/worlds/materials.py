"""Surface materials: colours, a texture pattern, and what the lidar and the lamps need to know.

A material is a row of numbers; what its pattern looks like lies in `syntheocc.worlds.textures`. Colours are linear
(not sRGB) and 0..1.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

# The index is the pattern's row in the texture atlas.
PATTERNS = (
    "plain",
    "noise",
    "bricks",
    "stripes",
    "windows",
    "poster",
    "leaves",
    "checker",
    "asphalt",
    "paint",
    "slabs",
    "grass",
)
# Looks of one pattern in the texture atlas; a material's seed picks one and its offset.
VARIANTS = 6


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    Args:
        base_color: linear RGB where the pattern is 0.
        second_color: linear RGB where the pattern is 1 (mortar, panes, print, dead leaves); None: 0.7 of the base.
        pattern: one of `PATTERNS`.
        scale_m: metres that one repetition of the pattern's texture covers (walls with "windows": four storeys of
            four windows, so 12 gives storeys of 3 m).
        roughness: 1 is matt, 0 a mirror; below about 0.5 the sky is seen in it.
        reflectivity: share of a lidar pulse that a perpendicular surface sends back, 0..1 (above 1: retroreflectors).
        emission: brightness of its own at night (lamps, lit signs), 0 for nearly everything.
        seed: which look of the pattern, and where on it the surface lies.

    Raises:
        ValueError: an unknown pattern, colours that are no triples in 0..1, a scale that is not positive.
    """

    base_color: tuple[float, float, float]
    second_color: tuple[float, float, float] | None = None
    pattern: str = "plain"
    scale_m: float = 2.0
    roughness: float = 0.9
    reflectivity: float = 0.3
    emission: float = 0.0
    seed: int = 0
    name: str = field(default="", compare=False)

    def __post_init__(self):
        object.__setattr__(self, "base_color", tuple(float(value) for value in self.base_color))
        second = tuple(float(value) for value in self.second_color or (0.7 * value for value in self.base_color))
        object.__setattr__(self, "second_color", second)
        for color in (self.base_color, second):
            if len(color) != 3 or not all(0 <= value <= 1 for value in color):
                raise ValueError(f"material {self.name!r}: a colour is three numbers in 0..1, got {color}")
        if self.pattern not in PATTERNS:
            raise ValueError(f"material {self.name!r}: pattern must be one of {PATTERNS}, got {self.pattern!r}")
        if not (math.isfinite(self.scale_m) and self.scale_m > 0):
            raise ValueError(f"material {self.name!r}: scale_m must be positive, got {self.scale_m}")


# Columns of `material_table`.
BASE, SECOND, SCALE, ROUGHNESS, REFLECTIVITY, EMISSION, LAYER, OFFSET = 0, 3, 6, 7, 8, 9, 10, 11
COLUMNS = 13


def material_table(materials: list[Material] | tuple[Material, ...]) -> Tensor:
    """float32 [M, 13]: base and second rgb, 1 / scale_m, roughness, reflectivity, emission, atlas layer, offset uv."""
    rows = []
    for material in materials:
        layer = PATTERNS.index(material.pattern) * VARIANTS + material.seed % VARIANTS
        # A low-discrepancy walk: neighbouring seeds lie on far apart places of the texture.
        offset = ((material.seed * 0.7548776662) % 1.0, (material.seed * 0.5698402910) % 1.0)
        if material.pattern in ("windows", "poster"):
            offset = (0.0, 0.0)
        rows.append(
            (
                *material.base_color,
                *(material.second_color or material.base_color),
                1 / material.scale_m,
                material.roughness,
                material.reflectivity,
                material.emission,
                layer,
                *offset,
            )
        )
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, COLUMNS)
