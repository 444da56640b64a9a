"""Rays of cameras and of the light's maps, cut into the tiles that the visibility operator wants."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from syntheocc.occupancy.cameras import Camera
from syntheocc.worlds.ops.visibility import COARSE, TILE, RayTiles
from syntheocc.worlds.ops.visibility.tables import parallel_planes, perspective_planes


@dataclass(frozen=True, eq=False)
class CameraRays:
    """One camera's rays in its own axes.

    Args:
        unit: float32 [H, W, 3], unit rays; NaN where the lens has none.
        depth_scale: float32 [H, W]: depth (z for a pinhole, distance else) per metre along the ray.
        planes, coarse: float64 [T, 5, 4], as `RayTiles`.
        pixel_angle: radians that a pixel spans at the middle of the image.
    """

    unit: Tensor
    depth_scale: Tensor
    planes: Tensor
    coarse: Tensor
    pixel_angle: float


@lru_cache(maxsize=24)
def camera_rays(camera: Camera, device: torch.device | str = "cpu") -> CameraRays:
    """The rays of a camera's pixels on a device; cached by the camera object."""
    v, u = torch.meshgrid(
        torch.arange(camera.height, dtype=torch.float64),
        torch.arange(camera.width, dtype=torch.float64),
        indexing="ij",
    )
    rays = camera.pixel_rays(torch.stack([u, v], -1))
    unit = torch.nn.functional.normalize(rays, dim=-1)
    scale = unit[..., 2] if camera.model == "pinhole" else torch.ones_like(unit[..., 2])
    planes, coarse = (_tile_sides(camera, unit, tile).to(device) for tile in (TILE, TILE * COARSE))
    middle = camera.pixel_rays(
        torch.tensor([[camera.width / 2, camera.height / 2], [camera.width / 2 + 1, camera.height / 2]])
    )
    middle = torch.nn.functional.normalize(middle, dim=-1)
    angle = float(torch.linalg.cross(middle[0], middle[1]).norm())
    angle = 1e-3 if math.isnan(angle) else angle
    return CameraRays(unit.float().to(device), scale.float().to(device), planes, coarse, angle)


def _tile_sides(camera: Camera, unit: Tensor, tile: int) -> Tensor:
    """The sides float64 [T, 5, 4] of a camera's tiles of tile x tile pixels; unit rays [H, W, 3]."""
    columns = torch.arange(-(-camera.width // tile) + 1, dtype=torch.float64).mul(tile).clamp_max(camera.width) - 0.5
    rows = torch.arange(-(-camera.height // tile) + 1, dtype=torch.float64).mul(tile).clamp_max(camera.height) - 0.5
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    corners = torch.nn.functional.normalize(camera.pixel_rays(torch.stack([u, v], -1)), dim=-1)
    return perspective_planes(corners, unit, tile)


def world_tiles(lenses: list[CameraRays], cam2world: Tensor) -> RayTiles:
    """The rays of N cameras of one image size, turned to the world's axes; cam2world float64 [N, 4, 4]."""
    device = lenses[0].unit.device
    images = len(lenses)
    turn = cam2world[:, :3, :3].to(device).transpose(-1, -2)
    unit, planes, coarse = _stacked(tuple(lenses))
    field = torch.bmm(unit.flatten(1, 2), turn.float()).reshape(images, *lenses[0].unit.shape)
    direction = torch.zeros(images, 3, device=device)
    return RayTiles(field, direction, _turned(planes, turn), _turned(coarse, turn), parallel=False)


def _turned(sides: Tensor, turn: Tensor) -> Tensor:
    """Tiles' sides [N, T, 5, 4] in other axes, float32; turn [N, 3, 3]."""
    sides = sides.clone()
    sides[:, :, :4, :3] = sides[:, :, :4, :3] @ turn[:, None]
    return sides.float()


@lru_cache(maxsize=2)
def _stacked(lenses: tuple[CameraRays, ...]) -> tuple[Tensor, Tensor, Tensor]:
    unit = torch.stack([lens.unit for lens in lenses])
    return unit, torch.stack([lens.planes for lens in lenses]), torch.stack([lens.coarse for lens in lenses])


@lru_cache(maxsize=16)
def _map_rays(
    size: int, step: float, direction: tuple[float, float, float], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    forward = torch.tensor(direction, dtype=torch.float64)
    forward = forward / forward.norm()
    helper = torch.eye(3, dtype=torch.float64)[0 if abs(forward[0]) < 0.7 else 1]
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, helper), dim=0)
    down = torch.linalg.cross(forward, right)
    offset = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) * step
    field = offset[None, :, None] * right + offset[:, None, None] * down
    planes, coarse = (parallel_planes(size, step, right, down, tile) for tile in (TILE, TILE * COARSE))
    # Rows are right, down, forward: world axes to the map's.
    axes = torch.stack([right, down, forward]).to(device)
    field, planes, coarse, forward = (value.float().to(device) for value in (field, planes, coarse, forward))
    return axes, field, planes, coarse, forward


def map_tiles(images: int, size: int, step: float, direction: Tensor, device: torch.device) -> tuple[Tensor, RayTiles]:
    """Parallel rays for N square maps looking along one direction [3] of the world.

    Returns:
        world2map float64 [3, 3] (rows: right, down, along) and the rays.
    """
    axes, field, planes, coarse, forward = _map_rays(size, step, tuple(direction.tolist()), torch.device(device))
    return axes, RayTiles(
        field.expand(images, -1, -1, -1),
        forward.expand(images, -1),
        planes.expand(images, -1, -1, -1),
        coarse.expand(images, -1, -1, -1),
        parallel=True,
    )
