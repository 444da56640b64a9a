"""From queries to labelled grids: semantics, and objects told apart (specs/sparseocc.md 2.9).

Legend: B samples, Q queries, K kept voxels, C occupied classes, X Y Z voxels.
"""

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.perception.prediction import OccupancyPrediction
from syntheocc.occupancy.perception.sparseocc.config import SparseOccConfig
from syntheocc.occupancy.perception.sparseocc.geometry import inside


def merge_semantics(
    class_probabilities: Tensor,  # [B, Q, C]
    mask_probabilities: Tensor,  # [B, Q, K]
    config: SparseOccConfig,
) -> Tensor:
    """Label of each kept voxel: the class whose confident queries cover it best; free where none does.

    Returns:
        int64 [B, K], labels of the taxonomy.
    """
    confident = class_probabilities.amax(-1, keepdim=True) > config.score_threshold
    scores = (class_probabilities * confident).transpose(1, 2) @ mask_probabilities  # [B, C, K]
    best, index = scores.max(1)
    occupied = constant(config.occupied_classes, index.device)
    return torch.where(best < config.voxel_threshold, config.taxonomy.free, occupied[index])


def merge_panoptic(
    class_probabilities: Tensor,  # [Q, C]
    mask_probabilities: Tensor,  # [Q, K]
    config: SparseOccConfig,
) -> tuple[Tensor, Tensor]:
    """Segments of one sample, after Mask2Former.

    Every voxel goes to one query; a query that loses too much of its mask is dropped.

    Every query of a stuff class joins the segment of that class. (The published code gave the second one its id but
    left its voxels free.)

    Returns:
        labels int64 [K] of the taxonomy and segment ids int32 [K]; free and 0 where no segment is.
    """
    confidence, index = class_probabilities.max(-1)
    queries = (confidence > config.score_threshold).nonzero().squeeze(1)
    voxels = mask_probabilities.shape[1]
    labels = torch.full((voxels,), config.taxonomy.free, dtype=torch.long, device=index.device)
    ids = torch.zeros(voxels, dtype=torch.int32, device=index.device)
    if len(queries) == 0 or voxels == 0:
        return labels, ids
    masks = mask_probabilities[queries]
    winner = (confidence[queries, None] * masks).argmax(0)
    won = winner == torch.arange(len(queries), device=index.device)[:, None]  # [q, K]
    own = masks >= 0.5
    claimed = won & own
    # One transfer for all queries; the loop below runs on the host.
    areas = torch.stack([won.sum(1), own.sum(1), claimed.sum(1)], 1).tolist()
    classes = [config.occupied_classes[i] for i in index[queries].tolist()]
    stuff: dict[int, int] = {}
    segment_of, class_of, last = [], [], 0
    for label, (area, whole, agreed) in zip(classes, areas, strict=True):
        number = 0
        if area and whole and agreed and area / whole >= config.overlap_threshold:
            if label in config.instance_classes or label not in stuff:
                last += 1
                number = last
                if label not in config.instance_classes:
                    stuff[label] = number
            else:
                number = stuff[label]
        segment_of.append(number)
        class_of.append(label if number else config.taxonomy.free)
    taken = claimed.any(0)
    ids[taken] = torch.tensor(segment_of, dtype=torch.int32, device=ids.device)[winner[taken]]
    labels[taken] = torch.tensor(class_of, device=ids.device)[winner[taken]]
    return labels, ids


def scatter(
    values: Tensor,  # [B, K]
    corners: Tensor,  # [B, K, 3]
    shape: tuple[int, int, int],
    fill: int,
) -> Tensor:
    """Put the kept voxels' values into a grid of `fill`: [B, X, Y, Z]; voxels beyond the grid are dropped."""
    x, y, z = corners.unbind(-1)
    size = shape[0] * shape[1] * shape[2]
    flat = torch.where(inside(corners, shape), (x * shape[1] + y) * shape[2] + z, size)
    # One cell more than the grid holds takes what lies outside, without asking the device how much that is.
    grid = torch.full((values.shape[0], size + 1), fill, dtype=values.dtype, device=values.device)
    return grid.scatter_(1, flat, values)[:, :size].unflatten(1, shape)


def predict_grids(
    class_logits: Tensor,  # [B, Q, C]
    mask_logits: Tensor,  # [B, Q, K]
    corners: Tensor,  # [B, K, 3]
    config: SparseOccConfig,
) -> OccupancyPrediction:
    """The grids of a batch: semantics, or with `instance_classes` objects and the semantics that go with them."""
    classes, masks = class_logits.float().sigmoid(), mask_logits.float().sigmoid()
    shape, free = config.grid.shape, config.taxonomy.free
    if not config.panoptic:
        labels = merge_semantics(classes, masks, config).to(torch.uint8)
        return OccupancyPrediction(config.grid, config.taxonomy, scatter(labels, corners, shape, free))
    merged = [merge_panoptic(classes[i], masks[i], config) for i in range(classes.shape[0])]
    labels = torch.stack([sample[0] for sample in merged]).to(torch.uint8)
    ids = torch.stack([sample[1] for sample in merged])
    semantics, instances = scatter(labels, corners, shape, free), scatter(ids, corners, shape, 0)
    return OccupancyPrediction(config.grid, config.taxonomy, semantics, instances)
