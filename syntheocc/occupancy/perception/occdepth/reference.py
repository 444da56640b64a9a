"""What the fast operations of this folder compute, voxel by voxel; slow, for tests."""

import math

import torch
from torch import Tensor

from syntheocc.occupancy.perception.view_transform import DepthBins

__all__ = ["depth_shares", "lift_voxels"]


def lift_voxels(
    features: Tensor,  # [V, C, h, w]
    pixels: Tensor,  # [V, N, P, 2]
    inside: Tensor,  # bool [V, N, P]
    stride: int = 1,
    fusion: str = "cosine",
) -> Tensor:
    """`lifting.lift_features` of one scale and one sample: [N, C]."""
    views, channels, height, width = features.shape
    result = []
    for n in range(pixels.shape[1]):
        seen: list[Tensor | None] = []
        for v in range(views):
            found = [
                _read(features[v], pixels[v, n, k].tolist(), stride, not pixels.is_floating_point())
                for k in range(pixels.shape[2])
                if inside[v, n, k]
            ]
            seen.append(torch.stack(found).mean(0) if found else None)
        total = torch.zeros(channels, dtype=features.dtype)
        if views == 1:
            total = total if seen[0] is None else seen[0]
        for i in range(views):
            for j in range(i + 1, views):
                a, b = seen[i], seen[j]
                if a is not None and b is not None:
                    cosine = torch.dot(a, b) / (a.norm() * b.norm())
                    total = total + (a + b) * (cosine + (fusion == "similarity"))
                for alone in (a, b):
                    if alone is not None and (a is None or b is None):
                        total = total + alone * (2 if fusion == "similarity" else 1)
        result.append(total / max(1, views * (views - 1)))
    return torch.stack(result)


def _read(features: Tensor, pixel: list[float], stride: int, nearest: bool) -> Tensor:
    """[C] of a map [C, h, w] at a pixel (u, v) of the picture."""
    u, v = pixel
    if nearest:
        return features[:, int(v) // stride, int(u) // stride]
    height, width = features.shape[-2:]
    x = min(max((u + 0.5) / stride - 0.5, 0.0), width - 1.0)
    y = min(max((v + 0.5) / stride - 0.5, 0.0), height - 1.0)
    total = torch.zeros(len(features), dtype=features.dtype)
    for column in range(width):
        for row in range(height):
            weight = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
            if weight:
                total = total + weight * features[:, row, column]
    return total


def depth_shares(
    probability: Tensor,  # [D]
    near: float,
    far: float,
    bins: DepthBins,
    spacing: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """How much of one distribution lies between two depths (metres), before them and behind them.

    A bin's probability is spread evenly over the bin: over its depths if bins are uniform, over the place between its
    edges (`depth_bins.linear_places`) if they grow.
    """
    within, front = torch.zeros(()), torch.zeros(())
    for k, share in enumerate(probability):
        a, b = (min(max(_place(z, bins, spacing), 0.0), float(bins.number)) for z in (near, far))
        before = min(max(a - k, 0.0), 1.0)
        front = front + share * before
        within = within + share * (min(max(b - k, 0.0), 1.0) - before)
    return within, front, 1 - within - front


def _place(z: float, bins: DepthBins, spacing: str) -> float:
    """At which edge a depth lies, as a number with a fraction."""
    if spacing == "uniform":
        return (z - bins.near) / bins.step
    width = 2 * (bins.far - bins.near) / (bins.number * (bins.number + 1))
    return -0.5 + 0.5 * math.sqrt(max(0.0, 1 + 8 * (z - bins.near) / width))
