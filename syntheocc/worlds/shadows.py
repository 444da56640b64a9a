"""What the sun reaches, and how much sky is seen from a point: depth maps along parallel rays.

Each image has a sun map and an overhead map of its own, about a point before its camera and at its instant: two
cameras of a frame are up to 43 ms apart, in which a car and its shadow move by half a metre.
Legend: N images, M points.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from syntheocc.worlds.geometry import SceneGeometry
from syntheocc.worlds.ops.visibility import visible
from syntheocc.worlds.ops.visibility.tables import ground_table, solid_table
from syntheocc.worlds.views import map_tiles

# How far above the middle of a map its rays begin, metres.
_UP = 150.0
# Metres of depth a metre across, beyond which a surface is taken for no steeper.
_STEEPEST = 6.0


@dataclass(frozen=True, eq=False)
class LightMaps:
    """Depths along parallel rays, float32 [N, S, S], about middles given relative to each image's eye.

    Args:
        depth: distance from the map's plane to the first surface, inf where there is none.
        axes: float32 [3, 3], rows: the map's right, down and along directions in the world.
        eye: float32 [N, 3], the middle of the map's plane relative to the image's eye.
        step: metres a texel.
    """

    depth: Tensor
    axes: Tensor
    eye: Tensor
    step: float

    def _place(self, image: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        local = (points - self.eye[image]) @ self.axes.T
        middle = (self.depth.shape[-1] - 1) / 2
        return local[:, 0] / self.step + middle, local[:, 1] / self.step + middle, local[:, 2]

    def _depth_at(self, image: Tensor, column: Tensor, row: Tensor) -> Tensor:
        size = self.depth.shape[-1]
        inside = (column >= 0) & (row >= 0) & (column < size) & (row < size)
        index = (image * size + row.clamp(0, size - 1)) * size + column.clamp(0, size - 1)
        return torch.where(inside, self.depth.reshape(-1)[index], torch.inf)

    def lit(self, image: Tensor, points: Tensor, normal: Tensor, bias: float) -> Tensor:
        """Share of light that reaches points.

        Args:
            image: int64 [M].
            points: float32 [M, 3] metres relative to the image's eye.
            normal: float32 [M, 3] of the surfaces, which say how deep the surface itself lies at each texel.
            bias: metres by which a surface must lie before a point to shade it.

        Returns:
            float32 [M], 0..1: the mean of the four texels about the point, weighted; 1 outside the map.
        """
        x, y, depth = self._place(image, points)
        x0, y0 = x.floor(), y.floor()
        fx, fy = x - x0, y - y0
        column, row = x0.nan_to_num(0).long(), y0.nan_to_num(0).long()
        turned = normal @ self.axes.T
        along = torch.where(turned[:, 2] < 0, turned[:, 2].clamp_max(-1e-3), turned[:, 2].clamp_min(1e-3))
        slope_x = (-turned[:, 0] / along).clamp(-_STEEPEST, _STEEPEST) * self.step
        slope_y = (-turned[:, 1] / along).clamp(-_STEEPEST, _STEEPEST) * self.step
        limit = depth - bias - slope_x * fx - slope_y * fy
        free = [
            (self._depth_at(image, column + i, row + j) >= limit + slope_x * i + slope_y * j).float()
            for j in (0, 1)
            for i in (0, 1)
        ]
        return torch.lerp(torch.lerp(free[0], free[1], fx), torch.lerp(free[2], free[3], fx), fy)

    def openness(self, image: Tensor, points: Tensor) -> Tensor:
        """How much of the sky points see, 0..1, from the heights about them (for a map that looks down).

        Sixteen places at 0.4 to 3 m around a point: each hides the sky by how steeply what stands there rises.
        """
        x, y, depth = self._place(image, points)
        hidden = torch.zeros_like(x)
        for ring, (radius, weight) in enumerate(((0.0, 0.25), (0.45, 0.25), (1.3, 0.25), (3.0, 0.25))):
            count = 1 if ring == 0 else 4
            for k in range(count):
                angle = torch.tensor(2 * torch.pi * (k + 0.5 * (ring % 2)) / count + 0.3)
                column = (x + float(angle.cos()) * radius / self.step).round().nan_to_num(0).long()
                row = (y + float(angle.sin()) * radius / self.step).round().nan_to_num(0).long()
                rise = depth - self._depth_at(image, column, row)
                hidden += weight / count * ((rise - 0.25) / (0.5 + radius)).clamp(0, 1)
        return 1 - hidden


def light_maps(
    geometry: SceneGeometry,
    posed: tuple[Tensor, Tensor],
    eyes: Tensor,
    middles: Tensor,
    direction: Tensor,
    size: int,
    span: float,
    backend: str | None = None,
) -> LightMaps:
    """Depth maps of N instants.

    Args:
        geometry: the scene's solids.
        posed: shape2world and world2shape float64 [N, P, 4, 4].
        eyes: float64 [N, 3], the images' eyes in the world.
        middles: float64 [N, 3], what the maps are centred on, in the world.
        direction: float64 [3] unit vector in which the rays go.
        size: texels a side.
        span: metres a side.
        backend: of the visibility operator.
    """
    device = eyes.device
    direction = direction.to(device)
    step = span / size
    axes, tiles = map_tiles(len(eyes), size, step, direction, device)
    # Whole texels, so that the edges of shadows do not crawl from image to image.
    flat = middles @ axes.T
    flat[:, :2] = (flat[:, :2] / step).round() * step
    starts = flat @ axes - _UP * axes[2]
    solids = solid_table(geometry.solids.kind, geometry.solids.taper, *posed, starts, direction)
    depth, _ = visible(tiles, solids, ground_table(geometry.ground, starts), 4 * _UP, backend)
    return LightMaps(depth, axes.float(), (starts - eyes).float(), step)
