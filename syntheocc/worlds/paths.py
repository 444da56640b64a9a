"""Paths in the plane, made of straights and arcs.

`s` is metres along a path, `d` metres to the left of it. Legend: K pieces.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["Offset", "Path", "fillet"]


def _along(
    yaw: float | np.ndarray, curvature: float | np.ndarray, s: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Displacement (x, y) after s metres from a point with heading `yaw`; exact for straights and arcs."""
    # The chord of an arc that turns by 2h is s sin(h) / h long and points along yaw + h; np.sinc is sin(pi x)/(pi x).
    half = curvature * s / 2
    chord = s * np.sinc(half / np.pi)
    return chord * np.cos(yaw + half), chord * np.sin(yaw + half)


@dataclass(frozen=True)
class Path:
    """Starts at (x, y) with heading `yaw`; pieces are (length in metres, curvature in 1/metres, left positive).

    Before its start and beyond its end it goes straight on.
    """

    x: float
    y: float
    yaw: float
    pieces: tuple[tuple[float, float], ...]

    @cached_property
    def _table(self) -> np.ndarray:
        """[K, 5]: s, x, y, yaw where each piece starts, and its curvature; straights without end at both ends."""
        rows = [(-np.inf, self.x, self.y, self.yaw, 0.0)]
        s, x, y, yaw = 0.0, self.x, self.y, self.yaw
        for length, curvature in (*self.pieces, (0.0, 0.0)):
            rows.append((s, x, y, yaw, curvature))
            dx, dy = _along(yaw, curvature, length)
            s, x, y, yaw = s + length, x + float(dx), y + float(dy), yaw + curvature * length
        return np.array(rows)

    @property
    def length(self) -> float:
        """Metres, without the straights beyond its ends."""
        return float(sum(length for length, _ in self.pieces))

    def _at(self, s: float | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        s = np.asarray(s, dtype=np.float64)
        row = self._table[np.searchsorted(self._table[:, 0], s, side="right") - 1]
        ds = np.where(np.isinf(row[..., 0]), s, s - row[..., 0])
        dx, dy = _along(row[..., 3], row[..., 4], ds)
        return row[..., 1] + dx, row[..., 2] + dy, row[..., 3] + row[..., 4] * ds, row[..., 4]

    def points(self, s: float | np.ndarray) -> np.ndarray:
        """Points float64 [..., 2] at s [...]."""
        x, y, _, _ = self._at(s)
        return np.stack([x, y], -1)

    def yaws(self, s: float | np.ndarray) -> np.ndarray:
        """Headings float64 [...] at s [...], radians."""
        return self._at(s)[2]

    def curvatures(self, s: float | np.ndarray) -> np.ndarray:
        """Curvature float64 [...] at s [...], 1/metres."""
        return self._at(s)[3]

    def locate(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Along and across: s and d of points x, y [...] against the nearest piece that has them abreast."""
        best_s, best_d = np.zeros(np.shape(x), x.dtype), np.full(np.shape(x), 1e6, x.dtype)
        # plain floats, so that float32 points stay float32
        table = self._table.tolist()
        for k, (s0, x0, y0, yaw, curvature) in enumerate(table):
            cos, sin = math.cos(yaw), math.sin(yaw)
            u, v = (x - x0) * cos + (y - y0) * sin, (y - y0) * cos - (x - x0) * sin
            end = table[k + 1][0] - max(s0, 0.0) if k + 1 < len(table) else math.inf
            if k == 0:
                s, d, abreast = u, v, u <= 0
            elif abs(curvature) < 1e-9:
                s, d, abreast = u + s0, v, (u >= 0) & (u <= end)
            else:
                radius = 1 / curvature
                sign = math.copysign(1.0, radius)
                turned = np.arctan2(u, (radius - v) * sign)
                s = s0 + turned * abs(radius)
                d = radius - sign * np.hypot(u, radius - v)
                abreast = (turned >= 0) & (turned * abs(radius) <= end)
            closer = abreast & (np.abs(d) < np.abs(best_d))
            best_s, best_d = np.where(closer, s, best_s), np.where(closer, d, best_d)
        return best_s, best_d


@dataclass(frozen=True)
class Offset:
    """A path d metres to the left of another; reversed it is driven the other way (s counts from `origin`)."""

    path: Path
    d: float
    reverse: bool = False
    origin: float = 0.0

    def base_s(self, s: float | np.ndarray) -> np.ndarray:
        """Metres along the underlying path."""
        s = np.asarray(s, dtype=np.float64)
        return self.origin - s if self.reverse else self.origin + s

    def points(self, s: float | np.ndarray) -> np.ndarray:
        """Points float64 [..., 2] at s [...]."""
        base = self.base_s(s)
        yaw = self.path.yaws(base)
        return self.path.points(base) + self.d * np.stack([-np.sin(yaw), np.cos(yaw)], -1)


def fillet(
    start: Sequence[float] | np.ndarray,
    corner: Sequence[float] | np.ndarray,
    end: Sequence[float] | np.ndarray,
    radius: float,
) -> tuple[Path, float]:
    """The way from `start` past `corner` to `end` with the corner rounded off.

    Args:
        start: (x, y) metres.
        corner: (x, y) metres.
        end: (x, y) metres.
        radius: of the arc, metres.

    Returns:
        The path (straight, arc, straight), and the s at which its arc begins.

    Raises:
        ValueError: the straights are too short for the radius.
    """
    points = np.array([start, corner, end], dtype=np.float64)
    first, second = points[1] - points[0], points[2] - points[1]
    yaw = np.arctan2(first[1], first[0])
    turn = (np.arctan2(second[1], second[0]) - yaw + np.pi) % (2 * np.pi) - np.pi
    cut = radius * np.tan(abs(turn) / 2)
    before, after = np.hypot(*first) - cut, np.hypot(*second) - cut
    if before < 0 or after < 0:
        raise ValueError(
            f"no room to turn by {turn:.2f} radians with radius {radius} m between {points[0]} and {points[2]}"
        )
    (x, y), begins = points[0].tolist(), float(before)
    arc = (float(radius * abs(turn)), float(np.sign(turn) / radius))
    return Path(x, y, float(yaw), ((begins, 0.0), arc, (float(after), 0.0))), begins
