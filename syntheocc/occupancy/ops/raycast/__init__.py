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

Implementations of one signature: `reference` (torch, all rays a step at a time: the definition), `torch` (vectorised,
any device), `numba` (CPU) and `triton` (GPU). They agree to the last bit: a ``t`` is a sum of one axis' steps in
order, so none of them may jump, and none may contract a product with a sum. Legend: G grids, R rays, X Y Z voxels.
"""

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.ops.mpi_lookup import has_module

BACKENDS = ("reference", "torch", "numba", "triton")
# Advances outside the grid after which the published caster gives a ray up.
MAX_STEPS_OUTSIDE = 1001


def traverse(
    occupied: Tensor,  # [X, Y, Z] or [G, X, Y, Z], bool (or uint8 labels)
    origins: Tensor,  # [R, 3] or [G, R, 3] float64, voxels
    directions: Tensor,  # [R, 3] or [G, R, 3] float64, unit length in voxels
    backend: str | None = None,
    free: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Traverses the grid along every ray; with a batch of grids, each grid along its own rays.

    Args:
        occupied: which voxels stop a ray; uint8 labels with `free`, of which all but that one stop a ray.
        origins: start points; 0 is the grid's lower face, X its upper one.
        directions: unit vectors.
        backend: one of `BACKENDS`; None takes triton on a GPU and numba on a CPU where they are installed, else torch.
        free: the label that lets rays pass; needed by labels.

    Returns:
        exit float64 [R], the ``t`` at which the ray leaves the reported voxel; index int64 [R, 3], that voxel; hit
        bool [R], whether it is occupied. Each with a leading G where `occupied` has it.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is unknown or cannot run here.
    """
    if occupied.ndim not in (3, 4) or occupied.dtype != (torch.bool if free is None else torch.uint8):
        want = "bool" if free is None else "uint8 labels"
        raise ValueError(
            f"occupied must be {want} [X, Y, Z] or [G, X, Y, Z], got {occupied.dtype} {tuple(occupied.shape)}"
        )
    shape = "[R, 3]" if occupied.ndim == 3 else "[G, R, 3]"
    for name, tensor in (("origins", origins), ("directions", directions)):
        if tensor.ndim != occupied.ndim - 1 or tensor.shape[-1] != 3 or tensor.dtype != torch.float64:
            raise ValueError(f"{name} must be float64 {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
    if origins.shape != directions.shape:
        raise ValueError(f"got {origins.shape[-2]} origins but {directions.shape[-2]} directions")
    if occupied.ndim == 4 and occupied.shape[0] != origins.shape[0]:
        raise ValueError(f"got {occupied.shape[0]} grids but rays of {origins.shape[0]}")
    if not occupied.device == origins.device == directions.device:
        raise ValueError(
            f"occupied, origins and directions must share one device, got {occupied.device}, {origins.device}, "
            f"{directions.device}"
        )
    if min(occupied.shape[-3:]) < 1:
        raise ValueError(f"a grid needs voxels, got {tuple(occupied.shape)}")
    name = backend or choose_backend(occupied.device)
    if name == "reference":
        from syntheocc.occupancy.ops.raycast.reference import traverse_reference as run
    elif name == "torch":
        from syntheocc.occupancy.ops.raycast.vectorised import traverse_torch as run
    elif name == "numba" and occupied.device.type == "cpu" and has_module("numba"):
        from syntheocc.occupancy.ops.raycast.numba import traverse_numba as run
    elif name == "triton" and occupied.device.type != "cpu" and has_module("triton"):
        from syntheocc.occupancy.ops.raycast.triton import traverse_triton as run
    else:
        raise ValueError(
            f"backend {name!r} cannot run on {occupied.device}: choose from {', '.join(BACKENDS)}; numba works on "
            "the CPU (pip install 'syntheocc[fast]'), triton on a GPU (it comes with the GPU builds of torch)"
        )
    labels = occupied.contiguous() if free is not None else occupied.contiguous().view(torch.uint8)
    single = occupied.ndim == 3
    if single:
        labels, origins, directions = labels[None], origins[None], directions[None]
    exit_t, flat, hit = run(labels, 0 if free is None else free, origins.contiguous(), directions.contiguous())
    index = unravel(flat, labels.shape[1:])
    return (exit_t[0], index[0], hit[0]) if single else (exit_t, index, hit)


def choose_backend(device: torch.device) -> str:
    """The fastest installed implementation for tensors on ``device``."""
    if device.type == "cuda" and has_module("triton"):
        return "triton"
    if device.type == "cpu" and has_module("numba"):
        return "numba"
    return "torch"


def unravel(flat: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Flat voxel numbers [...] of a grid of ``shape`` (X, Y, Z) as int64 [..., 3]."""
    flat = flat.long()
    return torch.stack([flat // (shape[1] * shape[2]), flat // shape[2] % shape[1], flat % shape[2]], -1)


def voxel_rays(
    origins: Tensor,  # [..., 3] float64, metres
    directions: Tensor,  # [..., 3] float64, of any length
    lower: tuple[float, float, float],
    size: tuple[float, float, float],
    rounded: bool,
) -> tuple[Tensor, Tensor]:
    """Rays in voxel units, by operations that round alike on every device.

    Args:
        origins: where rays begin.
        directions: where they go; the two broadcast.
        lower: the grid's lower corner, metres.
        size: a voxel's edges, metres.
        rounded: as the published metric hands rays to its caster (specs/sparseocc.md 3.3): the voxel size is the
            nearest float32, and so are the coordinates of the origin and of the point one direction further.

    Returns:
        start and unit directions, float64 [..., 3].
    """
    corner, edge = constant(lower, origins), constant(size, origins)
    if rounded:
        edge = edge.float().double()
        start = ((origins - corner) / edge).float().double()
        span = ((origins + directions - corner) / edge).float().double() - start
    else:
        start, span = (origins - corner) / edge, directions / edge
    x, y, z = span.unbind(-1)
    # Written out: a library's norm may add in another order, or contract, on another device.
    length = (x * x + y * y + z * z).sqrt()
    return start.expand(span.shape), span / length[..., None]
