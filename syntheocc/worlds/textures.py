"""The texture atlas: every pattern of `syntheocc.worlds.materials` in a few looks, tileable, with mip levels.

A texel holds four numbers: how far the colour goes from the material's base to its second colour (0..1), a gain on the
result (0..2), and two shifts of hue (-1..1; they make posters colourful). The atlas depends on nothing but this file
and is made once a process; which looks a split may use is the scene's business. Legend: L layers, S texels a side.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.worlds.materials import PATTERNS, VARIANTS

SIDE = 256
LEVELS = 9


@dataclass(frozen=True, eq=False)
class Atlas:
    """All texels of all levels, flat.

    Args:
        texels: uint8 [sum of L * (S >> level)^2, 4]: mix, gain, warm, green as read by `sample`.
        starts: int64 [LEVELS], where each level begins.
    """

    texels: Tensor
    starts: Tensor

    def sample(self, layer: Tensor, u: Tensor, v: Tensor, level: Tensor) -> Tensor:
        """Bilinear texels.

        Args:
            layer: int64 [M].
            u: float32 [M]; 1 is one repetition.
            v: float32 [M], upwards on walls.
            level: float32 [M] mip level; the next integer is read.

        Returns:
            float32 [M, 4]: mix 0..1, gain 0..2, shifts of hue -1..1.
        """
        level = level.round().clamp(0, LEVELS - 1).nan_to_num(0).long()
        side = torch.bitwise_right_shift(torch.full_like(level, SIDE), level)
        x = (u - u.floor()) * side - 0.5
        y = (v - v.floor()) * side - 0.5
        x0, y0 = x.floor(), y.floor()
        fx, fy = (x - x0)[:, None], (y - y0)[:, None]
        mask = side - 1
        left, top = x0.long() & mask, y0.long() & mask
        right, bottom = (left + 1) & mask, (top + 1) & mask
        start = self.starts[level] + layer * side * side
        rows_top, rows_bottom = start + top * side, start + bottom * side
        upper = torch.lerp(self.texels[rows_top + left].float(), self.texels[rows_top + right].float(), fx)
        lower = torch.lerp(self.texels[rows_bottom + left].float(), self.texels[rows_bottom + right].float(), fx)
        value = torch.lerp(upper, lower, fy)
        scale = constant([1 / 255, 2 / 255, 2 / 255, 2 / 255], value)
        return value * scale - constant([0.0, 0.0, 1.0, 1.0], value)


@lru_cache(maxsize=8)
def atlas(device: torch.device | str = "cpu") -> Atlas:
    """The atlas on a device."""
    if torch.device(device).type != "cpu":
        made = atlas("cpu")
        return Atlas(made.texels.to(device), made.starts.to(device))
    layers = np.stack([_layer(pattern, variant) for pattern in PATTERNS for variant in range(VARIANTS)])
    levels, starts, start = [], [], 0
    for _ in range(LEVELS):
        levels.append(torch.from_numpy((layers * 255 + 0.5).astype(np.uint8)).reshape(-1, 4))
        starts.append(start)
        start += len(levels[-1])
        layers = (layers[:, ::2, ::2] + layers[:, 1::2, ::2] + layers[:, ::2, 1::2] + layers[:, 1::2, 1::2]) / 4
    return Atlas(torch.cat(levels), torch.tensor(starts))


def layer_of(pattern: str, variant: int = 0) -> int:
    """The atlas row of a look of a pattern."""
    return PATTERNS.index(pattern) * VARIANTS + variant % VARIANTS


def _layer(pattern: str, variant: int) -> np.ndarray:
    """float32 [S, S, 4], 0..1: mix, gain / 2, (shift + 1) / 2 twice. Row 0 is the bottom of a wall."""
    random = np.random.default_rng([PATTERNS.index(pattern), variant])
    mix, gain, hue = _PAINTERS[pattern](random)
    out = np.empty((SIDE, SIDE, 4))
    out[..., 0], out[..., 1] = mix, np.clip(gain, 0, 2) / 2
    out[..., 2:] = 0.5 + 0.5 * np.clip(hue if np.ndim(hue) else np.zeros((SIDE, SIDE, 2)), -1, 1)
    return np.clip(out, 0, 1).astype(np.float32)


def _noise(random: np.random.Generator, power: float = 1.8, low: float = 1.0, stretch: float = 1.0) -> np.ndarray:
    """Tileable noise of zero mean and unit spread whose spectrum falls with frequency^-power above `low` cycles."""
    fy = np.fft.fftfreq(SIDE, 1 / SIDE)[:, None]
    fx = np.fft.rfftfreq(SIDE, 1 / SIDE)[None] * stretch
    radius = np.hypot(fx, fy)
    spectrum = np.where(radius >= low, np.maximum(radius, 1e-9) ** -power, 0)
    noise = np.fft.irfft2(np.fft.rfft2(random.standard_normal((SIDE, SIDE))) * spectrum, (SIDE, SIDE))
    return noise / noise.std()


def _step(value: np.ndarray, edge: float, width: float) -> np.ndarray:
    return np.clip((value - edge) / width + 0.5, 0, 1)


def _cells(rows: int, columns: int, shift: float = 0.0) -> tuple[np.ndarray, ...]:
    """Row and column index of every texel's cell, and its place (0..1) within; odd rows are shifted."""
    y, x = np.meshgrid((np.arange(SIDE) + 0.5) / SIDE, (np.arange(SIDE) + 0.5) / SIDE, indexing="ij")
    y = y * rows
    x = x * columns + shift * (np.floor(y) % 2)
    return np.floor(y).astype(int) % rows, np.floor(x).astype(int) % columns, y % 1, x % 1


def _plain(random: np.random.Generator):
    return 0.12 * (1 + _noise(random, 1.5)), 1 + 0.04 * _noise(random), 0


def _noisy(random: np.random.Generator):
    return (
        _step(_noise(random, 1.6), 0.2, 2.5),
        1 + 0.1 * _noise(random, 1.0),
        0.05 * np.stack([_noise(random)] * 2, -1),
    )


def _bricks(random: np.random.Generator):
    rows, columns = int(random.choice([16, 24, 32])), int(random.choice([6, 8, 12]))
    i, j, y, x = _cells(rows, columns, 0.5)
    joint = 0.03 + 0.002 * rows
    mortar = (np.minimum(y, 1 - y) < joint) | (np.minimum(x, 1 - x) < joint * columns / rows)
    tone = 1 + 0.16 * random.standard_normal((rows, columns))[i, j]
    hue = 0.12 * random.standard_normal((rows, columns, 2))[i, j]
    return mortar * 0.9, np.where(mortar, 1, tone) + 0.06 * _noise(random), hue * ~mortar[..., None]


def _stripes(random: np.random.Generator):
    count = int(random.choice([2, 4, 6, 10]))
    _, _, _, x = _cells(1, count)
    band = _step(np.abs(x - 0.5), random.uniform(0.15, 0.35), 0.03)
    return band, 1 + 0.06 * _noise(random), 0


def _windows(random: np.random.Generator):
    i, j, y, x = _cells(4, 4)
    half_width, bottom, top = random.uniform(0.2, 0.36), random.uniform(0.25, 0.38), random.uniform(0.78, 0.92)
    across = np.abs(x - 0.5)
    pane = (across < half_width) & (y > bottom) & (y < top)
    frame = (across < half_width + 0.04) & (y > bottom - 0.04) & (y < top + 0.03) & ~pane
    bars = pane & ((across < 0.02) | (np.abs(y - (bottom + 0.65 * (top - bottom))) < 0.02))
    tone = random.uniform(0.55, 1.6, (4, 4))[i, j]
    sky = 0.4 * (y - bottom) / (top - bottom)
    gain = np.where(pane & ~bars, tone + sky, np.where(frame | bars, 1.35, 1 + 0.07 * _noise(random)))
    ledge = (y < 0.05) * 0.12
    stain = 0.06 * np.clip(_noise(random, 1.6, stretch=0.25), 0, None)
    hue = 0.1 * random.standard_normal((4, 4, 2))[i, j] * pane[..., None]
    return np.where(pane & ~bars, 1.0, 0.0), gain - ledge - stain, hue


def _poster(random: np.random.Generator):
    y, x = np.meshgrid(np.arange(SIDE) / SIDE, np.arange(SIDE) / SIDE, indexing="ij")
    mix, gain, hue = np.zeros((SIDE, SIDE)), np.ones((SIDE, SIDE)), np.zeros((SIDE, SIDE, 2))
    hue[:] = random.uniform(-0.6, 0.6, 2)
    for _ in range(9):
        cx, cy, w, h = *random.uniform(0.1, 0.9, 2), *random.uniform(0.04, 0.35, 2)
        shape = random.integers(3)
        inside = (
            np.hypot((x - cx) / w, (y - cy) / h) < 1 if shape == 0 else (np.abs(x - cx) < w) & (np.abs(y - cy) < h)
        )
        mix[inside] = random.uniform(0, 1)
        gain[inside] = random.uniform(0.4, 1.6)
        hue[inside] = random.uniform(-1, 1, 2)
    for line in range(int(random.integers(2, 7))):
        low = 0.08 + 0.11 * line
        letters = np.repeat(random.uniform(size=64) < 0.7, 4)[None] & (np.abs(y - low) < 0.025)
        letters &= (x > 0.12) & (x < random.uniform(0.5, 0.88))
        mix[letters], gain[letters], hue[letters] = 1, 0.25, 0
    edge = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y)) < 0.02
    gain[edge] = 1.3
    return mix, gain, hue


def _leaves(random: np.random.Generator):
    clumps, fine = _noise(random, 1.0, 6), _noise(random, 0.35, 16)
    gain = 1 + 0.32 * np.tanh(clumps) + 0.34 * np.tanh(fine)
    gain = np.where(clumps + 0.7 * fine < -1.1, 0.3 * gain, gain)
    return _step(_noise(random, 1.4), 0.8, 2.0), gain, 0.14 * np.stack([_noise(random, 1.0, 4), fine], -1)


def _checker(random: np.random.Generator):
    count = int(random.choice([2, 4, 8]))
    i, j, _, _ = _cells(count, count)
    return ((i + j) % 2).astype(float), 1 + 0.06 * _noise(random), 0


def _asphalt(random: np.random.Generator):
    grain = _noise(random, 0.2, 24)
    patch = _step(_noise(random, 2.0), random.uniform(0.7, 1.5), 0.15)
    crack = np.abs(_noise(random, 1.7, 2)) < 0.014
    gain = 1 + 0.09 * grain + 0.09 * _noise(random, 1.7) - 0.35 * crack
    return 0.25 * patch, gain, 0.03 * np.stack([_noise(random)] * 2, -1)


def _paint(random: np.random.Generator):
    worn = _step(_noise(random, 1.0, 3) + 0.5 * _noise(random, 0.3, 24), random.uniform(1.0, 1.8), 0.5)
    return worn, 1 + 0.06 * _noise(random, 0.8), 0


def _slabs(random: np.random.Generator):
    rows, columns = int(random.choice([2, 4, 6])), int(random.choice([2, 4]))
    i, j, y, x = _cells(rows, columns, float(random.choice([0.0, 0.5])))
    joint = (np.minimum(y, 1 - y) < 0.012 * rows) | (np.minimum(x, 1 - x) < 0.012 * columns)
    tone = 1 + 0.08 * random.standard_normal((rows, columns))[i, j]
    return joint * 0.8, tone + 0.06 * _noise(random, 1.0) + 0.05 * _noise(random, 0.2, 24), 0


def _grass(random: np.random.Generator):
    blades = _noise(random, 0.3, 12)
    gain = 1 + 0.22 * np.tanh(blades) + 0.16 * _noise(random, 1.4)
    return _step(_noise(random, 1.5), 0.5, 1.8), gain, 0.1 * np.stack([_noise(random, 1.2), blades], -1)


_PAINTERS = {
    "plain": _plain,
    "noise": _noisy,
    "bricks": _bricks,
    "stripes": _stripes,
    "windows": _windows,
    "poster": _poster,
    "leaves": _leaves,
    "checker": _checker,
    "asphalt": _asphalt,
    "paint": _paint,
    "slabs": _slabs,
    "grass": _grass,
}
