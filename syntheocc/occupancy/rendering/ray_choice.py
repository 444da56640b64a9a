"""Which of many rays a step learns from: weighted draws without replacement. Legend: R rays."""

import torch
from torch import Tensor

__all__ = ["choose_rays"]


def choose_rays(weights: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Draw rays without replacement, each draw proportional to the weights of what is left.

    The smallest of E / w with E exponential is a draw proportional to w, the next smallest one from the rest, and so
    on (Efraimidis and Spirakis 2006), so that one sort does it.

    Args:
        weights: [R], not negative, on any device; what has weight 0 is never drawn.
        number: how many; fewer come back where fewer have a weight.
        generator: of the draws, on the CPU or on the weights' device. On the CPU it gives the same draws for all
            devices.

    Returns:
        int64 indices in rising order, on the weights' device.

    Raises:
        ValueError: a negative number, or weights that are no vector.

    Example:
        >>> choose_rays(torch.tensor([1.0, 0.0, 2.0]), 2, torch.Generator().manual_seed(0))
        tensor([0, 2])
    """
    if weights.ndim != 1 or number < 0:
        raise ValueError(f"rays are chosen from weights [R], at least 0 of them; got {list(weights.shape)}, {number}")
    possible = (weights > 0).nonzero()[:, 0]
    if len(possible) <= number:
        return possible
    wait = torch.empty(len(possible), device=generator.device).exponential_(generator=generator).to(weights.device)
    # In float64: a weight of 933 beside one of 1 leaves float32 few digits.
    first = torch.topk(wait.double() / weights[possible].double(), number, largest=False, sorted=False).indices
    return possible[first.sort().values]
