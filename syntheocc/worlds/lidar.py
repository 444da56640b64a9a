"""A 32-beam lidar that turns while the car drives, and when it crosses each camera's axis.

The sensor is nuScenes' Velodyne HDL-32E: elevations of -30.67 to +10.67 degrees (ring 0 is the lowest), 20 turns a
second, clockwise seen from above. In the real files the cameras' stamps lie 43 ms (front left) to 0.5 ms (back left)
before the lidar's; all six fit, within 0.2 ms, a sweep of 50 ms that begins and ends at 106 degrees left of straight
ahead and whose stamp is its end, so that is what this one does.

**Motion.** Every azimuth is measured at its own instant: own ego pose, objects where they stand then. Points are then
expressed in the lidar frame at the stamp through the ego poses, which is what tools that project a key frame's points
assume. (The published files hold points in the sensor's frame at each point's own time; at 15 m/s that is up to
0.75 m off.) What moves on its own is where it was when it was hit, hence up to 50 ms * speed off its box at the
stamp; `LidarSweep.times` says when.

Legend: N points, A azimuths of a sweep, B beams, P solids, K pairs of an azimuth and a solid that it may hit.
"""

import math
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.cameras import Camera
from syntheocc.occupancy.transforms import invert_rigid
from syntheocc.worlds.geometry import SceneGeometry, poses_at, scene_geometry
from syntheocc.worlds.intersect import _ball_entry, _box_entry, _cone_entry, ground_hit, shape_normals
from syntheocc.worlds.lighting import lighting_of
from syntheocc.worlds.materials import REFLECTIVITY
from syntheocc.worlds.ops.visibility import GROUND, NOTHING
from syntheocc.worlds.scene import Scene
from syntheocc.worlds.taxonomy import LIDARSEG_NAMES, LIDARSEG_TO_WORLD

SWEEP_S = 0.05
# Where a sweep begins and ends, left of straight ahead (radians).
END_YAW = math.radians(106.0)


@dataclass(frozen=True)
class LidarModel:
    """A spinning lidar; the defaults are nuScenes'.

    Args:
        elevations_deg: lowest and highest beam.
        beams: number of rings, evenly spaced.
        azimuths: firings a turn.
        max_range, min_range: metres.
        range_noise: standard deviation, metres.
    """

    elevations_deg: tuple[float, float] = (-30.67, 10.67)
    beams: int = 32
    azimuths: int = 1084
    max_range: float = 100.0
    min_range: float = 0.3
    range_noise: float = 0.02


class LidarSweep(NamedTuple):
    """One turn.

    points float32 [N, 5]: x, y, z (metres, lidar frame at the stamp: x right, y forward), intensity 0..255, ring;
    category uint8 [N], indices into LIDARSEG_NAMES; instance int64 [N], actor index + 1 or 0; times float64 [N],
    seconds at which each point was measured. In the order of firing, rings ascending. A pulse that does not come back
    leaves no point.
    """

    points: Tensor
    category: Tensor
    instance: Tensor
    times: Tensor


def camera_time(lidar_end_time: float, camera: Camera) -> float:
    """When the lidar's beam crosses a camera's optical axis during the sweep that ends at ``lidar_end_time`` (s).

    Example:
        >>> from syntheocc.worlds.street import nominal_rig
        >>> round(1e3 * camera_time(0.0, nominal_rig()["CAM_FRONT"]), 1)
        -35.3
    """
    forward = camera.cam2ego[:3, 2]
    return lidar_end_time - SWEEP_S * (1 - _swept(math.atan2(float(forward[1]), float(forward[0]))))


def _swept(yaw: float) -> float:
    """The share of a sweep after which the beam points `yaw` left of straight ahead."""
    return ((END_YAW - yaw) / (2 * math.pi)) % 1.0


def scan(
    scene: Scene, t_end: float, model: LidarModel | None = None, device: torch.device | str = "cpu"
) -> LidarSweep:
    """The sweep that ends at a time.

    Args:
        scene: what is there, with its ego car and lidar2ego.
        t_end: seconds; the sweep began `SWEEP_S` before.
        model: the sensor; None takes nuScenes'.
        device: where it is computed.

    Returns:
        A `LidarSweep` on the CPU. The same scene and time give the same points, on all devices up to rounding.
    """
    model, device = model or LidarModel(), torch.device(device)
    geometry = scene_geometry(scene, device)
    random = torch.Generator().manual_seed(zlib.crc32(f"lidar {scene.seed} {t_end:.6f}".encode()))
    share = (torch.arange(model.azimuths, dtype=torch.float64) + 1) / model.azimuths
    times = t_end - SWEEP_S * (1 - share)
    ego2global = torch.from_numpy(scene.ego.poses_at(times.numpy()))
    lidar2world = ego2global @ scene.lidar2ego
    # The sweep is laid out in the ego frame: a lidar that is mounted a little turned still ends at END_YAW.
    ahead = math.atan2(float(scene.lidar2ego[1, 1]), float(scene.lidar2ego[0, 1]))
    yaw = END_YAW - 2 * math.pi * share - ahead
    elevation = torch.deg2rad(torch.linspace(*model.elevations_deg, model.beams, dtype=torch.float64))
    beams = torch.stack(
        [
            -yaw.sin()[:, None] * elevation.cos(),
            yaw.cos()[:, None] * elevation.cos(),
            elevation.sin().expand(model.azimuths, -1),
        ],
        -1,
    )
    directions = beams @ lidar2world[:, :3, :3].transpose(-1, -2)  # [A, B, 3]
    origins = lidar2world[:, :3, 3]
    poses = poses_at(scene, times.numpy(), ego2global).to(device)
    directions, origins, times = directions.to(device), origins.to(device), times.to(device)
    distance, primitive, normal = _first_hits(geometry, poses, origins, directions, model.max_range)
    hit = torch.isfinite(distance)
    category, instance, reflectivity = _what(geometry, primitive, origins, directions, distance)
    cosine = -(normal * directions).sum(-1).clamp(-1, 0)
    distance, intensity, kept, spray = _measure(scene, model, random, distance, reflectivity, cosine)
    category = torch.where(spray, LIDARSEG_NAMES.index("noise"), category)
    instance = torch.where(spray, 0, instance)
    kept &= hit | spray
    points = origins[:, None] + distance[..., None].nan_to_num(posinf=0.0) * directions
    world2lidar = invert_rigid(scene.ego.pose_at(t_end) @ scene.lidar2ego).to(device)
    points = points @ world2lidar[:3, :3].T + world2lidar[:3, 3]
    ring = torch.arange(model.beams, dtype=torch.float64, device=device).expand_as(distance)
    rows = torch.cat([points, intensity[..., None], ring[..., None]], -1)
    moments = times[:, None].expand_as(distance)
    return LidarSweep(
        rows[kept].float().cpu(), category[kept].to(torch.uint8).cpu(), instance[kept].cpu(), moments[kept].cpu()
    )


def _measure(
    scene: Scene, model: LidarModel, random: torch.Generator, distance: Tensor, reflectivity: Tensor, cosine: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Range with noise, intensity 0..255, which pulses come back, and which hit rain on the way; all [A, B]."""
    light = lighting_of(scene)
    # Drawn on the CPU, so that all devices get the same.
    noise = torch.randn(2, *distance.shape, generator=random, dtype=torch.float64).to(distance.device)
    chance = torch.rand(3, *distance.shape, generator=random, dtype=torch.float64).to(distance.device)
    # The receiver evens out distance; what is left falls with the angle and with what is in the air.
    fog_m = 0.5 * light.fog_m if scene.weather == "fog" else 400.0 if light.rain else 4000.0
    echo = reflectivity * (0.25 + 0.75 * cosine) * torch.exp(-2 * distance.nan_to_num(posinf=0.0) / fog_m)
    intensity = (75 * echo * (1 + 0.12 * noise[0])).round().clamp(0, 255)
    # Too little light for the receiver: dark, slanted and far surfaces; a soft edge about half a per cent at 100 m.
    power = echo * (100 / distance.clamp_min(1.0)) ** 2
    lost = torch.exp(-power / 0.02) + 0.004 + 0.05 * light.rain
    kept = (chance[0] > lost) & (distance >= model.min_range)
    spray = (chance[1] < 0.012 * light.rain) & (distance > 4)
    near = 1.0 + 9.0 * chance[2] ** 2
    distance = torch.where(spray, near, distance + model.range_noise * noise[1])
    return distance, torch.where(spray, 2.0, intensity), kept | spray, spray


def _what(
    geometry: SceneGeometry, primitive: Tensor, origins: Tensor, directions: Tensor, distance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Category, instance and reflectivity of what was hit, [A, B]."""
    solid = primitive.clamp_min(0)
    category = geometry.solids.category[solid].long()
    instance = torch.where(primitive >= 0, geometry.solids.instance[solid], 0)
    material = geometry.solids.material[solid]
    on_ground = primitive == GROUND
    xy = (origins[:, None] + distance[..., None].nan_to_num(posinf=0.0) * directions)[..., :2][on_ground]
    material[on_ground] = geometry.ground.material_at(xy)
    category[on_ground] = _GROUND_CATEGORY.to(xy.device)[geometry.ground.label_at(xy).long()]
    return category, instance, geometry.table[material][..., REFLECTIVITY].double()


def _ground_categories() -> Tensor:
    table = torch.zeros(256, dtype=torch.int64)
    for index, name in enumerate(LIDARSEG_NAMES):
        if name.startswith("flat."):
            table[int(LIDARSEG_TO_WORLD[index])] = index
    return table


# From a ground class of the world to the raw category of that class.
_GROUND_CATEGORY = _ground_categories()


def _first_hits(
    geometry: SceneGeometry, poses: Tensor, origins: Tensor, directions: Tensor, max_range: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Distance float64, solid (or GROUND, NOTHING) int64 and world normal of each pulse's first hit, [A, B, ...]."""
    azimuths, beams, _ = directions.shape
    distance = ground_hit(
        geometry.ground, origins[:, None].expand_as(directions).reshape(-1, 3), directions.reshape(-1, 3), max_range
    )
    primitive = torch.where(torch.isfinite(distance), GROUND, NOTHING)
    normal = torch.zeros(azimuths * beams, 3, dtype=torch.float64, device=distance.device)
    ground = primitive == GROUND
    places = origins.repeat_interleave(beams, 0)[ground] + distance[ground, None] * directions.reshape(-1, 3)[ground]
    normal[ground] = geometry.ground.normal(places[:, :2])
    azimuth, solid = _candidates(geometry, poses, origins, directions, max_range)
    world2shape = _pair_transforms(geometry, poses, azimuth, solid)
    linear, offset = world2shape[:, :3, :3], world2shape[:, :3, 3]
    o = (linear @ origins[azimuth, :, None])[..., 0] + offset  # [K, 3]
    d = directions[azimuth] @ linear.transpose(-1, -2)  # [K, B, 3]
    o = o[:, None].expand_as(d)
    kind, taper = geometry.solids.kind[solid], geometry.solids.taper[solid]
    t = torch.empty(d.shape[:2], dtype=torch.float64, device=d.device)
    for number, entry in ((0, _box_entry), (1, _ball_entry)):
        t[kind == number] = entry(o[kind == number], d[kind == number])
    cone = kind == 2
    t[cone] = _cone_entry(o[cone], d[cone], taper[cone, None].expand(-1, beams))
    t = torch.where((t > 0) & (t <= max_range), t, torch.inf)
    pulse = azimuth[:, None] * beams + torch.arange(beams, device=azimuth.device)
    nearest = distance.scatter_reduce(0, pulse.flatten(), t.flatten(), "amin")
    pair, beam = ((t == nearest[pulse]) & torch.isfinite(t)).nonzero().unbind(1)
    which = azimuth[pair] * beams + beam
    local = o[pair, beam] + t[pair, beam, None] * d[pair, beam]
    slope = (shape_normals(kind[pair], taper[pair], local)[:, None] @ linear[pair])[:, 0]
    primitive[which] = solid[pair]
    normal[which] = slope / slope.norm(dim=-1, keepdim=True)
    shape = (azimuths, beams)
    return nearest.reshape(shape), primitive.reshape(shape), normal.reshape(*shape, 3)


def _candidates(
    geometry: SceneGeometry, poses: Tensor, origins: Tensor, directions: Tensor, max_range: float
) -> tuple[Tensor, Tensor]:
    """Pairs (azimuth, solid) int64 [K] whose beams' common plane cuts the solid, in reach and in front."""
    split, shape2frame = geometry.num_static, geometry.solids.shape2frame
    across = torch.linalg.cross(directions[:, 0], directions[:, -1])
    across = across / across.norm(dim=-1, keepdim=True)
    ahead = directions[:, 0] + directions[:, -1]
    ahead = ahead / ahead.norm(dim=-1, keepdim=True)
    found = []
    for part in torch.arange(len(origins), device=origins.device).split(128):
        for first, last, moving in ((0, split, False), (split, len(shape2frame), True)):
            axes, center = shape2frame[first:last, :3, :3], shape2frame[first:last, :3, 3]
            reach = axes.square().sum((-1, -2)).sqrt()
            n, f, o = across[part], ahead[part], origins[part]
            if moving:
                pose = poses[part][:, geometry.owner]  # [a, P, 4, 4]
                center = (pose[..., :3, :3] @ center[..., None])[..., 0] + pose[..., :3, 3] - o[:, None]
                n = (pose[..., :3, :3].transpose(-1, -2) @ n[:, None, :, None])[..., 0]
                along = torch.einsum("apc,pcj->apj", n, axes)
                side = (across[part][:, None] * center).sum(-1)
                front = (f[:, None] * center).sum(-1)
                away = center.norm(dim=-1)
            else:
                along = torch.einsum("ac,pcj->apj", n, axes)
                side = n @ center.T - (n * o).sum(-1)[:, None]
                front = f @ center.T - (f * o).sum(-1)[:, None]
                away = torch.cdist(o, center)
            # The sum of the axes' shadows bounds a box exactly and the round shapes from outside.
            near = (side.abs() <= along.abs().sum(-1) + 1e-9) & (front > -reach) & (away - reach < max_range)
            azimuth, solid = near.nonzero().unbind(1)
            found.append((azimuth + part[0], solid + first))
    return torch.cat([azimuth for azimuth, _ in found]), torch.cat([solid for _, solid in found])


def _pair_transforms(geometry: SceneGeometry, poses: Tensor, azimuth: Tensor, solid: Tensor) -> Tensor:
    """world2shape float64 [K, 4, 4] of each pair's solid at its azimuth's instant."""
    world2shape = geometry.frame2shape[solid]
    moving = solid >= geometry.num_static
    owner = geometry.owner[solid[moving] - geometry.num_static]
    world2shape[moving] = world2shape[moving] @ invert_rigid(poses)[azimuth[moving], owner]
    return world2shape
