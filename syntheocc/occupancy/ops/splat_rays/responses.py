"""How strongly a Gaussian answers to a ray: exactly along the ray, or as rasterisers approximate it in the image.

Legend: N pairs of a path and a Gaussian, S paths. Specification: specs/occflownet_splattingocc.md 4.2, V10 to V16.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["CUTOFF", "EPS2D", "MAX_ALPHA", "MIN_ALPHA", "EwaResponse", "RayResponse", "Response"]

MAX_ALPHA = 0.99
MIN_ALPHA = 1 / 255
# What rasterisers blur an image by, pixels^2.
EPS2D = 0.3
# A Gaussian of opacity 1 answers MIN_ALPHA at so many standard deviations.
CUTOFF = math.sqrt(2 * math.log(1 / MIN_ALPHA))


class Response(Protocol):
    """Alpha and position of Gaussians along paths."""

    def reach(self, max_scale: float, far: float) -> float:
        """Metres from the ray beyond which no Gaussian of that scale can answer with 1/255."""
        ...

    def __call__(
        self, offset: Tensor, direction: Tensor, opacity: Tensor, scale: float | Tensor, path: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Uncapped alpha [N] and distance along the ray [N] in metres.

        Args:
            offset: [N, 3] mean minus the path's origin.
            direction: [N, 3] of the path.
            opacity: [N].
            scale: metres, [N] or one.
            path: int64 [N] which path.
        """
        ...


class RayResponse:
    """The integral's shape along the ray: ``opacity exp(-d^2 / 2 s^2)`` with d the distance of the mean from it."""

    def reach(self, max_scale: float, far: float) -> float:
        """See `Response`."""
        return CUTOFF * max_scale

    def __call__(
        self, offset: Tensor, direction: Tensor, opacity: Tensor, scale: float | Tensor, path: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Response`."""
        distance = (offset * direction).sum(-1)
        # The difference of vectors, not of squares: 50 m squared minus itself leaves nothing of float32.
        across = offset - distance[:, None] * direction
        return opacity * torch.exp(-across.square().sum(-1) / (2 * scale * scale)), distance


@dataclass(frozen=True, eq=False)
class EwaResponse:
    """What a rasteriser paints at a pixel: the Gaussian flattened at its own centre, plus a blur of `eps2d` pixels^2.

    EWA splatting (Zwicker et al. 2001) as gsplat and 3DGS do it: ``cov = J R (s^2 I) R^T J^T + eps2d I`` with the
    projection's Jacobian J at the mean, whose slopes are clamped 0.3 half-widths beyond the image. Order and distance
    are those of the camera's z; it is given as a length along the pixel's ray.

    Args:
        axes: [S, 3, 3] rows are the camera's x, y, z axes in the path's frame; the path begins at the camera.
        focal: [S, 2] pixels.
        slopes: [S, 2] the pixel's (u - cx) / fx and (v - cy) / fy.
        limits: [S, 2, 2] smallest and largest slope in x and y at which J is taken.
        eps2d: pixels squared.
        near: metres of z; what is nearer is not painted.
        far: metres of z.
    """

    axes: Tensor
    focal: Tensor
    slopes: Tensor
    limits: Tensor
    eps2d: float = EPS2D
    near: float = 0.1
    far: float = 60.0

    def reach(self, max_scale: float, far: float) -> float:
        """See `Response`: J stretches the footprint by at most sqrt(1 + slope^2), the blur adds eps2d (z / f)^2."""
        if not len(self.focal):
            return CUTOFF * max_scale
        steepest = float(self.limits.abs().amax(1).square().sum(-1).max())
        blur = self.eps2d * (min(far, self.far) / float(self.focal.min())) ** 2
        return CUTOFF * math.sqrt(max_scale**2 * (1 + steepest) + blur)

    def __call__(
        self, offset: Tensor, direction: Tensor, opacity: Tensor, scale: float | Tensor, path: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Response`."""
        x, y, z = (self.axes[path] @ offset[:, :, None])[..., 0].unbind(-1)
        focal, slopes, limits = self.focal[path], self.slopes[path], self.limits[path]
        depth = torch.where(z > 0, z, 1.0)
        across = (slopes[:, 0] - x / depth) * focal[:, 0], (slopes[:, 1] - y / depth) * focal[:, 1]
        u = torch.minimum(torch.maximum(x / depth, limits[:, 0, 0]), limits[:, 1, 0])
        v = torch.minimum(torch.maximum(y / depth, limits[:, 0, 1]), limits[:, 1, 1])
        spread_x, spread_y = scale * focal[:, 0] / depth, scale * focal[:, 1] / depth
        xx = spread_x.square() * (1 + u * u) + self.eps2d
        yy = spread_y.square() * (1 + v * v) + self.eps2d
        xy = spread_x * spread_y * u * v
        power = (yy * across[0].square() - 2 * xy * across[0] * across[1] + xx * across[1].square()) / (
            2 * (xx * yy - xy * xy)
        )
        # One metre of z is sqrt(1 + slopes^2) metres of the pixel's ray.
        distance = z * (1 + slopes.square().sum(-1)).sqrt()
        painted = (z >= self.near) & (z <= self.far)
        return torch.where(painted, opacity * torch.exp(-power), 0.0), distance
