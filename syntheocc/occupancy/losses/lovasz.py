"""Lovasz-Softmax: the convex surrogate of 1 - IoU (Berman et al., CVPR 2018).

Legend: N labelled entries, C classes.
"""

import torch
from torch import Tensor

from syntheocc.occupancy.losses.known import known_entries


def lovasz_softmax(
    probabilities: Tensor,  # [..., N, C]
    labels: Tensor,  # [..., N]
    ignore_index: int | None = 255,
) -> Tensor:
    """Mean over the classes present of the Lovasz extension of their Jaccard loss.

    Args:
        probabilities: float [N, C], a softmax over the classes; with samples in front only where all entries count
            (`ignore_index` None).
        labels: integers [N] in 0..C-1 or `ignore_index`.
        ignore_index: entries with this label are dropped. None keeps them all: a label outside 0..C-1 then stands
            against every class, as in SparseOcc's published loss (specs/sparseocc.md 2.8).

    Returns:
        A scalar, 0 without any entry; one a sample [...] where there are samples in front.

    Raises:
        ValueError: the shapes do not belong together.

    Example:
        >>> lovasz_softmax(torch.eye(3), torch.tensor([0, 1, 2]))
        tensor(0.)
    """
    if probabilities.ndim < 2 or labels.shape != probabilities.shape[:-1]:
        raise ValueError(f"expected [N, C] and [N], got {list(probabilities.shape)} and {list(labels.shape)}")
    probabilities, labels = known_entries(probabilities, labels, ignore_index)
    # [..., C, N]: each class is sorted on its own. Absent classes too, because asking which are present would wait for
    # the device; they are left out of the mean.
    probabilities = probabilities.transpose(-1, -2)
    foreground = labels[..., None, :] == torch.arange(probabilities.shape[-2], device=labels.device)[:, None]
    present = foreground.any(-1).to(probabilities.dtype)
    foreground = foreground.to(probabilities.dtype)
    errors, order = (foreground - probabilities).abs().sort(dim=-1, descending=True)
    losses = (errors * _jaccard_steps(foreground.gather(-1, order))).sum(-1)
    return (losses * present).sum(-1) / present.sum(-1).clamp_min(1)


def _jaccard_steps(foreground: Tensor) -> Tensor:
    """How much the Jaccard loss grows with each entry, worst error first: [..., N] of zeros and ones to [..., N]."""
    total = foreground.sum(-1, keepdim=True)
    intersection = total - foreground.cumsum(-1)
    union = total + (1 - foreground).cumsum(-1)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[..., :1], jaccard[..., 1:] - jaccard[..., :-1]], -1)
