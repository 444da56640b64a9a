"""Class weights from class counts, for rays and for voxels (`frequency_weights` is in `losses.voxels`).

Legend: C classes. Specification: specs/occflownet_splattingocc.md 3.3, 4.0, vector V7.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["OCC3D_COUNTS", "OCC3D_RAY_COUNTS", "effective_number_weights", "log_frequency_weights", "sampling_balance"]

# Voxels of Occ3D-nuScenes' training set by class, others first, free left out (3.3).
OCC3D_COUNTS = (
    1163161, 2309034, 188743, 2997643, 20317180, 852476, 243808, 2457947, 497017, 2731022, 7224789, 214411435, 5565043,
    63191967, 76098082, 128860031, 141625221,
)  # fmt: skip
# Lidar points of nuScenes' training set by the same classes (4.0).
OCC3D_RAY_COUNTS = (
    2854504, 7291443, 141614, 4239939, 32248552, 1583610, 364372, 2346381, 582961, 4829021, 14073691, 191019309,
    6249651, 55095657, 58484771, 193834360, 131378779,
)  # fmt: skip


def log_frequency_weights(counts: Sequence[float]) -> Tensor:
    """Weights ``ln(total / count)``, scaled to a mean of 1 over the classes (OccFlowNet's ray weights): float32 [C].

    Raises:
        ValueError: a count that is not positive, or fewer than two classes (one class has no weight but 0).
    """
    _positive(counts)
    if len(counts) < 2:
        raise ValueError(f"logarithmic weights tell classes apart; got counts of {len(counts)} class")
    logs = [math.log(sum(counts) / count) for count in counts]
    return torch.tensor([value * len(logs) / sum(logs) for value in logs])


def effective_number_weights(counts: Sequence[float], beta: float = 0.999999) -> Tensor:
    """Class-balanced weights ``(1 - beta) / (1 - beta^count)``, scaled to a mean of 1: float32 [C].

    Cui et al., CVPR 2019: beta 0 weighs all classes alike, beta towards 1 by the inverse of their counts.

    Raises:
        ValueError: a count that is not positive or a beta outside 0 <= beta < 1.
    """
    _positive(counts)
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in 0 <= beta < 1, got {beta}")
    # -expm1(count ln beta) keeps its digits where beta^count is almost 1.
    shares = [1.0 if beta == 0 else 1 / -math.expm1(count * math.log(beta)) for count in counts]
    return torch.tensor([value * len(shares) / sum(shares) for value in shares])


def sampling_balance(counts: Sequence[float], strength: float = 0.005) -> Tensor:
    """How likely RenderOcc draws a ray of each class, ``exp(strength (largest count / count - 1))``: float32 [C].

    Raises:
        ValueError: a count that is not positive.
    """
    _positive(counts)
    return torch.tensor([math.exp(strength * (max(counts) / count - 1)) for count in counts])


def _positive(counts: Sequence[float]) -> None:
    if not len(counts) or not all(count > 0 for count in counts):
        raise ValueError(f"class counts must be positive, got {list(counts)}; leave classes without any out")
