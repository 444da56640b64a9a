"""The semantic-MPI lookup: which voxel does a cell's ray meet on each plane, and which plane comes first.

A ray is affine in depth, so a sample is ``origin + depth * direction`` in voxel units and its voxel is the floor of
that. Everything about cameras and frames is folded into ``origins`` and ``directions`` before this operator is
reached.

Implementations of one signature: `reference` (per-pixel loops, float64, the definition), `torch` (vectorised, any
device), `numba` (CPU) and `triton` (GPU). All of them compute in float64, because a consumer can then rely on one set
of labels; the last bit of a product may still differ where a compiler contracts it with the sum.

Legend: B frames, V views, S samples of a cell, D planes, L layers (groups of planes), h w cells, X Y Z voxels.
"""

import importlib.util
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ("reference", "torch", "numba", "triton")


class LookupPlanes(NamedTuple):
    """Plane ``i`` lies at depth ``near + i * step`` (metres) and belongs to layer ``i * num_layers // num_planes``."""

    near: float
    step: float
    num_planes: int
    num_layers: int


def mpi_lookup(
    labels: Tensor,  # [B, X, Y, Z] uint8
    origins: Tensor,  # [B, V, 3] float64, voxels
    directions: Tensor,  # [B, V, S, h, w, 3] float64, voxels per metre of depth
    planes: LookupPlanes,
    free: int,
    table: Tensor | None = None,  # [256] uint8
    foreground: Tensor | None = None,  # [256] bool
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Looks up the voxel label at every plane of every cell.

    Args:
        labels: voxel labels. 255 (unknown) reads as ``free``.
        origins: camera centres in voxel units (0 is the grid's lower face, X its upper one).
        directions: voxel units per metre of depth; a ray that holds NaN meets nothing. Sample 0 of a cell is its main
            one.
        planes: depths and their grouping.
        free: the output label of empty space, of everything outside the grid and of unknown voxels.
        table: output label of every voxel label (255 included); None keeps the labels.
        foreground: which output labels are foreground; needed when S > 1. On each plane the first foreground label in
            the order of the samples wins; without one, sample 0 decides.
        backend: one of `BACKENDS`; None takes triton on a GPU and numba on a CPU where they are installed, else torch.

    Returns:
        labels uint8 [B, V, L, h, w], the nearest non-free plane's label of every layer, near to far; nearest uint8
        [B, V, h, w], the nearest non-free label of all; nearest_plane int16 [B, V, h, w], its plane index (not layer
        index), 0 where ``nearest`` is free.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is unknown or not installed.
    """
    check_lookup(labels, origins, directions, planes, free, table, foreground)
    name = backend or choose_backend(labels.device)
    if name == "reference":
        from syntheocc.occupancy.ops.mpi_lookup.reference import mpi_lookup_reference as lookup
    elif name == "torch":
        from syntheocc.occupancy.ops.mpi_lookup.vectorised import mpi_lookup_torch as lookup
    elif name == "numba" and has_module("numba") and labels.device.type == "cpu":
        from syntheocc.occupancy.ops.mpi_lookup.numba import mpi_lookup_numba as lookup
    elif name == "triton" and has_module("triton") and labels.device.type != "cpu":
        from syntheocc.occupancy.ops.mpi_lookup.triton import mpi_lookup_triton as lookup
    else:
        raise ValueError(
            f"backend {name!r} cannot run on {labels.device}: choose from {', '.join(BACKENDS)}; numba works on "
            "the CPU (pip install 'syntheocc[fast]'), triton on a GPU (it comes with the GPU builds of torch)"
        )
    return lookup(labels, origins, directions, planes, free, table, foreground)


def choose_backend(device: torch.device) -> str:
    """The fastest installed implementation for tensors on ``device``."""
    if device.type == "cuda" and has_module("triton"):
        return "triton"
    if device.type == "cpu" and has_module("numba"):
        return "numba"
    return "torch"


@cache
def has_module(name: str) -> bool:
    """Whether an optional package is installed, without importing it."""
    return importlib.util.find_spec(name) is not None


def check_lookup(
    labels: Tensor,
    origins: Tensor,
    directions: Tensor,
    planes: LookupPlanes,
    free: int,
    table: Tensor | None,
    foreground: Tensor | None,
) -> None:
    """Raises ValueError unless the arguments of `mpi_lookup` fit together."""
    if labels.ndim != 4 or labels.dtype != torch.uint8:
        raise ValueError(f"labels must be uint8 [B, X, Y, Z], got {labels.dtype} {tuple(labels.shape)}")
    if directions.ndim != 6 or directions.shape[-1] != 3 or directions.dtype != torch.float64:
        raise ValueError(
            f"directions must be float64 [B, V, S, h, w, 3], got {directions.dtype} {tuple(directions.shape)}"
        )
    batch, views, samples = directions.shape[:3]
    if tuple(origins.shape) != (batch, views, 3) or origins.dtype != torch.float64:
        raise ValueError(
            f"origins must be float64 [B, V, 3] = {(batch, views, 3)}, got {origins.dtype} {tuple(origins.shape)}"
        )
    if labels.shape[0] != batch:
        raise ValueError(f"labels hold {labels.shape[0]} grids but directions hold {batch} frames")
    if not 0 <= free <= 254:
        raise ValueError(f"the free label must lie in 0..254, got {free}")
    if not (planes.near > 0 and planes.step > 0 and 1 <= planes.num_layers <= planes.num_planes <= 32767):
        raise ValueError(f"planes must be near > 0, step > 0, 1 <= num_layers <= num_planes <= 32767; got {planes}")
    if samples < 1 or (samples > 1 and foreground is None):
        raise ValueError(f"{samples} samples a cell need a table of foreground labels [256]")
    for name, tensor, dtype in (("table", table, torch.uint8), ("foreground", foreground, torch.bool)):
        if tensor is not None and (tuple(tensor.shape) != (256,) or tensor.dtype != dtype):
            raise ValueError(f"{name} must be {dtype} [256], got {tensor.dtype} {tuple(tensor.shape)}")
    devices = {t.device for t in (labels, origins, directions, table, foreground) if t is not None}
    if len(devices) > 1:
        raise ValueError(f"all tensors must share one device, got {sorted(map(str, devices))}")


def layer_bounds(planes: LookupPlanes) -> list[int]:
    """First plane of every layer, and ``num_planes`` at the end."""
    return [-(-g * planes.num_planes // planes.num_layers) for g in range(planes.num_layers + 1)]


def label_table(free: int, table: Tensor | None, device: torch.device) -> Tensor:
    """The table with "unknown reads as free" folded in, uint8 [256]."""
    if table is None:
        table = torch.arange(256, dtype=torch.uint8, device=device)
        table[255] = free
        return table
    return torch.where(table == 255, free, table).to(torch.uint8)
