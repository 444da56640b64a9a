"""Which voxels straight ways pass: what a lidar's rays say about the space between the sensor and its returns.

A way runs from `begin` to `end`, both in voxel units (voxel i spans [i, i+1)). It passes every voxel that it has a
piece in. The voxel that holds its end is passed too, unless the way ends there on something (`stops`): what it ended
on is a return, and its voxel was not crossed.

Implementations of one signature: `reference` (cuts a way at every face that it crosses, vectorised over ways) and
`numba` (Amanatides and Woo 1987, a way at a time). Ways through an edge or a corner may differ in the voxel that is
only touched there. Legend: R ways, X Y Z voxels.
"""

import torch
from torch import Tensor

from syntheocc.occupancy.ops.mpi_lookup import has_module

BACKENDS = ("reference", "numba")


def count_passes(
    begin: Tensor,  # [R, 3] float64, voxel units
    end: Tensor,  # [R, 3] float64, voxel units
    stops: Tensor,  # [R] bool
    through: Tensor,  # [X, Y, Z] int32, added to
    lowest: Tensor,  # [X, Y] float64, voxel units, lowered
    backend: str | None = None,
) -> None:
    """Count the ways through every voxel, and note how low they came in every column.

    Args:
        begin: where ways begin, in the grid or on its border.
        end: where they end, likewise.
        stops: whether a way ends on something in its last voxel, which is then not passed.
        through: number of ways through each voxel; every way adds one to each voxel that it passes.
        lowest: the least height that a way has in each column of voxels (the last voxel included); start with +inf.
        backend: one of `BACKENDS`; None takes numba where it is installed.

    Raises:
        ValueError: shapes, types or devices do not fit, or an unknown backend.
    """
    if begin.shape != end.shape or begin.shape[1:] != (3,) or begin.dtype != torch.float64 or end.dtype != begin.dtype:
        raise ValueError(f"begin and end must be float64 [R, 3], got {tuple(begin.shape)} and {tuple(end.shape)}")
    if stops.dtype != torch.bool or stops.shape != begin.shape[:1]:
        raise ValueError(f"stops must be bool [{len(begin)}], got {stops.dtype} {tuple(stops.shape)}")
    if through.dtype != torch.int32 or through.ndim != 3 or not through.is_contiguous():
        raise ValueError(f"through must be int32 [X, Y, Z], got {through.dtype} {tuple(through.shape)}")
    if lowest.dtype != torch.float64 or lowest.shape != through.shape[:2] or not lowest.is_contiguous():
        raise ValueError(f"lowest must be float64 {list(through.shape[:2])}, got {lowest.dtype} {tuple(lowest.shape)}")
    if any(t.device.type != "cpu" for t in (begin, end, stops, through, lowest)):
        raise ValueError("ways are counted on the CPU; move the tensors there")
    name = backend or ("numba" if has_module("numba") else "reference")
    if name == "numba":
        from syntheocc.occupancy.ops.ray_passes.numba import count_passes_numba as run
    elif name == "reference":
        from syntheocc.occupancy.ops.ray_passes.reference import count_passes_reference as run
    else:
        raise ValueError(f"backend {name!r} is unknown; choose from {', '.join(BACKENDS)}")
    run(begin.contiguous(), end.contiguous(), stops, through, lowest)
