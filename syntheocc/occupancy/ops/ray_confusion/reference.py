"""The counts of rays in plain torch: cast into one grid, cast into the other, compare."""

import torch
from torch import Tensor

from syntheocc.occupancy.ops.ray_confusion import RayRules
from syntheocc.occupancy.ops.raycast import traverse, voxel_rays

# Origins cast at a time: bounds the memory (a ray takes some 300 bytes on the way).
_ORIGINS = 8


def ray_confusion_reference(
    pred: Tensor,
    gt: Tensor,
    origins: Tensor,
    frames: Tensor,
    directions: Tensor,
    rules: RayRules,
) -> Tensor:
    """See `syntheocc.occupancy.ops.ray_confusion.ray_confusion`."""
    counts = torch.zeros(rules.shape, dtype=torch.int64, device=pred.device)
    for start in range(0, len(origins), _ORIGINS):
        part = slice(start, start + _ORIGINS)
        grids = frames[part].long()
        seen = [ray_labels(labels[grids], origins[part], directions, rules, "reference") for labels in (pred, gt)]
        counts += count_rays(seen[0][0], seen[1][0], seen[0][1], seen[1][1], rules)
    return counts


def ray_labels(
    labels: Tensor, origins: Tensor, directions: Tensor, rules: RayRules, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What the rays of each origin meet in its own grid.

    Args:
        labels: uint8 [N, X, Y, Z].
        origins: float64 [N, 3] metres.
        directions: float64 [R, 3].
        rules: see `RayRules`.
        backend: of `traverse`.

    Returns:
        the label met uint8 [N, R], the distance float32 [N, R] in metres, the voxel's flat number int64 [N, R].
    """
    start, unit = voxel_rays(origins[:, None], directions, rules.lower, (rules.size,) * 3, rounded=True)
    exit_t, index, _ = traverse(labels, start.contiguous(), unit, backend, rules.free)
    x, y, z = index.unbind(-1)
    flat = (x * labels.shape[2] + y) * labels.shape[3] + z
    return labels.flatten(1).gather(1, flat), exit_t.float() * torch.tensor(rules.size).float(), flat


def count_rays(pred: Tensor, gt: Tensor, pred_distance: Tensor, gt_distance: Tensor, rules: RayRules) -> Tensor:
    """The counts of rays whose labels uint8 [...] and distances float32 [...] (metres) are known."""
    kept = gt != rules.free
    apart = (gt_distance[kept].float() - pred_distance[kept].float()).abs()
    limits = torch.tensor(rules.thresholds, dtype=torch.float32, device=pred.device)
    missed = (apart[:, None] >= limits).sum(1)
    rows, columns = (label[kept].long().clamp_max(rules.num_classes) for label in (gt, pred))
    code = (rows * (rules.num_classes + 1) + columns) * rules.shape[2] + missed
    return torch.bincount(code, minlength=rules.shape[0] * rules.shape[1] * rules.shape[2]).view(rules.shape)
