"""Painting quads one after the other, asking every pixel of the picture: the definition."""

import numpy as np


def fill_reference(quads: np.ndarray, height: int, width: int) -> np.ndarray:
    """See `syntheocc.occupancy.ops.quad_fill.quad_fill`."""
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    picture = np.full((height, width), -1, np.int32)
    for number, quad in enumerate(quads):
        passed = np.zeros((height, width), np.int64)
        for a, b in zip(quad, np.roll(quad, -1, axis=0), strict=True):
            (top_u, top_v), (low_u, low_v) = (a, b) if a[1] <= b[1] else (b, a)
            if top_v == low_v:
                continue
            slope = (low_u - top_u) / (low_v - top_v)
            meets = (top_v <= rows) & (rows < low_v)
            passed += meets & (top_u + (rows - top_v) * slope <= columns)
        # Inside of a convex shape a row has passed one of the two edges that it meets.
        picture[passed == 1] = number
    return picture
