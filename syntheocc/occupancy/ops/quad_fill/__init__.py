"""Painting convex quadrilaterals over each other: which is the last one that covers each pixel?

A pixel is covered where its centre (an integer) lies inside. Borders belong to one side only: an edge between
corners a and b meets row v where ``min(a_v, b_v) <= v < max(a_v, b_v)``, at ``u = a_u + (v - a_v) * slope`` counted
from its upper corner, and a row is inside from the first edge that it meets (included) to the second (excluded). Quads
that share an edge with the same coordinates therefore leave no gap and never both claim a pixel.

Two implementations of one signature agree to the last bit: `reference` (every quad asks every pixel) and `numpy` (all
rows of many quads at once). Legend: N quads, H W pixels.
"""

import numpy as np

BACKENDS = ("reference", "numpy")


def quad_fill(quads: np.ndarray, height: int, width: int, backend: str = "numpy") -> np.ndarray:
    """Paint quads in order, each over those before it.

    Args:
        quads: float64 [N, 4, 2], corners (u, v) in pixels, in turn along the border; convex, of either orientation,
            and may reach beyond the picture.
        height: of the picture, pixels.
        width: of the picture, pixels.
        backend: one of `BACKENDS`.

    Returns:
        int32 [H, W], the number of the last quad that covers each pixel; -1 where there is none.

    Raises:
        ValueError: another shape or dtype, a corner that is not finite, no pixels, or an unknown backend.
    """
    if quads.ndim != 3 or quads.shape[1:] != (4, 2) or quads.dtype != np.float64:
        raise ValueError(f"quads must be float64 [N, 4, 2], got {quads.dtype} {quads.shape}")
    if height < 1 or width < 1:
        raise ValueError(f"a picture needs pixels, got height {height} and width {width}")
    if not np.isfinite(quads).all():
        raise ValueError("quads hold corners that are not finite")
    if backend == "reference":
        from syntheocc.occupancy.ops.quad_fill.reference import fill_reference as fill
    elif backend == "numpy":
        from syntheocc.occupancy.ops.quad_fill.vectorised import fill_numpy as fill
    else:
        raise ValueError(f"there is no backend {backend!r}: choose from {', '.join(BACKENDS)}")
    return fill(np.ascontiguousarray(quads), height, width)
