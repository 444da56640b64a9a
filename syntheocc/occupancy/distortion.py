"""Lens distortion, kept apart from projection: Brown-Conrady on the image plane, Kannala-Brandt on the angle.

Both are OpenCV's definitions and coefficient names. A polynomial folds back on itself beyond some radius; points there
have no image, and `undistort` and `distort` give NaN for them instead of a wrong answer.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class BrownConrady:
    """Radial (rational) and tangential distortion of normalised image coordinates.

    OpenCV's camera model: x' = x * radial + 2 p1 x y + p2 (r^2 + 2 x^2), y' likewise, with
    radial = (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6). Coefficients without unit.

    Raises:
        ValueError: a coefficient is not finite.
    """

    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    k3: float = 0.0
    k4: float = 0.0
    k5: float = 0.0
    k6: float = 0.0

    def __post_init__(self):
        _check_finite(self)

    @property
    def max_radius(self) -> float:
        """The radius up to which the radial part grows monotonically (inf when it always does)."""
        # With s = r^2: d(r * num/den)/dr has the sign of (num + 2 s num') den - 2 s num den'; its first positive root.
        num = np.polynomial.Polynomial([1, self.k1, self.k2, self.k3])
        den = np.polynomial.Polynomial([1, self.k4, self.k5, self.k6])
        two_s = np.polynomial.Polynomial([0, 2])
        turning = (num + two_s * num.deriv()) * den - two_s * num * den.deriv()
        roots = [*_positive_roots(turning), *_positive_roots(den)]
        return math.sqrt(min(roots)) if roots else math.inf

    def distort(self, xy: Tensor) -> Tensor:
        """Ideal to distorted coordinates, [..., 2]; NaN beyond `max_radius`."""
        radius2 = (xy * xy).sum(-1)
        out = xy * self._radial(radius2)[..., None] + self._tangential(xy, radius2)
        return torch.where((radius2 < self.max_radius**2)[..., None], out, torch.nan)

    def undistort(self, xy: Tensor) -> Tensor:
        """Distorted to ideal coordinates, [..., 2], by Newton's method; NaN where no ideal point maps there."""
        ideal = xy.clone()
        for _ in range(25):
            radius2 = (ideal * ideal).sum(-1)
            error = ideal * self._radial(radius2)[..., None] + self._tangential(ideal, radius2) - xy
            a, b, c, d = self._jacobian(ideal, radius2)
            det = a * d - b * c
            step = torch.stack([d * error[..., 0] - b * error[..., 1], a * error[..., 1] - c * error[..., 0]], -1)
            # A full step may leap over the turning point of a strong lens: half a unit is more than any lens needs.
            ideal = ideal - (step / det[..., None]).clamp(-0.5, 0.5)
        residual = (self.distort(ideal) - xy).abs().amax(-1)
        return torch.where((residual < 1e-9 * (1 + xy.abs().amax(-1)))[..., None], ideal, torch.nan)

    def _radial(self, s: Tensor) -> Tensor:
        return (1 + s * (self.k1 + s * (self.k2 + s * self.k3))) / (1 + s * (self.k4 + s * (self.k5 + s * self.k6)))

    def _tangential(self, xy: Tensor, radius2: Tensor) -> Tensor:
        x, y = xy.unbind(-1)
        return torch.stack(
            [
                2 * self.p1 * x * y + self.p2 * (radius2 + 2 * x * x),
                self.p1 * (radius2 + 2 * y * y) + 2 * self.p2 * x * y,
            ],
            -1,
        )

    def _jacobian(self, xy: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, y = xy.unbind(-1)
        num = 1 + s * (self.k1 + s * (self.k2 + s * self.k3))
        den = 1 + s * (self.k4 + s * (self.k5 + s * self.k6))
        slope = (
            (self.k1 + s * (2 * self.k2 + 3 * s * self.k3)) * den
            - num * (self.k4 + s * (2 * self.k5 + 3 * s * self.k6))
        ) / (den * den)  # fmt: skip
        radial = num / den
        cross = 2 * x * y * slope + 2 * self.p1 * x + 2 * self.p2 * y
        return (
            radial + 2 * x * x * slope + 2 * self.p1 * y + 6 * self.p2 * x,
            cross,
            cross,
            radial + 2 * y * y * slope + 6 * self.p1 * y + 2 * self.p2 * x,
        )


@dataclass(frozen=True)
class KannalaBrandt:
    """Distortion of the angle to the optical axis: theta_d = theta (1 + k1 theta^2 + ... + k4 theta^8), radians.

    Kannala and Brandt 2006 in OpenCV's fisheye form.

    Raises:
        ValueError: a coefficient is not finite.
    """

    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    k4: float = 0.0

    def __post_init__(self):
        _check_finite(self)

    @property
    def max_angle(self) -> float:
        """The angle, at most pi, up to which theta_d grows monotonically."""
        slope = np.polynomial.Polynomial([1, 3 * self.k1, 5 * self.k2, 7 * self.k3, 9 * self.k4])
        roots = _positive_roots(slope)
        return min(math.sqrt(min(roots)) if roots else math.pi, math.pi)

    def distort(self, theta: Tensor) -> Tensor:
        """Angle to distorted angle; NaN beyond `max_angle`."""
        return torch.where(theta <= self.max_angle, self._polynomial(theta), torch.nan)

    def undistort(self, theta_d: Tensor) -> Tensor:
        """Distorted angle to angle, by bisection on the monotone part; NaN where no angle maps there."""
        low, high = torch.zeros_like(theta_d), torch.full_like(theta_d, self.max_angle)
        for _ in range(60):
            middle = (low + high) / 2
            above = self._polynomial(middle) > theta_d
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        theta = (low + high) / 2
        residual = (self._polynomial(theta) - theta_d).abs()
        return torch.where(residual < 1e-9 * (1 + theta_d.abs()), theta, torch.nan)

    def _polynomial(self, theta: Tensor) -> Tensor:
        s = theta * theta
        return theta * (1 + s * (self.k1 + s * (self.k2 + s * (self.k3 + s * self.k4))))


Distortion = BrownConrady | KannalaBrandt


def distortion_for(model: str, coefficients: "Distortion | Sequence[float] | None") -> Distortion | None:
    """The distortion of a projection model from OpenCV's coefficient list.

    Args:
        model: ``"pinhole"`` and ``"unified"`` take Brown-Conrady (k1 k2 p1 p2 [k3 [k4 k5 k6]]), ``"fisheye"`` takes
            Kannala-Brandt (k1 k2 k3 k4).
        coefficients: a distortion, a list of its coefficients, or None for none.

    Raises:
        ValueError: a distortion that does not go with the model, or a wrong number of coefficients.
    """
    kind: type[BrownConrady] | type[KannalaBrandt] = KannalaBrandt if model == "fisheye" else BrownConrady
    if coefficients is None:
        return None
    if isinstance(coefficients, BrownConrady | KannalaBrandt):
        if not isinstance(coefficients, kind):
            raise ValueError(f"a {model} camera takes {kind.__name__} distortion, got {type(coefficients).__name__}")
        return coefficients
    values = [float(v) for v in coefficients]
    allowed = (4,) if kind is KannalaBrandt else (4, 5, 8)
    if len(values) not in allowed:
        raise ValueError(
            f"{kind.__name__} distortion of a {model} camera takes {' or '.join(map(str, allowed))} coefficients in "
            f"OpenCV's order, got {len(values)}: {values}"
        )
    return kind(*values)


def _positive_roots(polynomial: np.polynomial.Polynomial) -> list[float]:
    """The positive roots of a polynomial whose constant term is 1."""
    # Of the reversed polynomial, whose roots are the inverses: its leading coefficient is the 1, so that a tiny last
    # coefficient cannot overflow.
    inverses = np.asarray(np.polynomial.Polynomial(polynomial.trim().coef[::-1]).roots(), dtype=complex)
    return [1 / float(root.real) for root in inverses if abs(root.imag) < 1e-9 and root.real > 0]


def _check_finite(distortion: Distortion) -> None:
    if not np.isfinite(astuple(distortion)).all():
        raise ValueError(f"distortion coefficients must be finite, got {distortion}")
