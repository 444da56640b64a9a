"""A 64-beam velodyne on a scene: KITTI's scans, motion already taken out.

KITTI's odometry scans are put together at one instant, so every ray here starts from the pose at that instant (the
nuScenes lidar of `lidar.py` turns while the car drives). Legend: R rays, N points, P solids.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.transforms import invert_rigid, transform_points
from syntheocc.worlds.families import random_for
from syntheocc.worlds.intersect import GROUND, first_hit
from syntheocc.worlds.scene import Scene

__all__ = ["HDL64E_DEG", "VelodyneScan", "velodyne_scan"]

# Elevations of the HDL-64E's beams, degrees: two blocks of 32, the lower one coarser.
HDL64E_DEG = tuple(np.concatenate([np.linspace(2.0, -8.33, 32), np.linspace(-8.83, -24.33, 32)]).tolist())
AZIMUTHS = 2083  # firings a turn at 10 Hz
MAX_RANGE = 120.0
MIN_RANGE = 0.9
RANGE_NOISE = 0.02  # metres, one sigma
# Rays of a sector are tried only against the solids that reach into it.
_SECTORS = 120


@dataclass(frozen=True, eq=False)
class VelodyneScan:
    """One scan.

    Args:
        points: float32 [N, 4] x, y, z (metres, velodyne frame) and remission 0..1.
        solid: int64 [N], the solid of `scene.primitives_at(t)` that was hit, -1 for the ground.
        ground_label: uint8 [N], WORLD_TAXONOMY class of the ground there (of no meaning where a solid was hit).
    """

    points: np.ndarray
    solid: np.ndarray
    ground_label: np.ndarray


def velodyne_scan(
    scene: Scene,
    t: float,
    velodyne2world: Tensor,
    beams_deg: tuple[float, ...] = HDL64E_DEG,
    azimuths: int = AZIMUTHS,
    noise: float = RANGE_NOISE,
) -> VelodyneScan:
    """Scan a scene at one instant.

    Args:
        scene: the scene; the ego car's own body is not in the way.
        t: seconds.
        velodyne2world: [4, 4], x forward, y left, z up.
        beams_deg: elevations of the beams, degrees.
        azimuths: firings a turn.
        noise: metres, one sigma, along the ray.

    Returns:
        Points beam by beam, each from straight ahead to the left and round; drawn from the scene's seed and the time.
    """
    solids = scene.primitives_at(t)
    azimuth = torch.arange(azimuths, dtype=torch.float64) * (2 * math.pi / azimuths)
    elevation = torch.tensor(beams_deg, dtype=torch.float64).deg2rad()
    flat, up = elevation.cos(), elevation.sin()
    # [beams, azimuths, 3]
    rays = torch.stack(
        [flat[:, None] * azimuth.cos(), flat[:, None] * azimuth.sin(), up[:, None].expand(-1, azimuths)], -1
    )
    directions = rays @ velodyne2world[:3, :3].T
    distance = torch.full(rays.shape[:2], torch.inf, dtype=torch.float64)
    index = torch.full(rays.shape[:2], GROUND, dtype=torch.int64)
    normal = torch.zeros_like(rays)
    eye = velodyne2world[:3, 3]
    for columns, near in zip(*_sectors(solids.bounds(), velodyne2world, azimuth), strict=True):
        sector = directions[:, columns].reshape(-1, 3)
        met = first_hit(solids.select(near), scene.ground, eye.expand(len(sector), 3), sector, MAX_RANGE)
        shape = (len(elevation), len(columns))
        distance[:, columns], normal[:, columns] = met[0].reshape(shape), met[2].reshape(*shape, 3)
        of_all = torch.where(met[1] >= 0, near[met[1].clamp_min(0)], met[1]) if len(near) else met[1]
        index[:, columns] = of_all.reshape(shape)
    hit = torch.isfinite(distance) & (distance >= MIN_RANGE)
    distance, index, direction, normal = distance[hit], index[hit], directions[hit], normal[hit]
    places = eye + distance[:, None] * direction
    reflectivity = torch.tensor([m.reflectivity for m in scene.materials], dtype=torch.float64)
    on_ground = index == GROUND
    material = scene.ground.material_at(places[:, :2])
    if len(solids):
        material = torch.where(on_ground, material, solids.material[index.clamp_min(0)])
    remission = (reflectivity[material] * (normal * direction).sum(-1).abs()).clamp(0, 1)
    jitter = random_for(scene.seed, "velodyne", round(t * 1e6)).normal(0.0, noise, len(distance))
    points = rays[hit] * (distance + torch.from_numpy(jitter))[:, None]
    return VelodyneScan(
        torch.cat([points, remission[:, None]], 1).to(torch.float32).numpy(),
        torch.where(on_ground, -1, index).numpy(),
        scene.ground.label_at(places[:, :2]).numpy(),
    )


def _sectors(
    bounds: tuple[Tensor, Tensor], velodyne2world: Tensor, azimuth: Tensor
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Columns of each sector, and the solids (indices) that may show in it, by their bounding spheres."""
    lower, upper = bounds
    center = transform_points(invert_rigid(velodyne2world), (lower + upper) / 2)
    radius = (upper - lower).norm(dim=1) / 2
    away = center[:, :2].norm(dim=1)
    reach = torch.where(away > radius, torch.asin((radius / away.clamp_min(1e-9)).clamp_max(1.0)), math.pi)
    towards = torch.atan2(center[:, 1], center[:, 0])
    columns = torch.arange(len(azimuth)).tensor_split(_SECTORS)
    columns = tuple(part for part in columns if len(part))
    near = []
    for part in columns:
        middle, half = (azimuth[part[0]] + azimuth[part[-1]]) / 2, (azimuth[part[-1]] - azimuth[part[0]]) / 2
        turn = torch.remainder(towards - middle + math.pi, 2 * math.pi) - math.pi
        near.append(((turn.abs() <= half + reach + 1e-6) & (away - radius <= MAX_RANGE)).nonzero()[:, 0])
    return columns, near
