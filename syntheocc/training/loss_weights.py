"""How much the loss counts where: foreground more, far foreground more still, and more as training goes on.

The formulas are SyntheOcc's (specs/syntheocc.md 3, arXiv 2410.00337): on latent pixels whose nearest class is a
foreground class the squared error is multiplied by ``depth_weight * progressive_weight``, elsewhere by 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def depth_weight(
    plane: Tensor,  # [...] integer, the nearest plane's index
    num_planes: int = 256,
) -> Tensor:
    """``2.1 - 0.5 (1 + cos(pi plane / (num_planes - 1)))``: 1.1 on the nearest plane, 2.1 on the farthest; float32.

    Example:
        >>> depth_weight(torch.tensor([0, 255]))
        tensor([1.1000, 2.1000])
    """
    return 2.1 - 0.5 * (1 + torch.cos(math.pi * plane.float() / max(num_planes - 1, 1)))


def progressive_weight(step: int, max_steps: int) -> float:
    """``2.2 - 0.5 (1 + cos(pi step / max_steps))``: 1.2 at the first step, 2.2 at the last.

    Example:
        >>> [round(progressive_weight(step, 100), 6) for step in (0, 50, 100)]
        [1.2, 1.7, 2.2]
    """
    return 2.2 - 0.5 * (1 + math.cos(math.pi * min(step, max_steps) / max_steps))


@dataclass(frozen=True)
class LossWeights:
    """Which weights the loss has.

    Args:
        depth: multiply foreground by `depth_weight`.
        progressive: multiply foreground by `progressive_weight`.
        num_planes: planes that `nearest_plane` counts; the step fills in the ControlNet's.
        foreground: ids of the foreground classes; 1..10 of SyntheOcc's table.
    """

    depth: bool = True
    progressive: bool = True
    num_planes: int = 256
    foreground: tuple[int, ...] = tuple(range(1, 11))


def foreground_table(foreground: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Bool [256], true at the ids of foreground classes."""
    table = torch.zeros(256, dtype=torch.bool)
    table[list(foreground)] = True
    return table.to(device)


def loss_weight_map(
    nearest: Tensor,  # uint8 [..., h, w] class ids
    nearest_plane: Tensor,  # integer [..., h, w]
    step: int,
    max_steps: int,
    weights: LossWeights = LossWeights(),  # noqa: B008 (frozen)
    is_foreground: Tensor | None = None,  # bool [256], `foreground_table(weights.foreground)` made before
) -> Tensor:
    """Weight of every latent pixel, float32 [..., h, w]; 1 where the nearest class is not a foreground class."""
    if is_foreground is None:
        is_foreground = foreground_table(weights.foreground, nearest.device)
    weight = torch.ones(nearest.shape, device=nearest.device)
    if weights.depth:
        weight = weight * depth_weight(nearest_plane, weights.num_planes)
    if weights.progressive:
        weight = weight * progressive_weight(step, max_steps)
    return torch.where(is_foreground[nearest.int()], weight, 1.0)
