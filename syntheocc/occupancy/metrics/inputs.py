"""What `update` takes, made uniform: labels [B, ...], a list of origins. Legend: B frames, O origins, X Y Z voxels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.metrics.accumulator import about
from syntheocc.occupancy.taxonomy import Taxonomy

__all__ = ["as_batch", "as_labels", "as_origins", "as_tokens"]


def as_tokens(tokens: str | Sequence[str] | None) -> list[str]:
    """Tokens as a list; empty where there are none."""
    if tokens is None:
        return []
    return [tokens] if isinstance(tokens, str) else list(tokens)


def as_labels(value: Any, taxonomy: Taxonomy, what: str, tokens: list[str], dims: int | None = 3) -> Tensor:
    """Labels as uint8 [B, ...].

    Args:
        value: a grid, a list of grids, or labels [X, Y, Z] or [B, X, Y, Z], numpy or torch, any integer type.
        taxonomy: the metric's class table; grids of another one are refused.
        what: "prediction" or "ground truth", for messages.
        tokens: the frames' tokens, for messages.
        dims: axes of one frame; None takes the first axis for the batch whatever follows.

    Raises:
        ValueError: no integers, values beyond 0..255, a grid of another class table, or a wrong number of axes.
    """
    if isinstance(value, list | tuple) and value and all(isinstance(grid, OccupancyGrid) for grid in value):
        return torch.cat([as_labels(g, taxonomy, what, tokens[k : k + 1], dims) for k, g in enumerate(value)])
    if isinstance(value, OccupancyGrid):
        if value.taxonomy != taxonomy:
            raise ValueError(
                f"{about(tokens, 0) if tokens else ''}{what} has classes of {value.taxonomy.name!r}, the metric's are "
                f"those of {taxonomy.name!r}; map the grid first (grid.map_to)"
            )
        value = value.labels
    labels = as_batch(value, what, tokens, dims)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{about(tokens, 0) if tokens else ''}{what} must hold integer class ids, got {labels.dtype}")
    if labels.dtype == torch.int8:  # its comparison with 255 would be one with -1
        labels = labels.short()
    if labels.dtype != torch.uint8:
        beyond = ((labels < 0) | (labels > 255)).reshape(len(labels), -1).any(1)
        if bool(beyond.any()):
            bad = int(beyond.nonzero()[0])
            low, high = (int(bound) for bound in labels[bad].aminmax())
            raise ValueError(
                f"{about(tokens, bad) if tokens else ''}{what} must hold class ids in 0..255, got {low}..{high}"
            )
        labels = labels.to(torch.uint8)
    return labels


def as_batch(value: Any, what: str, tokens: list[str], dims: int | None = 3) -> Tensor:
    """Anything array-like as a tensor [B, ...] with ``dims`` axes a frame; lists are stacked."""
    if isinstance(value, list | tuple) and value and all(isinstance(v, np.ndarray | Tensor) for v in value):
        shapes = [tuple(v.shape) for v in value]
        if len(set(shapes)) > 1:
            bad = next(k for k, shape in enumerate(shapes) if shape != shapes[0])
            raise ValueError(
                f"{about(tokens, bad) if tokens else ''}{what} has shape {shapes[bad]}, the first of the batch "
                f"{shapes[0]}; they must match"
            )
        value = torch.stack([_tensor(v, what, tokens) for v in value])
    tensor = _tensor(value, what, tokens)
    if dims is not None and tensor.ndim == dims:
        tensor = tensor[None]
    if dims is not None and tensor.ndim != dims + 1:
        axes = ("X, Y, Z", "X, Y, Z, 2")[dims - 3]
        raise ValueError(
            f"{about(tokens, 0) if tokens else ''}{what} must be [{axes}] or [B, {axes}], got {tuple(tensor.shape)}"
        )
    if dims is None and not tensor.ndim:
        raise ValueError(f"{what} must be an array, got a single number")
    return tensor


def _tensor(value: Any, what: str, tokens: list[str]) -> Tensor:
    if isinstance(value, Tensor):
        # torch computes with no unsigned integers but bytes.
        known = value.dtype.is_signed or value.dtype in (torch.uint8, torch.bool)
        return value if known else value.long()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{about(tokens, 0) if tokens else ''}{what} must be numbers, got an array of {array.dtype}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    # torch wraps neither foreign byte orders nor negative strides, and warns of read-only memory.
    native = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(array, native, ["C", "W"]))


def as_origins(origins: Any, frames: int, tokens: list[str]) -> tuple[Tensor, Tensor]:
    """Ray origins of a batch as one list.

    Args:
        origins: a list of [O, 3], one a frame, or [B, O, 3], or for one frame [O, 3]; metres in the grids' frame.
        frames: B.
        tokens: the frames' tokens, for messages.

    Returns:
        origins float64 [N, 3], and the frame of each int32 [N]; on the CPU unless they came on a GPU.

    Raises:
        ValueError: shapes do not fit, a frame without an origin, or one that is NaN or infinite.
    """
    if origins is None:
        raise ValueError(f"{about(tokens, 0) if tokens else ''}ray origins are needed (see ray_origins), got None")
    single = isinstance(origins, np.ndarray | Tensor) and origins.ndim == 2
    parts = [origins] if single else list(origins)
    if frames == 1 and parts and not single and np.ndim(parts[0]) == 1:
        parts = [parts]
    if len(parts) != frames:
        raise ValueError(f"got origins of {len(parts)} frames for {frames} grids; give one [O, 3] a frame")
    rows = [torch.zeros(0, 3, dtype=torch.float64)] if not parts else []
    for k, part in enumerate(parts):
        row = torch.as_tensor(part if isinstance(part, Tensor) else np.asarray(part, dtype=np.float64)).double()
        if row.ndim != 2 or row.shape[1] != 3 or not len(row):
            raise ValueError(f"{about(tokens, k)}ray origins must be [O, 3] with O at least 1, got {tuple(row.shape)}")
        if not bool(torch.isfinite(row).all()):
            raise ValueError(f"{about(tokens, k)}ray origins hold NaN or infinite values; check the frame's poses")
        rows.append(row)
    counts = torch.tensor([len(row) for row in rows[:frames]], dtype=torch.int64)
    return torch.cat(rows), torch.arange(frames, dtype=torch.int32).repeat_interleave(counts).to(rows[0].device)
