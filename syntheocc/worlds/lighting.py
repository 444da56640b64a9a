"""Light, sky and air of a scene: what follows from its weather, its time of day and where the sun stands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from syntheocc.occupancy.constants import passing_constant
from syntheocc.worlds.scene import Scene
from syntheocc.worlds.textures import Atlas, layer_of

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Lighting:
    """Linear RGB radiances and metres.

    Args:
        sun_direction: unit vector towards the sun (the moon at night).
        sun: light of the sun on a surface that faces it.
        zenith, horizon: colour of the sky above and at the horizon; what they send down is the ambient light.
        clouds: 0 (blue sky) .. 1 (closed cover).
        fog_m: distance at which 1/e of a colour is left.
        fog: colour of the air.
        wet: 0 .. 1, how wet the ground is.
        rain: 0 .. 1, streaks in the air.
        lamps: strength of head lamps, street lamps and lit windows.
        exposure: what the camera's automatic makes of it.
    """

    sun_direction: tuple[float, float, float]
    sun: Color
    zenith: Color
    horizon: Color
    clouds: float
    fog_m: float
    fog: Color
    wet: float
    rain: float
    lamps: float
    exposure: float


def _scaled(color: Color, factor: float) -> Color:
    red, green, blue = color
    return factor * red, factor * green, factor * blue


def lighting_of(scene: Scene) -> Lighting:
    """The light of a scene; small differences between scenes of one weather follow from the scene's seed."""
    random = torch.Generator().manual_seed(scene.seed * 7919 + 17)
    vary = [float(value) for value in torch.rand(6, generator=random)]
    height = max(float(scene.sun_direction[2]), 0.0)
    # Low sun is red: the blue is lost on the long way through the air.
    low = math.exp(-height / 0.18)
    sun = (3.2 * (1 - 0.25 * low), 3.0 * (1 - 0.5 * low), 2.7 * (1 - 0.75 * low))
    zenith, horizon = (0.22, 0.42, 0.85), (0.72, 0.80, 0.90)
    clouds, fog_m, wet, rain, lamps, exposure = 0.15 + 0.5 * vary[0], 900.0, 0.0, 0.0, 0.0, 0.62
    if scene.weather != "clear":
        share = {"overcast": 0.06, "rain": 0.02, "fog": 0.05}[scene.weather]
        sun = _scaled(sun, share)
        gray = 0.75 + 0.25 * vary[1]
        zenith, horizon = (0.62 * gray, 0.66 * gray, 0.72 * gray), (0.80 * gray, 0.83 * gray, 0.87 * gray)
        clouds, fog_m = 1.0, {"overcast": 600.0, "rain": 160.0, "fog": 28.0 + 40 * vary[2]}[scene.weather]
        wet, rain = (1.0, 0.4 + 0.6 * vary[3]) if scene.weather == "rain" else (0.0, 0.0)
        exposure = 0.8
    if scene.light == "dusk":
        sun, zenith = _scaled(sun, 0.45), _scaled(zenith, 0.30)
        warm = (0.62, 0.42, 0.32) if scene.weather == "clear" else (0.42, 0.40, 0.42)
        red, green, blue = (0.9 * w * h for w, h in zip(warm, horizon, strict=True))
        horizon = (red, green, blue)
        lamps, exposure = 0.35, 1.7
    elif scene.light == "night":
        sun = _scaled((0.8, 0.9, 1.1), 0.006)
        zenith, horizon = (0.006, 0.008, 0.015), (0.022, 0.021, 0.024)
        lamps, exposure = 1.0, 2.6
    red, green, blue = (0.55 * h + 0.45 * z for h, z in zip(horizon, zenith, strict=True))
    x, y, z = (float(value) for value in scene.sun_direction)
    return Lighting(
        (x, y, z),
        sun,
        zenith,
        horizon,
        clouds,
        fog_m,
        (red, green, blue),
        wet,
        rain,
        lamps,
        exposure * (0.92 + 0.16 * vary[4]),
    )


def sky_color(light: Lighting, directions: Tensor, atlas: Atlas, detailed: bool) -> Tensor:
    """Radiance of the sky, float32 [M, 3], in unit directions [M, 3]; reflections need no clouds and no sun's disc."""

    def new(values: Sequence[float]) -> Tensor:
        return passing_constant(values, directions)

    zenith, horizon, fog = new(light.zenith), new(light.horizon), new(light.fog)
    up = directions[:, 2].clamp_min(0)
    color = torch.lerp(horizon, zenith, (1 - (1 - up) ** 3.5)[:, None])
    cosine = (directions @ new(light.sun_direction)).clamp_min(0)
    glow = (0.10 * cosine**6 + 0.25 * cosine**60)[:, None] * (1 - 0.8 * light.clouds)
    color = color + glow * new(light.sun)
    if detailed:
        # Clouds on a plane high above: two octaves of one texture.
        plane = directions[:, :2] / (up + 0.12)[:, None]
        layer = torch.full_like(plane[:, 0], layer_of("noise", 1), dtype=torch.int64)
        zero = torch.zeros_like(plane[:, 0])
        coarse = atlas.sample(layer, plane[:, 0] * 0.11, plane[:, 1] * 0.11, zero)[:, 0]
        fine = atlas.sample(layer, plane[:, 0] * 0.37 + 0.3, plane[:, 1] * 0.37, zero + 1)[:, 0]
        cover = ((0.65 * coarse + 0.35 * fine) - 0.75 + 0.75 * light.clouds).clamp(0, 0.5) * 2 * (up * 6).clamp(0, 1)
        bright = horizon * (0.9 + 0.35 * fine[:, None]) + 0.12 * new(light.sun) * (1 - light.clouds)
        color = torch.lerp(color, bright, (0.85 * cover)[:, None])
        disc = ((cosine - 0.9990) * 2500).clamp(0, 1)[:, None] * (1 - light.clouds)
        color = color + disc * 6 * new(light.sun)
    # Haze and fog hang low.
    haze = torch.exp(-up * (0.35 * light.fog_m / 60 + 0.4))[:, None] if light.fog_m < 500 else (1 - up)[:, None] ** 12
    return torch.lerp(color, fog, haze * (0.9 if light.fog_m < 500 else 0.3))
