"""The label downsampling rule that SemanticKITTI 1/8, NYUv2 1/4 and 1/16 and TartanAir 1/4 share.

specs/occdepth.md 1.1. Legend: X Y Z voxels, d the factor, N blocks.
"""

import numpy as np

from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["downsample_labels"]

# A block counts as empty when more than this share of it is free or unknown.
_EMPTY_SHARE = 0.95


def downsample_labels(labels: np.ndarray, factor: int, free: int = 0) -> np.ndarray:
    """Labels of a grid whose voxels are ``factor`` times as large.

    A block of factor^3 voxels of which more than 95 % are free or unknown becomes free when the free ones are more
    than the unknown ones, else unknown. Any other block takes its most frequent class (ties: the smallest id).

    Args:
        labels: uint8 [X, Y, Z], 255 unknown; every axis a multiple of the factor.
        factor: 2, 4, 8, ...
        free: the id of empty space.

    Returns:
        uint8 [X / d, Y / d, Z / d].

    Raises:
        ValueError: labels that are not uint8 [X, Y, Z], or an axis that the factor does not divide.

    Example:
        >>> block = np.zeros((2, 2, 2), np.uint8)
        >>> block[0, 0, 0] = 9
        >>> int(downsample_labels(block, 2)[0, 0, 0])
        9
    """
    labels = np.asarray(labels)
    if labels.dtype != np.uint8 or labels.ndim != 3:
        raise ValueError(f"labels to downsample are uint8 [X, Y, Z], got {labels.dtype} {list(labels.shape)}")
    if factor < 1 or any(n % factor for n in labels.shape):
        raise ValueError(f"a factor of {factor} does not divide a grid of shape {list(labels.shape)}")
    small = tuple(n // factor for n in labels.shape)
    shares = labels.reshape(small[0], factor, small[1], factor, small[2], factor)
    num_free, num_unknown = (_count_in_blocks(labels == label, factor) for label in (free, UNKNOWN))
    empty = num_free + num_unknown > _EMPTY_SHARE * factor**3
    result = np.where(num_free > num_unknown, free, UNKNOWN).astype(np.uint8)
    # Only the few blocks that hold something are cut out and voted on.
    x, y, z = np.nonzero(~empty)
    rest = shares[x, :, y, :, z, :].reshape(len(x), factor**3)  # [N, d^3]
    if len(rest):
        present = np.flatnonzero(np.bincount(rest.ravel(), minlength=256))
        present = present[(present != free) & (present != UNKNOWN)]
        # [classes, N]; argmax takes the first of equals, and ids ascend.
        votes = np.stack([np.count_nonzero(rest == label, axis=1) for label in present])
        result[~empty] = present[votes.argmax(0)]
    return result


def _count_in_blocks(mask: np.ndarray, factor: int) -> np.ndarray:
    """How many voxels of each block are set, uint32 [X / d, Y / d, Z / d]: axis by axis, in types just wide enough."""
    x, y, z = (n // factor for n in mask.shape)
    rows = mask.view(np.uint8).reshape(x, factor, *mask.shape[1:]).sum(1, dtype=np.uint16)
    columns = rows.reshape(x, y, factor, -1).sum(2, dtype=np.uint16 if factor < 256 else np.uint32)
    return columns.reshape(x, y, z, factor).sum(3, dtype=np.uint32)
