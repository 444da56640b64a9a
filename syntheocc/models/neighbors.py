"""Which view attends to which: neighbour tables turned into batch indices, once per forward pass.

Legend: S samples, F frames, V views, K neighbours of a view, N = S*F*V the batch (views fastest).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class NeighborLinks(NamedTuple):
    """Neighbour tables resolved for one batch size; tensors only, so that a compiled block sees nothing dynamic.

    Attributes:
        neighbor: int64 [K, N]; batch element n attends, as its k-th neighbour, to element `neighbor[k, n]`.
        weight: float32 [K, N] or None. None: every element has all K neighbours. Otherwise 1/count for a neighbour
            that exists and 0 for padding, count being how many neighbours element n has.
        degree: float32 [N] or None, how many neighbours every element has; None exactly when weight is None.
        inverse: int64 [K, N] or None: where every element is the k-th neighbour of exactly one other, as in a ring,
            `inverse[k, neighbor[k, n]] = n`; gradients are then gathered instead of scattered.

    """

    neighbor: Tensor
    weight: Tensor | None
    degree: Tensor | None
    inverse: Tensor | None = None

    @property
    def num_neighbors(self) -> int:
        """K, the number of columns of the table, padding included."""
        return self.neighbor.shape[0]

    def to(self, device: torch.device | None) -> "NeighborLinks":
        """Return the same links with all tensors on `device` (None: where they are)."""
        # To a GPU without waiting for it: an ordinary copy would hold the CPU until everything queued is done.
        leaves = device is not None and torch.device(device).type == "cuda"
        moved = (None if table is None else table.to(device, non_blocking=leaves) for table in self)
        return NeighborLinks(*moved)  # type: ignore[arg-type]


def view_links(neighbors: Tensor, batch: int, device: torch.device | None = None) -> NeighborLinks:
    """Resolve neighbours among the V views of a sample.

    Args:
        neighbors: int64 [V, K], or [S*F, V, K] when the rigs of a batch differ; -1 is padding.
        batch: N = S*F*V, the views fastest. It may hold the samples several times over (the branches of guidance):
            the table then repeats.
        device: where the result lives; default: where `neighbors` is.

    Returns:
        NeighborLinks on `device`. A table on the CPU is checked, and known to be without padding, at no cost; one on
        another device is neither checked nor searched for padding, because that would wait for the device.

    Raises:
        ValueError: wrong shape or dtype, an index outside -1..V-1, or a batch that V (or S*F*V) does not divide.

    """
    if neighbors.ndim not in (2, 3) or neighbors.dtype != torch.int64:
        raise ValueError(
            f"neighbors must be int64 of shape [V, K] or [S*F, V, K], got {neighbors.dtype} {tuple(neighbors.shape)}; "
            "CameraRig.neighbors() makes such a table"
        )
    num_views = neighbors.shape[-2]
    rows = neighbors.flatten(0, -2)  # [V, K] or [S*F*V, K]
    if batch == 0 or rows.shape[0] == 0 or batch % rows.shape[0]:
        raise ValueError(
            f"a batch of {batch} cannot hold whole samples of {num_views} views, neighbors {tuple(neighbors.shape)}: "
            "the batch is (sample frame view) with the views fastest, and [S*F, V, K] has a table for every frame"
        )
    table = rows.repeat(batch // rows.shape[0], 1)  # [N, K]
    sample_start = torch.arange(batch, device=table.device) // num_views * num_views
    return _links(table, sample_start, num_views, device)


def frame_links(
    frame_neighbors: Tensor, num_views: int, batch: int, device: torch.device | None = None
) -> NeighborLinks:
    """Resolve neighbours among the F frames of a sample: every view attends to itself at other moments.

    Args:
        frame_neighbors: int64 [F, K], -1 is padding; `previous_and_next(F)` makes the usual one.
        num_views: V.
        batch: N = S*F*V, the views fastest.
        device: where the result lives; default: where `frame_neighbors` is.

    Raises:
        ValueError: wrong shape or dtype, an index outside -1..F-1, or a batch that F*V does not divide.

    """
    if frame_neighbors.ndim != 2 or frame_neighbors.dtype != torch.int64:
        raise ValueError(
            f"frame_neighbors must be int64 [F, K], got {frame_neighbors.dtype} {tuple(frame_neighbors.shape)}"
        )
    num_frames = frame_neighbors.shape[0]
    if batch % (num_frames * num_views):
        raise ValueError(
            f"a batch of {batch} cannot hold whole samples of {num_frames} frames x {num_views} views: "
            "the batch is (sample frame view) with the views fastest"
        )
    num_samples = batch // (num_frames * num_views)
    table = frame_neighbors.repeat_interleave(num_views, dim=0).repeat(num_samples, 1)  # [N, K], in frames
    element = torch.arange(batch, device=table.device)
    sample_start = element // (num_frames * num_views) * (num_frames * num_views)
    return _links(table, sample_start + element % num_views, num_frames, device, stride=num_views)


def previous_and_next(num_frames: int) -> Tensor:
    """Return the frame table [F, 2] of (previous, next); the first and last frame are padded with -1.

    >>> previous_and_next(3).tolist()
    [[-1, 1], [0, 2], [1, -1]]
    """
    frame = torch.arange(num_frames)
    following = torch.where(frame + 1 < num_frames, frame + 1, torch.full_like(frame, -1))
    return torch.stack([frame - 1, following], dim=1)


def _links(table: Tensor, offset: Tensor, size: int, device: torch.device | None, stride: int = 1) -> NeighborLinks:
    """Turn a table [N, K] of positions 0..size-1 (-1 padding) into NeighborLinks; element n starts at offset[n]."""
    exists = table >= 0
    padded, inverse = True, None
    if table.device.type == "cpu" and not torch.compiler.is_compiling():
        if table.numel() and (table.min() < -1 or table.max() >= size):
            raise ValueError(
                f"neighbour {int(table.min())}..{int(table.max())} is outside -1..{size - 1}: "
                f"there are {size} to choose from, and -1 is padding"
            )
        padded = not bool(exists.all())
    neighbor = (offset[:, None] + table.clamp(min=0) * stride).T.contiguous()  # [K, N]
    if not padded:
        if neighbor.device.type == "cpu" and not torch.compiler.is_compiling():
            order = neighbor.argsort(dim=1)
            if torch.equal(neighbor.gather(1, order), torch.arange(neighbor.shape[1]).expand_as(neighbor)):
                inverse = order
        return NeighborLinks(neighbor, None, None, inverse).to(device)
    degree = exists.sum(1).float()  # [N]
    weight = (exists / degree.clamp(min=1)[:, None]).T.contiguous()  # [K, N]
    return NeighborLinks(neighbor, weight, degree).to(device)
