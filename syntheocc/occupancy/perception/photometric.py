"""Random changes of brightness, contrast, saturation, hue and channel order (specs/sparseocc.md 1.5).

The draws (`draw_photometric`, on the CPU, a sample's own generator) are apart from their application
(`apply_photometric`, a batch on its device), so a sample looks the same in whatever batch it comes.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["Photometric", "apply_photometric", "draw_photometric"]


@dataclass
class Photometric:
    """One draw an image; every field is [N], `channels` [N, 3]."""

    brightness: Tensor
    """Added, on the scale 0..255."""
    early_contrast: Tensor
    """Factor before the change of colours; 1 in half of the images and where the late one is used."""
    saturation: Tensor
    """Factor of S."""
    hue: Tensor
    """Degrees added to H."""
    late_contrast: Tensor
    channels: Tensor
    """int64 order of the channels."""

    @classmethod
    def cat(cls, draws: "list[Photometric]") -> "Photometric":
        """The draws of several samples as one."""
        return cls(**{f.name: torch.cat([getattr(d, f.name) for d in draws]) for f in fields(cls)})


def draw_photometric(number: int, generator: torch.Generator) -> Photometric:
    """Draw the changes of `number` images, each on its own; every change is made to half of them."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(number, generator=generator)

    def coin() -> Tensor:
        return torch.rand(number, generator=generator) < 0.5

    contrast = torch.where(coin(), uniform(0.5, 1.5), 1.0)
    early = coin()
    order = torch.rand(number, 3, generator=generator).argsort(-1)
    return Photometric(
        brightness=torch.where(coin(), uniform(-32, 32), 0.0),
        early_contrast=torch.where(early, contrast, 1.0),
        saturation=torch.where(coin(), uniform(0.5, 1.5), 1.0),
        hue=torch.where(coin(), uniform(-18, 18), 0.0),
        late_contrast=torch.where(early, 1.0, contrast),
        channels=torch.where(coin()[:, None], order, torch.arange(3)),
    )


def apply_photometric(images: Tensor, draw: Photometric) -> Tensor:
    """Change RGB images.

    Args:
        images: [N, 3, H, W] RGB on the scale 0..255, uint8 or float.
        draw: for N images, on the same device.

    Returns:
        float [N, 3, H, W] in the images' memory format; values may leave 0..255, nothing is clamped on the way.
    """
    per_image = lambda values: values[:, None, None, None]  # noqa: E731
    x = images if images.is_floating_point() else images.float()
    x = (x + per_image(draw.brightness)) * per_image(draw.early_contrast)
    changed = _change_colours(x, draw.saturation[:, None, None], draw.hue[:, None, None])
    # The way through HSV is taken only by those whose colours change: it costs rounding.
    wanted = (draw.saturation != 1) | (draw.hue != 0)
    x = torch.where(per_image(wanted), changed, x) * per_image(draw.late_contrast)
    return x.gather(1, draw.channels[:, :, None, None].expand_as(x))


def _change_colours(rgb: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Scale S and turn H of RGB images [N, 3, H, W].

    With V the largest channel and C = V - min the chroma (S = C / V), S scales C, and a channel's distance below V is
    C times a function of H alone; so only the hue needs branches, and black (V = 0) needs none.
    """
    value, minimum = rgb.amax(1), rgb.amin(1)
    chroma = value - minimum
    safe = torch.where(chroma == 0, 1.0, chroma)
    r, g, b = rgb.unbind(1)
    sector = torch.where(value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    # H in sixths of a turn.
    sector = sector + hue / 60
    chroma = chroma * saturation
    channels = [value - chroma * _below_value((sector + offset).remainder(6.0)) for offset in (5.0, 3.0, 1.0)]
    return torch.stack(channels, 1)


def _below_value(k: Tensor) -> Tensor:
    """How far below V a channel lies, in units of the chroma: max(0, min(k, 4 - k, 1))."""
    return torch.minimum(k, 4 - k).clamp(0, 1)
