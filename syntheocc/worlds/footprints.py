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
        self._count = 0
        self._planar = np.zeros((64, len(times), 3))
        self._half = np.zeros((64, 2))
        # Where each one ever is: lower x and y, upper x and y.
        self._reach = np.zeros((64, 4))

    def __len__(self) -> int:
        return self._count

    def _everywhere(self, planar: np.ndarray, half: np.ndarray) -> np.ndarray:
        radius = np.hypot(*half)
        return np.concatenate([planar[:, :2].min(0) - radius, planar[:, :2].max(0) + radius])

    def add(self, planar: np.ndarray, half: tuple[float, float]) -> None:
        """Take a place: planar [3] or [T, 3] (x, y, yaw), half edges (along, across) in metres."""
        i = self._count
        if i == len(self._half):
            for name in ("_planar", "_half", "_reach"):
                array = getattr(self, name)
                setattr(self, name, np.concatenate([array, np.zeros_like(array)]))
        self._planar[i], self._half[i] = planar, half
        self._reach[i] = self._everywhere(self._planar[i], self._half[i])
        self._count += 1

    def free(self, planar: np.ndarray, half: tuple[float, float], margin: float = 0.0) -> bool:
        """Whether a rectangle, wider by `margin` on every side, meets none that is taken, at any of the times."""
        mine = np.broadcast_to(np.asarray(planar, dtype=np.float64), (len(self.times), 3))
        wide = np.array(half) + margin
        reach, taken = self._everywhere(mine, wide), self._reach[: self._count]
        meet = (taken[:, :2] <= reach[2:]).all(1) & (taken[:, 2:] >= reach[:2]).all(1)
        who = np.flatnonzero(meet)
        if not len(who):
            return True
        other, sizes = self._planar[who], self._half[who]
        close = np.hypot(*sizes.T) + np.hypot(*wide)
        gap = np.hypot(other[..., 0] - mine[:, 0], other[..., 1] - mine[:, 1])
        which, when = np.nonzero(gap < close[:, None])
        if not len(which):
            return True
        return not overlap(mine[when], np.broadcast_to(wide, (len(which), 2)), other[which, when], sizes[which]).any()

    def claim(self, planar: np.ndarray, half: tuple[float, float], margin: float = 0.0) -> bool:
        """Take a place if it is free; says whether it was."""
        if not self.free(planar, half, margin):
            return False
        self.add(planar, half)
        return True
