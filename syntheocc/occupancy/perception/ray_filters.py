"""Which of the points that cameras see become rays, and what weights they have. Legend: T frames, V views, R rays."""

import torch
from torch import Tensor

from syntheocc.occupancy.perception.ray_boxes import in_target_boxes
from syntheocc.occupancy.perception.ray_config import RayConfig
from syntheocc.occupancy.perception.ray_projection import OCCLUSION_COLUMNS, RayCameras, Seen
from syntheocc.occupancy.rendering.rays import BoxMotion

__all__ = ["draw_weights", "first_view", "last_of_pixel", "per_class", "still", "unhidden"]

# What is further behind the nearest point of its cell is hidden: metres, and share of its depth.
HIDDEN_BY = (1.0, 0.05)


def unhidden(seen: Seen, cameras: RayCameras) -> Tensor:
    """Which points no other one of their 8 x 8 pixels hides (option A of the specification's 1.4): bool [R]."""
    depth = seen.image[2]
    views, rows = cameras.views, cameras.cells
    camera = seen.frames * views + seen.cameras
    scale = OCCLUSION_COLUMNS / (cameras.sizes[..., 1].flatten().index_select(0, camera) * depth)
    column, row = (seen.image[0] * scale).long(), (seen.image[1] * scale).long()
    cell = (camera * rows + row) * OCCLUSION_COLUMNS + column
    nearest = depth.new_full((len(cameras.sizes) * views * rows * OCCLUSION_COLUMNS,), torch.inf)
    nearest.scatter_reduce_(0, cell, depth, "amin")
    return depth - nearest.index_select(0, cell) <= (HIDDEN_BY[1] * depth).clamp_min(HIDDEN_BY[0])


def last_of_pixel(seen: Seen) -> Tensor:
    """The label of the last point in the same whole pixel, int64 [R]: RenderOcc's class map."""
    pixels = (seen.image[:2] / seen.image[2]).long()
    # More columns and rows than any picture has.
    place = ((seen.frames * 4096 + seen.cameras) * 65536 + pixels[1]) * 65536 + pixels[0]
    _, group = place.unique(return_inverse=True)
    row = torch.arange(len(place), device=place.device)
    last = torch.zeros_like(row).scatter_reduce_(0, group, row, "amax")
    return seen.labels[last[group]]


def first_view(seen: Seen, keep: Tensor) -> Tensor:
    """Which points no earlier view of their frame shows, among those to keep: bool [R]."""
    if not len(keep):
        return keep
    _, group = (seen.frames * (seen.number.max() + 1) + seen.number).unique(return_inverse=True)
    view = torch.where(keep, seen.cameras, 1 << 30)
    earliest = torch.full_like(group, 1 << 30).scatter_reduce_(0, group, view, "amin")
    return view == earliest[group]


def still(seen: Seen, config: RayConfig, motion: BoxMotion | None) -> Tensor:
    """Which points are where the key frame has them, or where a box takes them from: bool [R]."""
    keep = torch.ones_like(seen.frames, dtype=torch.bool)
    if config.dynamics == "filter":
        return keep & ~(_among(seen.labels, config.filter_classes) & (seen.frames != config.key))
    if config.dynamics == "motion" and config.drop_unmatched:
        assert motion is not None
        rows = (_among(seen.labels, config.flow_classes) & (seen.frames != config.key)).nonzero()[:, 0]
        keep[rows] = in_target_boxes(seen.points.index_select(1, rows), seen.frames.index_select(0, rows), motion)
    return keep


def draw_weights(seen: Seen, config: RayConfig) -> Tensor:
    """How likely each ray is drawn, [R]."""
    weights = per_class(config.draw_weights, "draw_weights", seen.labels)
    return torch.where(seen.frames == config.key, weights, config.neighbour_weight * weights)


def per_class(weights: tuple[float, ...] | None, name: str, labels: Tensor) -> Tensor:
    """The weight of each label, float32 [R]; 1 without weights.

    Raises:
        ValueError: a label without a weight.
    """
    if weights is None or not len(labels):
        return torch.ones(len(labels), device=labels.device)
    if int(labels.max()) >= len(weights):
        raise ValueError(f"{name} are of {len(weights)} classes, but a point has class {int(labels.max())}")
    return torch.tensor(weights, dtype=torch.float32, device=labels.device).index_select(0, labels)


def _among(labels: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Which labels are among the classes: by a table, torch.isin sorts."""
    table = torch.zeros(256, dtype=torch.bool)
    table[list(classes)] = True
    return table.to(labels.device).index_select(0, labels)
