"""The ground: a smooth single-valued surface z = height(x, y) with a raster of classes and materials painted on it."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MAX_SLOPE", "Ground"]

MAX_SLOPE = 0.04  # steepest slope of the ground, rise over run


@dataclass(frozen=True, eq=False)
class Ground:
    """z = base + ramp . xy + sum_k amplitude_k sin(kx_k x + ky_k y + phase_k), painted.

    Args:
        labels: uint8 [Nx, Ny] classes (WORLD_TAXONOMY ids).
        materials: uint8 [Nx, Ny] indices into the scene's material table.
        origin: (x, y) of the raster's lower corner, metres in the world.
        base: metres.
        ramp: float64 [2] rise over run along x and y.
        waves: float64 [K, 4]: amplitude (metres), kx, ky (radians a metre), phase (radians).
        resolution: edge of a raster cell, metres.

    Raises:
        ValueError: the surface could be steeper than MAX_SLOPE, or the rasters differ in shape.

    Beyond its border the raster goes on as it is at the border.
    """

    labels: Tensor  # [Nx, Ny]
    materials: Tensor  # [Nx, Ny]
    origin: tuple[float, float]
    base: float
    ramp: Tensor  # [2]
    waves: Tensor  # [K, 4]
    resolution: float = 0.1

    def __post_init__(self):
        if self.labels.shape != self.materials.shape:
            raise ValueError(
                f"ground: labels {tuple(self.labels.shape)} and materials {tuple(self.materials.shape)} differ"
            )
        if self.max_slope() > MAX_SLOPE + 1e-9:
            raise ValueError(f"ground: slopes up to {self.max_slope():.4f} are possible; the limit is {MAX_SLOPE}")

    def max_slope(self) -> float:
        """An upper bound of the slope anywhere, rise over run."""
        return float(self.steepest())

    def steepest(self) -> Tensor:
        """`max_slope` as a tensor on the ground's device, so that nothing waits for it."""
        steepest = self.waves[:, 0].abs() * self.waves[:, 1:3].norm(dim=-1)
        return self.ramp.norm() + steepest.sum()

    def height(self, xy: Tensor) -> Tensor:
        """Height z in metres, float64 [...], at world points xy [..., 2]."""
        xy = xy.to(torch.float64)
        ramp, waves = self.ramp.to(xy.device), self.waves.to(xy.device)
        angle = xy @ waves[:, 1:3].T + waves[:, 3]
        return self.base + xy @ ramp + (waves[:, 0] * angle.sin()).sum(-1)

    def gradient(self, xy: Tensor) -> Tensor:
        """(dz/dx, dz/dy), float64 [..., 2], at world points xy [..., 2]."""
        xy = xy.to(torch.float64)
        ramp, waves = self.ramp.to(xy.device), self.waves.to(xy.device)
        angle = xy @ waves[:, 1:3].T + waves[:, 3]
        return ramp + (waves[:, 0] * angle.cos()) @ waves[:, 1:3]

    def normal(self, xy: Tensor) -> Tensor:
        """Unit normals (upwards), float64 [..., 3], at world points xy [..., 2]."""
        slope = self.gradient(xy)
        normal = torch.cat([-slope, torch.ones_like(slope[..., :1])], -1)
        return normal / normal.norm(dim=-1, keepdim=True)

    def _cell(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        origin = torch.tensor(self.origin, dtype=torch.float64, device=xy.device)
        cell = torch.floor((xy.to(torch.float64) - origin) / self.resolution).long()
        nx, ny = self.labels.shape
        return cell[..., 0].clamp(0, nx - 1), cell[..., 1].clamp(0, ny - 1)

    def label_at(self, xy: Tensor) -> Tensor:
        """Classes uint8 [...] at world points xy [..., 2]."""
        return self.labels.to(xy.device)[self._cell(xy)]

    def material_at(self, xy: Tensor) -> Tensor:
        """Material indices int64 [...] at world points xy [..., 2]."""
        return self.materials.to(xy.device)[self._cell(xy)].long()
