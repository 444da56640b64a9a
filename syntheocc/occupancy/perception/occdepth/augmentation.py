"""How training pictures are changed: colours, mirroring, and what the originals call strong augmentation.

The grid and its labels are never mirrored: this is an augmentation of the pictures alone (specs/occdepth.md 1.5).
Colours are drawn once for both views; the published loader draws them for each view, which weakens the similarity that
voxels are weighed by (`shared=False`).

Legend: V views, H W network input.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Colours", "StereoAugmentation", "StereoDraw", "Strong", "apply_colours", "apply_strong"]

_GREY = (0.2989, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True)
class Colours:
    """One draw of colour jitter: factors, and the order in which they are applied."""

    brightness: float
    contrast: float
    saturation: float
    order: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Strong:
    """One draw of the strong augmentation; None leaves a part out."""

    blur: float | None = None
    """Deviation of a 3 x 3 Gaussian, pixels."""
    grey: bool = False
    erased: tuple[float, float, float, float] | None = None
    """A rectangle set to 0: top and left as shares of the room there is, height and width as shares of its."""


@dataclass(frozen=True)
class StereoDraw:
    """The draws of one sample, one a view."""

    flip: bool
    colours: tuple[Colours | None, ...]
    strong: tuple[Strong | None, ...]


@dataclass(frozen=True, kw_only=True)
class StereoAugmentation:
    """What is drawn.

    Args:
        jitter: largest relative change of brightness, contrast and saturation; 0: none.
        flip: share of samples that are mirrored.
        shared: one draw of colours for both views.
        strong: blurred, grey and partly erased pictures besides (off in all published configurations).

    Raises:
        ValueError: a share outside 0..1.
    """

    jitter: float = 0.4
    flip: float = 0.5
    shared: bool = True
    strong: bool = False

    def __post_init__(self):
        for name in ("jitter", "flip"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a share, 0 to 1; got {getattr(self, name)}")

    def draw(self, views: int, generator: torch.Generator) -> StereoDraw:
        """Draw for a sample."""
        flip = float(torch.rand((), generator=generator)) < self.flip
        number = 1 if self.shared else views
        colours = tuple(self._colours(generator) for _ in range(number))
        strong = tuple(_draw_strong(generator) if self.strong else None for _ in range(number))
        return StereoDraw(flip, colours * (views // number), strong * (views // number))

    def _colours(self, generator: torch.Generator) -> Colours | None:
        if not self.jitter:
            return None
        brightness, contrast, saturation = (1 + self.jitter * (2 * torch.rand(3, generator=generator) - 1)).tolist()
        return Colours(brightness, contrast, saturation, tuple(torch.randperm(3, generator=generator).tolist()))


def apply_colours(image: np.ndarray, draw: Colours) -> np.ndarray:
    """Change an RGB image uint8 [H, W, 3]; each step is rounded and clipped to bytes, as torchvision's on pictures."""
    from PIL import Image, ImageEnhance

    picture = Image.fromarray(image)
    steps = (
        (ImageEnhance.Brightness, draw.brightness),
        (ImageEnhance.Contrast, draw.contrast),
        (ImageEnhance.Color, draw.saturation),
    )
    for index in draw.order:
        enhance, factor = steps[index]
        picture = enhance(picture).enhance(factor)
    return np.asarray(picture)


def apply_strong(image: Tensor, draw: Strong) -> Tensor:
    """Change a normalised image float32 [3, H, W]; gives a new one."""
    if draw.blur is not None:
        weights = torch.exp(-0.5 * (torch.tensor([-1.0, 0.0, 1.0]) / draw.blur) ** 2)
        weights = weights / weights.sum()
        padded = F.pad(image[None], (1, 1, 1, 1), mode="reflect")[0]
        rows = weights[0] * padded[:, :-2] + weights[1] * padded[:, 1:-1] + weights[2] * padded[:, 2:]
        image = weights[0] * rows[..., :-2] + weights[1] * rows[..., 1:-1] + weights[2] * rows[..., 2:]
    if draw.grey:
        image = (image * torch.tensor(_GREY)[:, None, None]).sum(0).expand(3, -1, -1)
    image = image.clone()
    if draw.erased is not None:
        top, left, tall, wide = draw.erased
        shares = zip((top, left), (tall, wide), image.shape[1:], strict=True)
        across, along = (_span(place, share, number) for place, share, number in shares)
        image[:, across, along] = 0.0
    return image


def _span(place: float, share: float, number: int) -> slice:
    length = min(number, round(share * number))
    start = int(place * (number - length + 1))
    return slice(start, start + length)


def _draw_strong(generator: torch.Generator) -> Strong:
    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    blur = uniform(0.1, 2.0) if uniform(0, 1) < 0.3 else None
    if uniform(0, 1) >= 0.3:
        return Strong(blur)
    grey, erased = uniform(0, 1) < 0.1, None
    if uniform(0, 1) < 0.5:
        area, ratio = uniform(0.01, 0.02), float(np.exp(uniform(np.log(0.3), np.log(3.0))))
        erased = (uniform(0, 1), uniform(0, 1), float(np.sqrt(area * ratio)), float(np.sqrt(area / ratio)))
    return Strong(blur, grey, erased)
