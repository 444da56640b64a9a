"""From what each pixel sees to the light that reaches it: texture, sun, sky, lamps, reflections, air.

Everything is per pixel and plain torch, the same on CPU and GPU. Legend: M pixels, N images, P solids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant, passing_constant
from syntheocc.worlds.geometry import SceneGeometry
from syntheocc.worlds.intersect import shape_normals
from syntheocc.worlds.lighting import Lighting, sky_color
from syntheocc.worlds.materials import BASE, EMISSION, LAYER, OFFSET, PATTERNS, ROUGHNESS, SCALE, SECOND, VARIANTS
from syntheocc.worlds.ops.visibility import KIND, TAPER, SolidTable
from syntheocc.worlds.shadows import LightMaps
from syntheocc.worlds.textures import SIDE, Atlas

_WINDOWS = PATTERNS.index("windows")
# Atlas layer whose noise says where water stands.
PUDDLES = PATTERNS.index("noise") * VARIANTS + 1


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What shading needs besides the pixels.

    Args:
        geometry, solids: the scene's solids and the images' tables of them.
        light: of the scene.
        sun, overhead: the images' light maps.
        atlas: textures.
        eyes: float64 [N, 3] in the world.
        ego2world: float64 [N, 4, 4], where the head lamps are.
        pixel_angle: float32 [N], radians a pixel.
    """

    geometry: SceneGeometry
    solids: SolidTable
    light: Lighting
    sun: LightMaps
    overhead: LightMaps
    atlas: Atlas
    eyes: Tensor
    ego2world: Tensor
    pixel_angle: Tensor


def surface_of_solids(
    around: Surroundings, image: Tensor, row: Tensor, points: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normals and texture coordinates of points on solids.

    Args:
        around: the surroundings.
        image: int64 [M].
        row: int64 [M], rows of the images' tables.
        points: float32 [M, 3] relative to the eye.

    Returns:
        normal float32 [M, 3], uv float32 [M, 2] metres, material int64 [M], primitive int64 [M].
    """
    table, geometry = around.solids.rows, around.geometry
    flat = image * table.shape[1] + row
    values = table.reshape(-1, 16)[flat]
    primitive = around.solids.order.reshape(-1)[flat]
    linear = values[:, :9].reshape(-1, 3, 3)
    local = (linear * points[:, None]).sum(-1) + values[:, 9:12]
    kind = values[:, KIND]
    normal = shape_normals(kind, values[:, TAPER], local)
    normal = torch.nn.functional.normalize((linear * normal[:, :, None]).sum(1), dim=-1)
    half = geometry.half[primitive]
    metres = (local + 1) * half
    axis = local.abs().argmax(-1)
    u = torch.where(axis == 0, metres[:, 1], metres[:, 0])
    v = torch.where(axis == 2, metres[:, 1], metres[:, 2])
    around_axis = (kind == 2) & (local[:, 2].abs() < 0.9999)
    u = torch.where(around_axis, torch.atan2(local[:, 1], local[:, 0]) * half[:, 0], u)
    v = torch.where(around_axis, metres[:, 2], v)
    return normal, torch.stack([u, v], -1), geometry.materials[primitive], primitive


def surface_of_ground(around: Surroundings, image: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normals, texture coordinates, materials and classes of points [M, 3] on the ground, as `surface_of_solids`."""
    ground = around.geometry.ground
    xy = points[:, :2] + around.eyes[:, :2].float()[image]
    waves = ground.waves.float()
    angle = xy @ waves[:, 1:3].T + waves[:, 3]
    slope = ground.ramp.float() + (waves[:, 0] * angle.cos()) @ waves[:, 1:3]
    normal = torch.nn.functional.normalize(torch.cat([-slope, torch.ones_like(slope[:, :1])], -1), dim=-1)
    cell = ((xy - passing_constant(ground.origin, xy)) / ground.resolution).floor().long()
    nx, ny = ground.labels.shape
    flat = cell[:, 0].clamp(0, nx - 1) * ny + cell[:, 1].clamp(0, ny - 1)
    return normal, xy, ground.materials.reshape(-1)[flat].long(), ground.labels.reshape(-1)[flat]


def shade(
    around: Surroundings,
    image: Tensor,
    rays: Tensor,
    distance: Tensor,
    normal: Tensor,
    uv: Tensor,
    material: Tensor,
    on_ground: bool,
) -> Tensor:
    """Light that surface points send to the eye.

    Args:
        around: the surroundings.
        image: int64 [M].
        rays: float32 [M, 3] unit, from the eye.
        distance: float32 [M] metres.
        normal: float32 [M, 3].
        uv: float32 [M, 2] metres.
        material: int64 [M].
        on_ground: whether these are points of the ground, which rain makes shine.

    Returns:
        float32 [M, 3] linear radiance.
    """
    light = around.light

    def new(values: float | Sequence[float]) -> Tensor:
        return passing_constant(values, rays)

    points = rays * distance[:, None]
    row = around.geometry.table[material]
    facing = -(normal * rays).sum(-1)
    normal = torch.where(facing[:, None] < 0, -normal, normal)
    facing = facing.abs()
    footprint = distance * around.pixel_angle[image] / facing.clamp_min(0.08).sqrt()
    scaled = uv * row[:, SCALE, None] + row[:, OFFSET : OFFSET + 2]
    level = (footprint * row[:, SCALE] * SIDE).clamp_min(1e-6).log2()
    layer = row[:, LAYER].long()
    texel = around.atlas.sample(layer, scaled[:, 0], scaled[:, 1], level)
    mix, gain = texel[:, 0], texel[:, 1]
    color = torch.lerp(row[:, BASE : BASE + 3], row[:, SECOND : SECOND + 3], mix[:, None]) * gain[:, None]
    tint = torch.stack([1 + texel[:, 2], 1 + texel[:, 3], 1 - 0.5 * (texel[:, 2] + texel[:, 3])], -1)
    color = color * tint
    roughness = row[:, ROUGHNESS]
    pane = mix * (layer // VARIANTS == _WINDOWS)
    roughness = roughness - (roughness - 0.12).clamp_min(0) * pane
    if on_ground and light.wet:
        # Puddles: where the noise of the ground is low the water stands.
        water = around.atlas.sample(
            torch.full_like(layer, PUDDLES), uv[:, 0] / 9, uv[:, 1] / 9, (level - 2).clamp_min(0)
        )[:, 0]
        water = light.wet * (0.45 + 0.55 * ((water - 0.35) * 4).clamp(0, 1))
        color = color * (1 - 0.45 * water)[:, None]
        roughness = roughness * (1 - 0.85 * water)
    elif light.wet:
        roughness = roughness * 0.8
    sun_direction = new(light.sun_direction)
    cosine = (normal @ sun_direction).clamp_min(0)
    # Starting a little off the surface keeps it from shading itself.
    lifted = points + normal * (0.06 + 0.0015 * distance)[:, None]
    lit = around.sun.lit(image, lifted, normal, 0.04) * cosine
    open_ = around.overhead.openness(image, lifted)
    up = 0.5 + 0.5 * normal[:, 2:]
    sky = torch.lerp(new(light.horizon), new(light.zenith), 0.55)
    bounce = 0.22 * (sky + new(light.sun) * max(light.sun_direction[2], 0.0) * 0.5)
    ambient = torch.lerp(bounce, sky, up) * (0.25 + 0.75 * open_)[:, None]
    radiance = color * (lit[:, None] * new(light.sun) * 0.42 + ambient * 0.85)
    mirrored = rays + 2 * (facing)[:, None] * normal
    gloss = (1 - roughness).clamp_min(0)
    fresnel = 0.05 + 0.95 * (1 - facing) ** 5
    strength = gloss**2 * fresnel + 0.06 * gloss * pane
    reflected = sky_color(light, mirrored, around.atlas, detailed=False)
    below = (0.5 - 4 * mirrored[:, 2]).clamp(0, 1)[:, None]
    reflected = torch.lerp(reflected, bounce * 0.6, below) * (0.35 + 0.65 * open_)[:, None]
    radiance = torch.lerp(radiance, reflected, strength.clamp(0, 0.9)[:, None])
    highlight = (mirrored @ sun_direction).clamp_min(0) ** 60 * gloss**2 * 1.2
    radiance = radiance + (highlight * (lit > 0.02) * lit.clamp_max(0.5))[:, None] * new(light.sun)
    radiance = radiance + color * row[:, EMISSION, None] * (0.25 + 3 * light.lamps)
    if light.lamps:
        radiance = radiance + _lamp_light(around, image, points, normal, color, pane, gain, scaled)
    left = torch.exp(-distance / light.fog_m)[:, None]
    return torch.lerp(new(light.fog), radiance, left)


def _lamp_light(
    around: Surroundings,
    image: Tensor,
    points: Tensor,
    normal: Tensor,
    color: Tensor,
    pane: Tensor,
    gain: Tensor,
    scaled: Tensor,
) -> Tensor:
    """Head lamps of the ego car, and windows behind which somebody is at home."""
    ego = around.ego2world
    forward = ego[:, :3, 0].float()[image]
    lamp = (ego[:, :3, 3] + 3.6 * ego[:, :3, 0] + 0.7 * ego[:, :3, 2] - around.eyes).float()[image]
    way = points - lamp
    away = way.norm(dim=-1).clamp_min(0.5)
    beam = way / away[:, None]
    angle = (beam * forward).sum(-1)
    # A broad low beam with a bright core that is cut off a little below the horizon.
    rise = (beam * ego[:, :3, 2].float()[image]).sum(-1)
    core = ((angle - 0.80) / 0.2).clamp(0, 1) ** 2 + 0.25 * ((angle - 0.3) / 0.5).clamp(0, 1)
    core = core * (1 - ((rise - 0.02) / 0.06).clamp(0, 0.92))
    onto = -(normal * beam).sum(-1).clamp(-1, 0)
    lamp_light = 14 * core * (0.15 + onto) / (8 + away**1.7)
    # Tail of the street's lighting: a dim orange everywhere near the ground.
    street = 0.055 * torch.exp(-((points[:, 2] + 1.0).clamp_min(0) / 6)) * (0.4 + 0.6 * normal[:, 2].clamp_min(0))
    window = (scaled * 4).floor().long()
    home = pane * ((window[:, 0] * 73856093 + window[:, 1] * 19349663 + 811) % 1009 > 720)
    glow = (home * 0.5 * gain)[:, None] * constant([1.0, 0.72, 0.38], points)
    warm = constant([1.0, 0.80, 0.55], points)
    return around.light.lamps * (
        color * (lamp_light[:, None] * constant([1.0, 0.96, 0.88], points) + street[:, None] * warm) + glow
    )
