"""Confusion counts and mean IoU of predicted class pictures.

Legend: C classes; rows of a confusion are the truth, columns the prediction.
"""

import torch
from torch import Tensor

from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["class_iou", "confusion", "mean_iou"]


def confusion(prediction: Tensor, truth: Tensor, num_classes: int, mask: Tensor | None = None) -> Tensor:
    """Count pixels by true and predicted class.

    Args:
        prediction: class ids of any shape, all below `num_classes`.
        truth: class ids of that shape; 255 (unknown) is not counted.
        num_classes: C.
        mask: bool of that shape; False is not counted.

    Returns:
        int64 [C, C], rows truth, columns prediction.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), 2)
        tensor([[1, 1],
                [0, 1]])
    """
    if prediction.shape != truth.shape or (mask is not None and mask.shape != truth.shape):
        shapes = [tuple(t.shape) for t in (prediction, truth, mask) if t is not None]
        raise ValueError(f"prediction, truth and mask must have one shape, got {shapes}")
    counted = truth != UNKNOWN if mask is None else mask & (truth != UNKNOWN)
    # One more bin holds what does not count: selecting it away would wait for the device.
    code = torch.where(counted, truth.int() * num_classes + prediction.int(), num_classes * num_classes)
    return torch.bincount(code.flatten(), minlength=num_classes**2 + 1)[:-1].reshape(num_classes, num_classes)


def class_iou(counts: Tensor) -> Tensor:
    """Intersection over union of every class.

    Args:
        counts: [..., C, C] confusion, rows truth.

    Returns:
        float64 [..., C]; NaN for a class that does not occur in the truth.
    """
    counts = counts.double()
    hit = counts.diagonal(dim1=-2, dim2=-1)
    occurs, predicted = counts.sum(-1), counts.sum(-2)
    return torch.where(occurs > 0, hit / (occurs + predicted - hit), torch.nan)


def mean_iou(counts: Tensor) -> Tensor:
    """Mean of `class_iou` over the classes that occur in the truth: float64 [...] of counts [..., C, C]."""
    return class_iou(counts).nanmean(-1)
