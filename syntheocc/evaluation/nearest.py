"""Nearest neighbours: the training image that a view is closest to, the training frame with the closest condition.

Legend: N queries, M bank entries, V views, h w cells.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["nearest_condition", "nearest_image", "thumbnails"]


def thumbnails(images: Tensor, size: tuple[int, int] = (28, 50)) -> Tensor:
    """Images [N, 3, H, W] (uint8, or floats in [0, 1]) averaged down to `size`: float32 [N, 3*h*w] in [0, 1]."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    return F.interpolate(images.float() / scale, size=size, mode="area").flatten(1)


def nearest_image(queries: Tensor, bank: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """The nearest entry of a bank by root mean square difference.

    Args:
        queries: float [N, F].
        bank: float [M, F].
        chunk: queries at a time.

    Returns:
        distance float32 [N] (root mean square over F) and index int64 [N].
    """
    distances, indices = [], []
    for part in queries.split(chunk):
        # Exact differences among the first few: cdist's product form (and TF32) loses digits where images agree.
        some = torch.cdist(part, bank).topk(min(8, len(bank)), largest=False).indices  # [n, 8]
        exact = (part[:, None] - bank[some]).square().mean(2).sqrt()
        distance, place = exact.min(1)
        distances.append(distance)
        indices.append(some.gather(1, place[:, None])[:, 0])
    return torch.cat(distances), torch.cat(indices)


def nearest_condition(queries: Tensor, bank: Tensor, chunk: int = 64) -> tuple[Tensor, Tensor]:
    """The bank's frame whose nearest classes agree in most cells.

    Args:
        queries: uint8 [N, V, h, w], class of the nearest plane of every cell of all views of a frame.
        bank: uint8 [M, V, h, w].
        chunk: bank entries at a time.

    Returns:
        share float32 [N] of equal cells and index int64 [N] of the bank's frame (the first of equals).
    """
    flat = queries.flatten(1)
    best = torch.full((len(flat),), -1, dtype=torch.int64, device=flat.device)
    index = torch.zeros_like(best)
    for start in range(0, len(bank), chunk):
        part = bank[start : start + chunk].flatten(1)
        for n in range(len(flat)):
            count, where = (part == flat[n]).sum(1).max(0)
            better = count > best[n]
            best[n] = torch.where(better, count, best[n])
            index[n] = torch.where(better, where + start, index[n])
    return best.float() / flat.shape[1], index
