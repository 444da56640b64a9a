"""What to draw of a grid and in which colours: classes, instances, errors. Legend: X Y Z voxels, N ids."""

from __future__ import annotations

import colorsys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from syntheocc.occupancy.pictures.basics import UNKNOWN_COLOR, to_array
from syntheocc.occupancy.taxonomy import UNKNOWN

if TYPE_CHECKING:
    from syntheocc.occupancy.grids import OccupancyGrid

__all__ = [
    "ERROR_COLORS",
    "VoxelColors",
    "class_colors",
    "error_colors",
    "instance_color",
    "panoptic_colors",
]

# Told apart in grey print and by most colour-blind readers (after Okabe and Ito 2008).
ERROR_COLORS = {
    "agree": (190, 198, 190),
    "other class": (240, 190, 40),
    "missed": (0, 100, 190),
    "invented": (213, 60, 20),
}
_GOLDEN = 0.6180339887498949


class VoxelColors(NamedTuple):
    """What an occupancy picture shows.

    Args:
        drawn: bool [X, Y, Z], which voxels are solid in the picture.
        colors: uint8 [X, Y, Z, 3], meaningful where drawn.
    """

    drawn: np.ndarray
    colors: np.ndarray


def class_colors(grid: OccupancyGrid, unknown: bool = False) -> VoxelColors:
    """Every occupied voxel in its class's colour of the taxonomy's palette; with `unknown` also 255, in grey."""
    labels = to_array(grid.labels)
    table = grid.taxonomy.colors()
    table[grid.taxonomy.num_classes :] = UNKNOWN_COLOR
    drawn = labels != grid.taxonomy.free
    return VoxelColors(drawn if unknown else drawn & (labels != UNKNOWN), table[labels])


def instance_color(number: int) -> tuple[int, int, int]:
    """The colour of an instance: a function of its number alone, so that an object keeps it over frames.

    Hues advance by the golden ratio, which keeps any few consecutive numbers apart (Vogel 1979's spiral on a circle);
    saturation and brightness change with every number too.
    """
    if number < 1:
        raise ValueError(f"instances are numbered from 1, got {number}")
    hue = (0.11 + number * _GOLDEN) % 1.0
    saturation, value = (0.85, 0.60, 0.95)[number % 3], (1.0, 0.82)[number // 3 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def panoptic_colors(grid: OccupancyGrid, instances: Any, unknown: bool = False) -> VoxelColors:
    """Objects (the taxonomy's foreground) in their instance's colour, everything else in its class's, paler.

    Args:
        grid: the classes.
        instances: integer [X, Y, Z], 0 none; numbers on other classes than the foreground are not looked at, since
            panoptic labels number the road and the buildings too.
        unknown: draw 255, in grey.

    Raises:
        ValueError: another shape, no integers, or a negative number.
    """
    numbers = to_array(instances)
    if numbers.shape != tuple(grid.spec.shape) or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"instances must be integers {grid.spec.shape} (X, Y, Z) as the grid, got {numbers.dtype} {numbers.shape}"
        )
    drawn, colors = class_colors(grid, unknown)
    things = np.zeros(256, bool)
    things[list(grid.taxonomy.foreground)] = True
    colored = things[to_array(grid.labels)] & (numbers != 0)
    # Stuff steps back, so that a red bus is not taken for the terrain's neighbour.
    colors = (0.45 * colors + 0.55 * 205).astype(np.uint8)
    present, where = np.unique(numbers[colored], return_inverse=True)
    if len(present):
        if present[0] < 0:
            raise ValueError(f"instances are numbered from 1 (0: none), got {present[0]}")
        colors[colored] = np.array([_cached_color(int(number)) for number in present], np.uint8)[where.reshape(-1)]
    return VoxelColors(drawn, colors)


def error_colors(prediction: OccupancyGrid, truth: OccupancyGrid, known: Any = None) -> VoxelColors:
    """Where a prediction agrees with the truth, in `ERROR_COLORS`.

    Args:
        prediction: of any taxonomy that maps to the truth's.
        truth: voxels that are 255 here are not judged and not drawn.
        known: bool [X, Y, Z], e.g. Occ3D's mask_camera: what else is to be judged; None: everything.

    Raises:
        ValueError: grids of different geometry, or a mask of another shape.
    """
    if prediction.spec != truth.spec:
        raise ValueError(f"a prediction is compared on the truth's grid, got {prediction.spec} and {truth.spec}")
    free = truth.taxonomy.free
    guessed, true = to_array(prediction.map_to(truth.taxonomy).labels), to_array(truth.labels)
    judged = true != UNKNOWN
    if known is not None:
        mask = to_array(known)
        if mask.shape != judged.shape:
            raise ValueError(f"the mask must be {judged.shape} (X, Y, Z) as the grids, got {mask.shape}")
        judged = judged & mask.astype(bool)
    solid, real = (guessed != free) & (guessed != UNKNOWN), true != free
    kind = np.where(real, np.where(solid, np.where(guessed == true, 0, 1), 2), 3)
    return VoxelColors(judged & (solid | real), np.array(list(ERROR_COLORS.values()), np.uint8)[kind])


_cached_color = lru_cache(maxsize=4096)(instance_color)
