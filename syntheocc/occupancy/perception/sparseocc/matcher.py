"""One-to-one assignment of queries to segments (Hungarian; specs/sparseocc.md 2.8).

Legend: Q queries, M segments, K voxels, C occupied classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from syntheocc.occupancy.losses.focal import pairwise_focal_cost
from syntheocc.occupancy.losses.masks import pairwise_mask_bce, pairwise_mask_dice


@dataclass(frozen=True, kw_only=True)
class MatchWeights:
    """Weights of the mask terms, in the matching cost and in the loss alike."""

    mask: float = 5.0
    dice: float = 5.0
    focal: float = 2.0


@torch.no_grad()
def matching_cost(
    class_logits: Tensor,  # [..., Q, C]
    mask_logits: Tensor,  # [..., Q, K]
    classes: Tensor,  # [..., M]
    masks: Tensor,  # [..., M, K]
    weights: MatchWeights,
) -> Tensor:
    """What it costs to give segment m to query q: float32 [..., Q, M].

    Args:
        class_logits: sigmoid logits over the occupied classes.
        mask_logits: over the voxels that count.
        classes: each segment's index among the occupied classes.
        masks: each segment's voxels, 0 or 1.
        weights: of the three terms.
    """
    class_logits, mask_logits = class_logits.float(), mask_logits.float()
    bce = pairwise_mask_bce(mask_logits, masks)
    dice = pairwise_mask_dice(mask_logits, masks)
    # The published cost counts the focal term twice (its weight 2 within, 2 without).
    focal = weights.focal * pairwise_focal_cost(class_logits, classes)
    return weights.mask * bce + weights.focal * focal + weights.dice * dice


def hungarian(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the cheapest one-to-one assignment, int64 [min(Q, M)] each, on the cost's device."""
    from scipy.optimize import linear_sum_assignment

    # A diverged network has no best match, but the loss that says so must still be reached.
    finite = torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)
    rows, columns = linear_sum_assignment(finite.cpu().numpy())
    return torch.as_tensor(rows, device=cost.device), torch.as_tensor(columns, device=cost.device)
