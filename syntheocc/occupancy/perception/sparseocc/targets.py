"""Segments to learn from a labelled grid (specs/sparseocc.md 1.7).

Legend: X Y Z voxels, M segments.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from syntheocc.occupancy.taxonomy import UNKNOWN

BACKGROUND = -1  # a voxel known to belong to no segment: it is free
UNSEEN = -2  # a voxel of which nothing is known: no loss reads it


@dataclass
class SegmentTargets:
    """The segments of one grid."""

    segments: Tensor
    """int32 [X, Y, Z]: 0..M-1, BACKGROUND or UNSEEN."""
    classes: Tensor
    """int64 [M]: label of each segment, ascending."""


def segment_targets(
    semantics: Tensor,  # [X, Y, Z]
    free: int,
    instances: Tensor | None = None,  # [X, Y, Z]
    instance_classes: Collection[int] = (),
    legacy: bool = False,
) -> SegmentTargets:
    """Number the segments of a grid: one a class, or one an object for the classes whose objects are told apart.

    Objects of a class are numbered in the order of their ids. A voxel of such a class without an object (id 0) belongs
    to an unknown one: it is UNSEEN.

    Args:
        semantics: uint8 labels, 255 unknown.
        free: the label of empty space.
        instances: integer object ids, 0 none; needed only for `instance_classes`. 255 is an id like any other.
        instance_classes: labels whose objects are told apart.
        legacy: count unknown voxels and those of unknown objects as BACKGROUND, as the published loader does.

    Raises:
        ValueError: objects are to be told apart but there are no ids, or they have another shape.
    """
    things = torch.zeros(256, dtype=torch.bool, device=semantics.device)
    things[list(instance_classes)] = True
    is_thing = things[semantics.long()]
    if instances is None:
        if bool(is_thing.any()):
            raise ValueError(
                "the grid holds objects that are to be told apart but comes without instance ids; read the panoptic "
                "labels, or use a config without instance_classes"
            )
        instances = torch.zeros_like(semantics)
    if instances.shape != semantics.shape:
        raise ValueError(f"instances are {list(instances.shape)} but semantics {list(semantics.shape)}")
    instances = instances.long()
    unknown = (semantics == UNKNOWN) | (is_thing & (instances == 0))
    occupied = (semantics != free) & ~unknown
    # Sorted by class, then by object.
    key = (semantics.long() << 32) + torch.where(is_thing, instances, 0)
    found, inverse = key[occupied].unique(return_inverse=True)
    segments = torch.full(semantics.shape, BACKGROUND, dtype=torch.int32, device=semantics.device)
    segments[occupied] = inverse.int()
    if not legacy:
        segments[unknown] = UNSEEN
    return SegmentTargets(segments, found >> 32)
