"""Kernel distance of two sets of features (KID), with the distance of real from real beside it.

The unbiased estimate of the squared maximum mean discrepancy with the kernel (x.y / F + 1)^3 (Binkowski et al. 2018,
"Demystifying MMD GANs"). It is meaningful with a few hundred images and may be slightly negative where two sets come
from one distribution. Legend: N M images, F features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["KernelDistance", "kernel_distance", "polynomial_mmd"]


def polynomial_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared MMD of two sets with the cubic polynomial kernel.

    Args:
        x: [N, F].
        y: [M, F]; independent of x.

    Returns:
        A float64 scalar: mean k(x, x') + mean k(y, y') - 2 mean k(x, y), pairs of one image with itself left out.

    Raises:
        ValueError: fewer than two images in a set.
    """
    if len(x) < 2 or len(y) < 2:
        raise ValueError(f"the kernel distance needs at least two images on each side, got {len(x)} and {len(y)}")
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def among(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return among(x) + among(y) - 2 * kernel(x, y).mean()


class KernelDistance(NamedTuple):
    """Mean and standard deviation over random halves."""

    generated: float
    generated_std: float
    floor: float
    floor_std: float


def kernel_distance(
    real: Tensor, generated: Tensor, scenes: Tensor, num_splits: int = 20, seed: int = 0
) -> KernelDistance:
    """Distance of generated from real images, and of real from real, over random halves of the scenes.

    Generated images of one half are compared with real images of the other: those of the same scene are not
    independent, and sharing scenes would lower the distance. The floor compares the real images of the two halves.

    Args:
        real: [N, F] features.
        generated: [N, F] features of the images generated for the same conditions.
        scenes: int64 [N], which scene an image belongs to.
        num_splits: random halves.
        seed: of the halves.

    Raises:
        ValueError: fewer than two scenes.
    """
    names = scenes.unique()
    if len(names) < 2:
        raise ValueError(f"halves need at least two scenes, got {len(names)}")
    random = torch.Generator().manual_seed(seed)
    distances, floors = [], []
    for _ in range(num_splits):
        order = torch.randperm(len(names), generator=random).to(names.device)
        first = torch.isin(scenes, names[order[: len(names) // 2]])
        floors.append(polynomial_mmd(real[first], real[~first]))
        crossed = polynomial_mmd(generated[first], real[~first]), polynomial_mmd(generated[~first], real[first])
        distances.append((crossed[0] + crossed[1]) / 2)
    values, floor = torch.stack(distances), torch.stack(floors)
    return KernelDistance(
        float(values.mean()), float(values.std(correction=0)), float(floor.mean()), float(floor.std(correction=0))
    )
