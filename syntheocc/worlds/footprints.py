"""Who stands where when: rectangles on the ground, still or moving, and whether a new one has room.

Legend: N rectangles, T times.
"""

import numpy as np

__all__ = ["Footprints", "corners_of", "overlap"]


def corners_of(planar: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Corners [..., 4, 2] of rectangles at planar [..., 3] (x, y, yaw) with half edges [..., 2], metres."""
    cos, sin = np.cos(planar[..., 2]), np.sin(planar[..., 2])
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
    u, v = signs[:, 0] * half[..., :1], signs[:, 1] * half[..., 1:]
    x = planar[..., :1] + u * cos[..., None] - v * sin[..., None]
    y = planar[..., 1:2] + u * sin[..., None] + v * cos[..., None]
    return np.stack([x, y], -1)


def overlap(a: np.ndarray, half_a: np.ndarray, b: np.ndarray, half_b: np.ndarray) -> np.ndarray:
    """Whether rectangles overlap, bool [N]: a, b [N, 3] (x, y, yaw), halves [N, 2]; by the separating axis theorem."""
    corners_a, corners_b = corners_of(a, half_a), corners_of(b, half_b)
    apart = np.zeros(len(a), dtype=bool)
    for yaw in (a[:, 2], b[:, 2]):
        for turn in (0.0, np.pi / 2):
            axis = np.stack([np.cos(yaw + turn), np.sin(yaw + turn)], -1)[:, None]
            on_a, on_b = (corners_a * axis).sum(-1), (corners_b * axis).sum(-1)
            apart |= (on_a.max(1) < on_b.min(1)) | (on_b.max(1) < on_a.min(1))
    return ~apart


class Footprints:
    """Rectangles that are taken, over a set of times.

    Args:
        times: float64 [T] seconds at which moving things are compared.
    """

    def __init__(self, times: np.ndarray):
        self.times = times
        self._planar: list[np.ndarray] = []  # [T, 3] each
        self._half: list[tuple[float, float]] = []
        self._stacked: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._half)

    def add(self, planar: np.ndarray, half: tuple[float, float]) -> None:
        """Take a place: planar [3] or [T, 3] (x, y, yaw), half edges (along, across) in metres."""
        self._planar.append(np.broadcast_to(planar, (len(self.times), 3)))
        self._half.append(half)
        self._stacked = None

    def free(self, planar: np.ndarray, half: tuple[float, float], margin: float = 0.0) -> bool:
        """Whether a rectangle, wider by `margin` on every side, meets none that is taken, at any of the times."""
        if not self._half:
            return True
        if self._stacked is None:
            taken = np.stack(self._planar)
            sizes = np.array(self._half)
            self._stacked = taken, sizes, np.hypot(sizes[:, 0], sizes[:, 1])
        taken, sizes, radii = self._stacked
        mine = np.broadcast_to(np.asarray(planar, dtype=np.float64), (len(self.times), 3))
        wide = np.array(half) + margin
        reach = (radii + np.hypot(*wide))[:, None]
        close = (np.abs(taken[..., 0] - mine[:, 0]) < reach) & (np.abs(taken[..., 1] - mine[:, 1]) < reach)
        who, when = np.nonzero(close)
        if not len(who):
            return True
        return not overlap(mine[when], np.broadcast_to(wide, (len(who), 2)), taken[who, when], sizes[who]).any()

    def claim(self, planar: np.ndarray, half: tuple[float, float], margin: float = 0.0) -> bool:
        """Take a place if it is free; says whether it was."""
        if not self.free(planar, half, margin):
            return False
        self.add(planar, half)
        return True
