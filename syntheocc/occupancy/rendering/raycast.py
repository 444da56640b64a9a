"""Ray casting into occupancy grids, in metres. Legend: R rays, X Y Z voxels."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.raycast import traverse


def cast_rays(
    occupied: Any,
    origins: Any,
    directions: Any,
    spec: GridSpec,
    distance: Literal["exit", "entry"] = "exit",
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The first occupied voxel along each ray.

    The traversal is float64 and follows the rules of the published RayIoU caster (`syntheocc.occupancy.ops.raycast`,
    specs/sparseocc.md 3.4). Precision follows the inputs: with float64 origins or directions nothing is rounded; when
    both are float32, the voxel coordinates of the origin and of the point one direction further are rounded to
    float32 first and distances are float32, which reproduces the published metric to the bit.

    Args:
        occupied: bool [X, Y, Z], which voxels stop a ray. For RayIoU this is ``labels != free`` (unknown stops a ray).
        origins: [R, 3] or [3] metres in the grid's frame; may lie outside the grid.
        directions: [R, 3] or [3], of any length.
        spec: where the voxels lie.
        distance: ``"exit"`` measures to the point where the ray leaves the reported voxel (what RayIoU does; it
            cancels in the difference of two grids), ``"entry"`` to the point where it enters it (0 when it starts
            inside).
        backend: for tests, see `traverse`.

    Returns:
        distance [R] in metres, index int64 [R, 3] and hit bool [R]. Without a hit, index and distance are those of the
        last voxel before the ray left the grid; a ray that never enters the grid has index (0, 0, 0) and minus one
        voxel's length as distance.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or a direction is zero.

    Example:
        >>> spec = GridSpec(lower=(0.0, 0.0, 0.0), voxel_size=0.5, shape=(4, 4, 4))
        >>> occupied = torch.zeros(4, 4, 4, dtype=torch.bool)
        >>> occupied[3, 1, 2] = True
        >>> cast_rays(occupied, [0.25, 0.75, 1.25], [[1.0, 0.0, 0.0]], spec, distance="entry")
        (tensor([1.2500], dtype=torch.float64), tensor([[3, 1, 2]]), tensor([True]))
    """
    occupied = torch.as_tensor(occupied)
    device = occupied.device
    if occupied.dtype != torch.bool or tuple(occupied.shape) != spec.shape:
        raise ValueError(
            f"occupied must be bool {spec.shape} (X, Y, Z) as the grid spec says, got {occupied.dtype} "
            f"{tuple(occupied.shape)}"
        )
    if distance not in ("exit", "entry"):
        raise ValueError(f"distance must be 'exit' or 'entry', got {distance!r}")
    origins, directions = _as_points(origins, device), _as_points(directions, device)
    for name, tensor in (("origins", origins), ("directions", directions)):
        if tensor.ndim not in (1, 2) or tensor.shape[-1] != 3:
            raise ValueError(f"{name} must be [R, 3] or [3], got {tuple(tensor.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} hold NaN or infinite values")
    if origins.ndim == directions.ndim == 2 and origins.shape[0] != directions.shape[0]:
        raise ValueError(
            f"got {origins.shape[0]} origins but {directions.shape[0]} directions; give as many, or a single "
            "[3] of either"
        )
    origins, directions = torch.broadcast_tensors(torch.atleast_2d(origins), directions)
    if bool((directions == 0).all(1).any()):
        raise ValueError("a ray needs a direction, but one of them is (0, 0, 0)")
    single = torch.promote_types(origins.dtype, directions.dtype) != torch.float64
    start, span = _voxel_rays(origins.double(), directions.double(), spec, single)
    length = span.norm(dim=1, keepdim=True)
    unit = span / length
    exit_t, index, hit = traverse(occupied, start, unit, backend)
    reached = exit_t if distance == "exit" else _entry(exit_t, start, unit, index)
    # Metres along the ray for one voxel along it: the voxel size, also where voxels are not cubes.
    metres = (span * span.new_tensor(spec.voxel_size)).norm(dim=1) / length[:, 0]
    if single:
        return reached.float() * metres.float(), index, hit
    return reached * metres, index, hit


def _as_points(values: Any, device: torch.device) -> Tensor:
    if isinstance(values, Tensor | np.ndarray):
        return torch.as_tensor(values, device=device)
    # Python's floats are float64; torch would make them float32.
    return torch.as_tensor(values, dtype=torch.float64, device=device)


def _voxel_rays(origins: Tensor, directions: Tensor, spec: GridSpec, single: bool) -> tuple[Tensor, Tensor]:
    """Start points and direction vectors in voxel units, float64 [R, 3]."""
    lower, size = origins.new_tensor(spec.lower), origins.new_tensor(spec.voxel_size)
    if not single:
        return (origins - lower) / size, directions / size
    # specs/sparseocc.md 3.3: the voxel size is float32 there, and both points are rounded to float32.
    size = size.float().double()
    start = ((origins - lower) / size).float().double()
    end = ((origins + directions - lower) / size).float().double()
    return start, end - start


def _entry(exit_t: Tensor, start: Tensor, unit: Tensor, index: Tensor) -> Tensor:
    """The ``t`` [R] at which rays enter the voxels ``index``; -1 stays -1."""
    face = index + (unit < 0)
    crossing = torch.where(unit != 0, (face - start) / unit, float("-inf"))
    return torch.where(exit_t == -1, exit_t, crossing.amax(1).clamp_min(0))
