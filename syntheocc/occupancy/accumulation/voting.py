"""Points counted in voxels: which class, and which object, most of the points in a voxel have.

Legend: P points, X Y Z voxels.
"""

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["majority", "nearest_class", "numbered_instances"]

# A point's class and object in one number below 2^24, its voxel above it.
_KINDS = 1 << 24


def majority(points: Tensor, labels: Tensor, instances: Tensor, spec: GridSpec, free: int) -> tuple[Tensor, Tensor]:
    """The commonest (label, instance) of the points in each voxel, the smaller one of equals.

    Points whose class is unknown (255) have no say where others have one; a voxel with no others becomes 255.

    Args:
        points: [P, 3] metres in the grid's frame; those outside do not count.
        labels: uint8 [P].
        instances: integer [P], 0 none, below 65536.
        spec: where the voxels lie.
        free: the label of voxels without points.

    Returns:
        labels uint8 [X, Y, Z] and instances int32 [X, Y, Z].
    """
    index, inside = spec.index_of(points)
    voxel = torch.from_numpy(np.ravel_multi_index(tuple(index[inside].numpy().T), spec.shape))
    kind = labels[inside].long() + 256 * instances[inside].long()
    pairs, counts = np.unique((voxel * _KINDS + kind).numpy(), return_counts=True)
    kinds = pairs % _KINDS
    # Sorted by count, larger kinds first among equals: the last one written stays.
    order = np.lexsort((-kinds, counts, kinds % 256 != UNKNOWN))
    flat = np.full(int(np.prod(spec.shape)), free, dtype=np.int32)
    flat[(pairs // _KINDS)[order]] = kinds[order]
    found = torch.from_numpy(flat).reshape(spec.shape)
    return (found % 256).to(torch.uint8), found // 256


def nearest_class(labels: Tensor, spec: GridSpec, free: int, radius: float, of: Tensor | None = None) -> Tensor:
    """Voxels that are occupied by no known class (255) take the class of the nearest voxel that has one.

    Args:
        labels: uint8 [X, Y, Z]; not changed.
        spec: where the voxels lie.
        free: the label that is no class.
        radius: metres between centres beyond which nothing is taken over.
        of: bool [256], the classes that may be taken over; all but free and 255 when left out.

    Returns:
        uint8 [X, Y, Z]; 255 stays where no such voxel is near.
    """
    from scipy.spatial import cKDTree

    asking = (labels == UNKNOWN).nonzero()
    may = torch.ones(256, dtype=torch.bool) if of is None else of.clone()
    may[[free, UNKNOWN]] = False
    known = may[labels.int()].nonzero()
    if not len(asking) or not len(known):
        return labels
    # Only neighbours of those that ask matter.
    size = np.array(spec.voxel_size)
    distance, nearest = cKDTree(known.numpy() * size).query(asking.numpy() * size, distance_upper_bound=radius)
    found = torch.from_numpy(np.isfinite(distance))
    taken, given = asking[found], known[torch.from_numpy(nearest)[found]]
    labels = labels.clone()
    labels[tuple(taken.T)] = labels[tuple(given.T)]
    return labels


def numbered_instances(instances: Tensor) -> Tensor:
    """Instances of one grid numbered 1, 2, ... in their order, uint8 [X, Y, Z]; 0 none.

    Raises:
        ValueError: more than 255 instances, which a panoptic label file cannot hold.
    """
    present, dense = torch.unique(instances, return_inverse=True)
    if present[0] != 0:
        dense = dense + 1
    if int(dense.max()) > 255:
        raise ValueError(f"a panoptic label file holds at most 255 instances, this grid has {int(dense.max())}")
    return torch.from_numpy(dense.numpy().astype(np.uint8))
