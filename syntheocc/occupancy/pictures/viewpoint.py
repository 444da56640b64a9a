"""From where an oblique picture looks at a grid, and what that makes of a point. Legend: P points, H W pixels."""

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["View", "Viewpoint"]

# Share of the picture that the drawn box fills along the tighter side.
_FILLED = 0.97


@dataclass(frozen=True)
class Viewpoint:
    """Where the viewer stands and how much he sees; the picture is fitted to what is drawn.

    Args:
        azimuth_deg: where the viewer stands, degrees about ego z from forward to the left: 180 is behind the car
            (forward is up in the picture), 90 to its left.
        elevation_deg: how high he looks down from, 0 (horizontal) to 90 (from above).
        zoom: 1 shows everything, 2 half of it along each side.
        fov_deg: field of view of a perspective picture along its longer side at zoom 1; None is orthographic.
        target: the point of ego (x, y, z metres) in the middle of the picture; None centres what is drawn.

    Raises:
        ValueError: a number outside its range.
    """

    azimuth_deg: float = 205.0
    elevation_deg: float = 38.0
    zoom: float = 1.0
    fov_deg: float | None = 35.0
    target: tuple[float, float, float] | None = None

    def __post_init__(self):
        if not math.isfinite(self.azimuth_deg) or not 0 <= self.elevation_deg <= 90:
            raise ValueError(
                f"azimuth_deg must be finite and elevation_deg lie in 0..90, got {self.azimuth_deg} and "
                f"{self.elevation_deg}"
            )
        if not 0 < self.zoom < math.inf:
            raise ValueError(f"zoom must be positive, got {self.zoom}")
        if self.fov_deg is not None and not 1 <= self.fov_deg <= 120:
            raise ValueError(f"fov_deg must lie in 1..120 (None: orthographic), got {self.fov_deg}")
        if self.target is not None and not (len(self.target) == 3 and all(map(math.isfinite, self.target))):
            raise ValueError(f"target must be three finite metres of ego, got {self.target}")

    def axes(self) -> np.ndarray:
        """The viewer's right, up and forward as rows, float64 [3, 3] in ego."""
        azimuth, elevation = math.radians(self.azimuth_deg), math.radians(self.elevation_deg)
        right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
        back = np.array([math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), 0.0])
        back[2] = math.sin(elevation)
        return np.stack([right, np.cross(back, right), -back])

    def fitted(self, points: np.ndarray, height: int, width: int) -> "View":
        """The view in which these points fill a picture.

        Args:
            points: float64 [P, 3] metres in ego: the corners of what is drawn.
            height: of the picture, pixels.
            width: of the picture, pixels.
        """
        axes = self.axes()
        middle = (points.min(0) + points.max(0)) / 2
        seen = (points - middle) @ axes.T  # along right, up, forward
        target = None if self.target is None else (np.asarray(self.target) - middle) @ axes.T
        if self.fov_deg is None:
            eye_distance, focal = None, 1.0
        else:
            focal = max(height, width) / 2 / math.tan(math.radians(self.fov_deg) / 2)
            eye_distance = _distance(seen, focal, height * _FILLED, width * _FILLED)
        flat = _flattened(seen, focal, eye_distance)
        low, high = flat.min(0), flat.max(0)
        scale = self.zoom
        if eye_distance is None:
            scale *= min(_FILLED * np.array([width, height]) / np.maximum(high - low, 1e-9))
        anchor = (low + high) / 2 if target is None else _flattened(target[None], focal, eye_distance)[0]
        # Pixels from the flat picture: centres are integers, rows run down.
        offset = np.array([(width - 1) / 2, (height - 1) / 2]) - scale * anchor * [1, -1]
        return View(axes, middle, eye_distance, focal * scale, offset)


@dataclass(frozen=True, eq=False)
class View:
    """A fitted view of ego space.

    Args:
        axes: right, up and forward of the viewer as rows, float64 [3, 3] in ego.
        middle: the point of ego that the view turns about, metres [3].
        eye_distance: metres from the eye to `middle`; None is orthographic.
        focal: pixels a metre (orthographic), or focal length in pixels.
        offset: pixel (u, v) of the axis through `middle`.
    """

    axes: np.ndarray
    middle: np.ndarray
    eye_distance: float | None
    focal: float
    offset: np.ndarray

    @property
    def eye(self) -> np.ndarray | None:
        """The eye in ego, metres [3]; None for an orthographic view."""
        return None if self.eye_distance is None else self.middle - self.eye_distance * self.axes[2]

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels (u, v) float64 [..., 2] of points [..., 3] in ego, metres; the eye must be behind none of them."""
        # Summed axis by axis, so that equal points give equal bits in arrays of any size.
        local = [points[..., i] - self.middle[i] for i in range(3)]
        right, up, forward = (local[0] * axis[0] + local[1] * axis[1] + local[2] * axis[2] for axis in self.axes)
        scale = self.focal if self.eye_distance is None else self.focal / (forward + self.eye_distance)
        return np.stack([self.offset[0] + scale * right, self.offset[1] - scale * up], -1)

    def rays(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Origins and directions float64 [..., 3] in ego of pixels [..., 2] (u, v).

        A direction advances one metre along the viewer's forward axis; where ``t`` metres lead lies ``t`` metres ahead
        of the eye's plane (of the plane 10 km before `middle` for an orthographic view).
        """
        right = (pixels[..., :1] - self.offset[0]) / self.focal
        down = (pixels[..., 1:] - self.offset[1]) / self.focal
        aside = right * self.axes[0] - down * self.axes[1]
        if self.eye_distance is None:
            return self.middle + aside - 1e4 * self.axes[2], np.broadcast_to(self.axes[2], aside.shape)
        return np.broadcast_to(self.middle - self.eye_distance * self.axes[2], aside.shape), aside + self.axes[2]


def _flattened(seen: np.ndarray, focal: float, eye_distance: float | None) -> np.ndarray:
    """Points [P, 3] along right, up, forward on the picture plane [P, 2], up positive."""
    if eye_distance is None:
        return seen[:, :2]
    return focal * seen[:, :2] / (seen[:, 2:] + eye_distance)


def _distance(seen: np.ndarray, focal: float, height: float, width: float) -> float:
    """From how far away points [P, 3] just fit into a picture."""
    near = float(-seen[:, 2].min()) + 1e-3
    far = near + 1.0
    fits = lambda d: bool((np.ptp(_flattened(seen, focal, d), axis=0) <= [width, height]).all())  # noqa: E731
    while not fits(far):
        far = near + 2 * (far - near)
    for _ in range(60):
        half = (near + far) / 2
        near, far = (near, half) if fits(half) else (half, far)
    return far
