"""Lovasz-Softmax: the convex surrogate of 1 - IoU (Berman et al., CVPR 2018).

Legend: N labelled entries, C classes.
"""

import torch
from torch import Tensor


def lovasz_softmax(
    probabilities: Tensor,  # [N, C]
    labels: Tensor,  # [N]
    ignore_index: int | None = 255,
) -> Tensor:
    """Mean over the classes present of the Lovasz extension of their Jaccard loss.

    Args:
        probabilities: float [N, C], a softmax over the classes.
        labels: integers [N] in 0..C-1 or `ignore_index`.
        ignore_index: entries with this label are dropped. None keeps them all: a label outside 0..C-1 then stands
            against every class, as in SparseOcc's published loss (specs/sparseocc.md 2.8).

    Returns:
        A scalar, 0 without any entry.

    Raises:
        ValueError: the shapes do not belong together.

    Example:
        >>> lovasz_softmax(torch.eye(3), torch.tensor([0, 1, 2]))
        tensor(0.)
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(f"expected [N, C] and [N], got {list(probabilities.shape)} and {list(labels.shape)}")
    if ignore_index is not None:
        known = labels != ignore_index
        probabilities, labels = probabilities[known], labels[known]
    foreground = labels[:, None] == torch.arange(probabilities.shape[1], device=labels.device)
    present = foreground.any(0)
    if not bool(present.any()):
        return probabilities.sum() * 0
    foreground = foreground[:, present].to(probabilities.dtype)
    errors, order = (foreground - probabilities[:, present]).abs().sort(dim=0, descending=True)
    gradient = _jaccard_steps(foreground.gather(0, order))
    return (errors * gradient).sum(0).mean()


def _jaccard_steps(foreground: Tensor) -> Tensor:
    """How much the Jaccard loss grows with each entry, worst error first: [N, C] of zeros and ones to [N, C]."""
    total = foreground.sum(0)
    intersection = total - foreground.cumsum(0)
    union = total + (1 - foreground).cumsum(0)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
