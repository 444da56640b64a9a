"""Painting quads in numpy: the rows of a block of quads at once, then their pixels; a later write replaces earlier."""

import numpy as np

# Quads at a time: their rows and pixels stay within a few dozen megabytes.
_BLOCK = 1 << 15


def fill_numpy(quads: np.ndarray, height: int, width: int) -> np.ndarray:
    """See `syntheocc.occupancy.ops.quad_fill.quad_fill`."""
    picture = np.full(height * width, -1, np.int32)
    for first in range(0, len(quads), _BLOCK):
        block = quads[first : first + _BLOCK]
        quad, row = _rows(block, height)
        left, right = _spans(block, quad, row)
        start = np.clip(np.ceil(left), 0, width).astype(np.int64)
        count = np.clip(np.ceil(right), 0, width).astype(np.int64) - start
        # numpy assigns in order, so that of several quads on a pixel the last one stays.
        before = np.cumsum(count) - count
        pixel = np.arange(count.sum()) + np.repeat(row * width + start - before, count)
        picture[pixel] = np.repeat((quad + first).astype(np.int32), count)
    return picture.reshape(height, width)


def _rows(quads: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Every row [R] of the picture that a quad meets, and that quad's number [R], in the order of the quads."""
    top = np.clip(np.ceil(quads[:, :, 1].min(1)), 0, height).astype(np.int64)
    count = np.clip(np.ceil(quads[:, :, 1].max(1)), 0, height).astype(np.int64) - top
    quad = np.repeat(np.arange(len(quads)), count)
    return quad, np.arange(len(quad)) + np.repeat(top - (np.cumsum(count) - count), count)


def _spans(quads: np.ndarray, quad: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each row [R] enters and leaves its quad."""
    left, right = np.full(len(row), np.inf), np.full(len(row), -np.inf)
    for corner in range(4):
        a, b = quads[:, corner], quads[:, (corner + 1) % 4]
        falls = a[:, 1] <= b[:, 1]
        top_u, top_v = np.where(falls, a[:, 0], b[:, 0]), np.where(falls, a[:, 1], b[:, 1])
        low_u, low_v = np.where(falls, b[:, 0], a[:, 0]), np.where(falls, b[:, 1], a[:, 1])
        flat = top_v == low_v
        slope = (low_u - top_u) / np.where(flat, 1.0, low_v - top_v)
        start, meets = top_v[quad], (top_v[quad] <= row) & (row < low_v[quad])
        cut = top_u[quad] + (row - start) * slope[quad]
        left = np.where(meets, np.minimum(left, cut), left)
        right = np.where(meets, np.maximum(right, cut), right)
    return left, np.maximum(left, right)
