"""Panoptic ground truth: which voxels belong to which box (specs/sparseocc.md 1.8). Legend: N boxes, X Y Z voxels."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.data.frames import DETECTION_CLASSES, Boxes
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.taxonomy import UNKNOWN
from syntheocc.occupancy.transforms import invert_rigid, transform_points

__all__ = ["ENLARGED", "THING_CLASSES", "panoptic_instances"]

THING_CLASSES = tuple("car truck construction_vehicle bus trailer motorcycle bicycle pedestrian".split())
# Metres added to a box's length, width and height when leftover voxels look for their box.
ENLARGED = 0.8


def panoptic_instances(grid: OccupancyGrid, boxes: Boxes) -> Tensor:
    """Instance numbers of a semantic grid, from the frame's boxes.

    Each box in order takes the voxels of its class whose centre lies in it and that no box has taken before; boxes
    that find none get no number. Then every class that has no boxes (ground, buildings, ...) is one instance, in
    rising class order. Last, leftover voxels of the detection classes go to the nearest box of their class whose
    enlarged volume (`ENLARGED`) holds them; what is still without a box keeps 0.

    Args:
        grid: the classes, in any frame with a `grid2ego`.
        boxes: of the frame, in ego; names that the class table lacks are passed over.

    Returns:
        int32 [X, Y, Z] on the CPU; 0 is free, unknown, or a thing without a box. Barriers and cones are numbered too.
    """
    labels = grid.labels.cpu().numpy()
    taxonomy = grid.taxonomy
    instances = np.zeros(labels.shape, np.int32)
    cells = np.argwhere((labels != taxonomy.free) & (labels != UNKNOWN))
    classes = labels[tuple(cells.T)]
    owner = np.zeros(len(cells), np.int32)
    spec = grid.spec
    centers = np.asarray(spec.lower) + (cells + 0.5) * np.asarray(spec.voxel_size)
    points = transform_points(grid.grid2ego, torch.from_numpy(centers))
    known = [k for k, name in enumerate(boxes.names) if name in taxonomy.classes and name in DETECTION_CLASSES]
    numbered: list[tuple[int, int]] = []  # box, class
    for k in known:
        label = taxonomy.id_of(boxes.names[k])
        mine = _inside(boxes, k, points, 0.0) & (classes == label) & (owner == 0)
        if mine.any():
            numbered.append((k, label))
            owner[mine] = len(numbered)
    number = len(numbered)
    boxed = {taxonomy.classes.index(name) for name in DETECTION_CLASSES if name in taxonomy.classes}
    for label in sorted(set(np.unique(classes).tolist()) - boxed):
        number += 1
        owner[classes == label] = number
    left = np.flatnonzero(owner == 0)
    nearest = np.full(len(left), np.inf)
    for i, (k, label) in enumerate(numbered):
        away = ((points[left] - boxes.centers[k]) ** 2).sum(-1).numpy()
        mine = _inside(boxes, k, points[left], ENLARGED / 2) & (classes[left] == label) & (away < nearest)
        owner[left[mine]] = i + 1
        nearest[mine] = away[mine]
    instances[tuple(cells.T)] = owner
    return torch.from_numpy(instances)


def _inside(boxes: Boxes, k: int, points: Tensor, margin: float) -> Any:
    """Which points [P, 3] lie in box ``k`` made larger by ``margin`` on every side; the faces belong to it."""
    local = transform_points(invert_rigid(boxes.box2ego[k]), points)
    return (local.abs() <= boxes.sizes[k] / 2 + margin).all(-1).numpy()
