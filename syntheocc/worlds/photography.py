"""From radiance to the bytes of a photograph: exposure, blur, tone curve, noise, rain on the way.

Legend: N images, H W pixels.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from syntheocc.worlds.lighting import Lighting

_GRAIN = 256


@lru_cache(maxsize=4)
def _grain(device: torch.device) -> tuple[Tensor, Tensor]:
    """A tile of Gaussian noise [256, 256, 3] and one of rain streaks [256, 256]: the same on every device."""
    random = torch.Generator().manual_seed(20260)
    noise = torch.randn(_GRAIN, _GRAIN, 3, generator=random)
    drops = (torch.rand(_GRAIN, _GRAIN, generator=random) < 0.0035).float()
    streaks = torch.zeros_like(drops)
    for k in range(22):
        streaks += drops.roll((k, k // 7), (0, 1)) * math.sin(math.pi * (k + 1) / 23)
    return noise.to(device), streaks.clamp_max(1).to(device)


def develop(radiance: Tensor, light: Lighting, seeds: list[int], sharp: bool = False) -> Tensor:
    """Photographs of radiances.

    Args:
        radiance: float32 [N, H, W, 3], linear.
        light: gives the exposure and the rain.
        seeds: one an image; exposure, white balance, blur and noise follow from it.
        sharp: leave out blur, noise and streaks (for tests and figures).

    Returns:
        uint8 [N, H, W, 3].
    """
    images, height, width, _ = radiance.shape
    device = radiance.device
    settings = torch.stack([torch.rand(10, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    gain = light.exposure * 2 ** (0.5 * settings[:, :1] - 0.25) * (1 + 0.06 * (settings[:, 1:4] - 0.5))
    color = radiance * gain.to(device)[:, None, None]
    if not sharp:
        sigma = (0.42 + 0.14 * settings[:, 4]) * max(1.0, height / 700)
        if light.rain:
            sigma = sigma * 1.3
        color = _blur(color, sigma.to(device))
    # Vignetting.
    y = (torch.arange(height, device=device) + 0.5) / height - 0.5
    x = (torch.arange(width, device=device) + 0.5) / width - 0.5
    color = color * (1 - 0.25 * (y[:, None] ** 2 + x**2))[..., None]
    noise, streaks = _grain(device)
    if light.rain and not sharp:
        zoom = max(1, round(height / 450))
        for layer in (1, 2):
            tile = _tiled(streaks, height, width, zoom * layer, settings[:, 5 + layer])
            color = torch.lerp(color, color.mean((1, 2), keepdim=True) * 1.25, 0.16 * light.rain * tile[..., None])
    # A filmic shoulder: straight in the shadows, bending towards 1.
    color = color * (1 + color / 9) / (1 + color)
    color = (1.18 * color).clamp(0, 1)
    encoded = torch.where(color <= 0.0031308, 12.92 * color, 1.055 * color.clamp_min(1e-6) ** (1 / 2.4) - 0.055)
    if not sharp:
        strength = (0.004 + 0.006 * settings[:, 5]) * (1 + 1.2 * (light.exposure > 1.5))
        grain = _tiled(noise, height, width, 1, settings[:, 8])
        encoded = encoded + grain * strength.to(device)[:, None, None, None] * (1.2 - 0.6 * encoded)
    return (encoded * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def _tiled(tile: Tensor, height: int, width: int, zoom: int, places: Tensor) -> Tensor:
    """The tile [S, S, ...] laid over N images, from places [N] in 0..1, enlarged a whole number of times."""
    side = tile.shape[0]
    start = (places.double() * 65521).long().to(tile.device)[:, None]
    rows = (torch.arange(height, device=tile.device) // zoom + start) % side
    columns = (torch.arange(width, device=tile.device) // zoom + start // side) % side
    return tile[rows[:, :, None], columns[:, None]]


def _blur(color: Tensor, sigma: Tensor) -> Tensor:
    """A separable five-tap Gaussian; sigma [N] pixels."""
    taps = torch.exp(-0.5 * (torch.arange(-2, 3, device=color.device) / sigma[:, None]) ** 2)
    taps = (taps / taps.sum(1, keepdim=True))[:, :, None, None, None]
    for axis in (1, 2):
        length = color.shape[axis]
        index = torch.arange(length, device=color.device)
        blurred = taps[:, 2] * color
        for k in (0, 1, 3, 4):
            blurred = blurred + taps[:, k] * color.index_select(axis, (index + k - 2).clamp(0, length - 1))
        color = blurred
    return color
