"""Ray casting into occupancy grids, in metres. Legend: B grids, O origins, R rays, X Y Z voxels."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.raycast import traverse, voxel_rays


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
    float32 first and distances are float32, which reproduces the published metric to the bit. All devices and back
    ends give the same bits.

    Args:
        occupied: bool [X, Y, Z], which voxels stop a ray. For RayIoU this is ``labels != free`` (unknown stops a ray).
            Or a batch of grids [B, X, Y, Z], for example frames.
        origins: [R, 3] or [3] metres in the grid's frame; may lie outside the grid. Any leading shape that broadcasts
            with that of the directions will do; with a batch of grids it begins with B (or broadcasts to it):
            ``origins[B, O, 1, 3]`` and ``directions[R, 3]`` cast all rays from all origins of all frames.
        directions: [R, 3] or [3], of any length; see origins.
        spec: where the voxels lie.
        distance: ``"exit"`` measures to the point where the ray leaves the reported voxel (what RayIoU does; it
            cancels in the difference of two grids), ``"entry"`` to the point where it enters it (0 when it starts
            inside).
        backend: for tests, see `traverse`.

    Returns:
        distance [R] in metres, index int64 [R, 3] and hit bool [R] (or the leading shape that origins and directions
        broadcast to, in the place of R). Without a hit, index and distance are those of the last voxel before the ray
        left the grid; a ray that never enters the grid has index (0, 0, 0) and minus one voxel's length as distance.

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
    if occupied.dtype != torch.bool or occupied.ndim not in (3, 4) or tuple(occupied.shape[-3:]) != spec.shape:
        raise ValueError(
            f"occupied must be bool {spec.shape} (X, Y, Z) as the grid spec says, with or without a leading batch "
            f"axis; got {occupied.dtype} {tuple(occupied.shape)}"
        )
    if distance not in ("exit", "entry"):
        raise ValueError(f"distance must be 'exit' or 'entry', got {distance!r}")
    origins, directions = _as_points(origins, device), _as_points(directions, device)
    for name, tensor in (("origins", origins), ("directions", directions)):
        if tensor.ndim < 1 or tensor.shape[-1] != 3:
            raise ValueError(f"{name} must be [R, 3] or [3] (or [..., 3]), got {tuple(tensor.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} hold NaN or infinite values")
    rays = _ray_shape(occupied, origins, directions)
    if bool((directions == 0).all(-1).any()):
        raise ValueError("a ray needs a direction, but one of them is (0, 0, 0)")
    single = torch.promote_types(origins.dtype, directions.dtype) != torch.float64
    start, unit = voxel_rays(
        origins.double().expand(*rays, 3), directions.double().expand(*rays, 3), spec.lower, spec.voxel_size, single
    )
    batch = (occupied.shape[0], -1, 3) if occupied.ndim == 4 else (-1, 3)
    if occupied.ndim == 4 and not occupied.shape[0]:
        batch = (0, 0, 3)
    results = traverse(occupied, start.reshape(batch), unit.reshape(batch), backend)
    exit_t, index, hit = results[0].view(rays), results[1].view(*rays, 3), results[2].view(rays)
    reached = exit_t if distance == "exit" else _entry(exit_t, start, unit, index)
    metres = _metres_per_voxel(unit, spec)
    if single:
        return reached.float() * metres.float(), index, hit
    return reached * metres, index, hit


def _ray_shape(occupied: Tensor, origins: Tensor, directions: Tensor) -> torch.Size:
    """The leading shape that origins and directions broadcast to."""
    if (
        origins.ndim == directions.ndim == 2
        and 1 not in (len(origins), len(directions))
        and len(origins) != len(directions)
    ):
        raise ValueError(
            f"got {origins.shape[0]} origins but {directions.shape[0]} directions; give as many, or a single "
            "[3] of either"
        )
    try:
        rays = torch.broadcast_shapes(origins.shape[:-1], directions.shape[:-1])
    except RuntimeError as error:
        raise ValueError(
            f"origins {tuple(origins.shape)} and directions {tuple(directions.shape)} do not broadcast: {error}"
        ) from error
    if occupied.ndim == 3:
        return rays if rays else torch.Size([1])
    grids = occupied.shape[0]
    if len(rays) < 2 or rays[0] not in (1, grids):
        raise ValueError(f"{grids} grids need origins or directions [{grids}, ..., 3]; together they are {(*rays, 3)}")
    return torch.Size([grids, *rays[1:]])


def _metres_per_voxel(unit: Tensor, spec: GridSpec) -> Tensor:
    """Metres along a ray for one voxel along it: the voxel size, also where voxels are not cubes."""
    size = constant(spec.voxel_size, unit)
    if len(set(spec.voxel_size)) == 1:
        return size[0]
    x, y, z = (unit * size).unbind(-1)
    return (x * x + y * y + z * z).sqrt()


def _as_points(values: Any, device: torch.device) -> Tensor:
    if isinstance(values, Tensor | np.ndarray):
        return torch.as_tensor(values, device=device)
    # Python's floats are float64; torch would make them float32.
    return torch.as_tensor(values, dtype=torch.float64, device=device)


def _entry(exit_t: Tensor, start: Tensor, unit: Tensor, index: Tensor) -> Tensor:
    """The ``t`` [...] at which rays enter the voxels ``index``; -1 stays -1."""
    face = index + (unit < 0)
    crossing = torch.where(unit != 0, (face - start) / unit, float("-inf"))
    return torch.where(exit_t == -1, exit_t, crossing.amax(-1).clamp_min(0))
