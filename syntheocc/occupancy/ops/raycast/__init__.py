"""Voxel traversal: the first occupied voxel along each ray, in voxel units.

The traversal is Amanatides and Woo's, with the rules of the published RayIoU caster (specs/sparseocc.md 3.4), because
a metric is only comparable when rays on an edge go the same way. Directions have unit length, ``t`` is in voxels:

* A ray starts in voxel ``trunc(origin)`` (towards zero, so an origin less than one voxel below the grid starts in its
  first layer) and steps by +1 on an axis whose direction is >= 0, else by -1.
* ``t`` of an axis starts at (next face - origin) / direction and grows by 1 / abs(direction) a step; both are the
  largest float64 where the direction is 0. The axis with the smallest ``t`` steps; of equal ones z before y before x.
* Inside the grid each visited voxel is recorded with the ``t`` at which the ray leaves it. The first occupied one is
  the hit, the origin's own voxel included; without one the result is the last voxel before the ray left the grid.
* A ray that never enters, or has not within 1001 steps, gives ``t = -1`` and voxel (0, 0, 0).

Implementations of one signature: `reference` (torch, all rays a step at a time, any device) and `numba` (CPU). They
agree to the last bit. Legend: R rays, X Y Z voxels.
"""

import torch
from torch import Tensor

from syntheocc.occupancy.ops.mpi_lookup import has_module

BACKENDS = ("reference", "numba")
# Advances outside the grid after which the published caster gives a ray up.
MAX_STEPS_OUTSIDE = 1001


def traverse(
    occupied: Tensor,  # [X, Y, Z] bool
    origins: Tensor,  # [R, 3] float64, voxels
    directions: Tensor,  # [R, 3] float64, unit length in voxels
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Traverses the grid along every ray.

    Args:
        occupied: which voxels stop a ray.
        origins: start points; 0 is the grid's lower face, X its upper one.
        directions: unit vectors.
        backend: one of `BACKENDS`; None takes numba on a CPU where it is installed.

    Returns:
        exit float64 [R], the ``t`` at which the ray leaves the reported voxel; index int64 [R, 3], that voxel; hit
        bool [R], whether it is occupied.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is unknown or cannot run here.
    """
    if occupied.ndim != 3 or occupied.dtype != torch.bool:
        raise ValueError(f"occupied must be bool [X, Y, Z], got {occupied.dtype} {tuple(occupied.shape)}")
    for name, tensor in (("origins", origins), ("directions", directions)):
        if tensor.ndim != 2 or tensor.shape[1] != 3 or tensor.dtype != torch.float64:
            raise ValueError(f"{name} must be float64 [R, 3], got {tensor.dtype} {tuple(tensor.shape)}")
    if origins.shape != directions.shape:
        raise ValueError(f"got {origins.shape[0]} origins but {directions.shape[0]} directions")
    if not occupied.device == origins.device == directions.device:
        raise ValueError(
            f"occupied, origins and directions must share one device, got {occupied.device}, {origins.device}, "
            f"{directions.device}"
        )
    name = backend or ("numba" if occupied.device.type == "cpu" and has_module("numba") else "reference")
    if name == "reference":
        from syntheocc.occupancy.ops.raycast.reference import traverse_reference as run
    elif name == "numba" and occupied.device.type == "cpu" and has_module("numba"):
        from syntheocc.occupancy.ops.raycast.numba import traverse_numba as run
    else:
        raise ValueError(
            f"backend {name!r} cannot run on {occupied.device}: choose from {', '.join(BACKENDS)}; numba works on "
            "the CPU (pip install 'syntheocc[fast]')"
        )
    return run(occupied, origins, directions)
