"""Occupancy flow on disk in the form that OccFlowNet's tool writes: `<root>/<scene name>/<sample token>.npz`.

| array     | content                                                                                            |
|-----------|----------------------------------------------------------------------------------------------------|
| `flow`    | uint8 [N, 11]: source z y x, target z y x, corner z y x, class, time index                         |
| `T`       | float32 [K, 4, 4]: motions of boxes in the key ego frame                                           |
| `indices` | uint16 [N]: the row of `T` that moved each voxel                                                   |

The time index 0..5 stands for the key frames -3, -2, -1, 1, 2, 3 from the sample's own. Training needs no such files
(`rendering.motion`); they are read to compare with, and written for programs that want them.

Specification: specs/occflownet_splattingocc.md 3.4 item 6. Legend: N rows, K motions.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from syntheocc.engine.files import atomic_write_npz, read_npz
from syntheocc.occupancy.grids import OCC3D_NUSCENES, GridSpec
from syntheocc.occupancy.rendering.scatter import FlowRows

__all__ = ["FLOW_OFFSETS", "flow_path", "read_flow", "write_flow"]

# Key frames of the time indices.
FLOW_OFFSETS = (-3, -2, -1, 1, 2, 3)


def flow_path(root: str | os.PathLike, scene: str, token: str) -> Path:
    """Where the flow of a sample lies below the flow folder (`data/flow`)."""
    return Path(root) / scene / f"{token}.npz"


def write_flow(
    rows: FlowRows,
    frame_offsets: Sequence[int],
    path: str | os.PathLike,
    spec: GridSpec = OCC3D_NUSCENES.spec,
) -> None:
    """Write one sample's rows; the file appears by rename.

    Args:
        rows: from `flow_rows`; none at all make a file of empty arrays, as published.
        frame_offsets: what `rows.frames` are indices into.
        path: the file.
        spec: the grid that the rows index.

    Raises:
        ValueError: rows of a frame that has no time index, or more voxels along an axis or motions than the files'
            integers can count.
    """
    if max(spec.shape) > 256 or len(rows.source2target) > 65536:
        raise ValueError(
            f"{path}: flow files count voxels up to 256 along an axis and 65536 motions; the grid has {spec.shape}, "
            f"and there are {len(rows.source2target)} motions"
        )
    used = [frame_offsets[frame] for frame in rows.frames.unique().tolist()]
    if not set(used) <= set(FLOW_OFFSETS):
        raise ValueError(f"{path}: flow files have rows of the key frames {FLOW_OFFSETS}, got rows of {used}")
    times = torch.tensor([FLOW_OFFSETS.index(o) if o in FLOW_OFFSETS else -1 for o in frame_offsets])
    cells = [cell.flip(1) for cell in (rows.source, rows.target, rows.corner)]
    flow = torch.cat([*cells, rows.labels[:, None], times.to(rows.frames.device)[rows.frames][:, None]], 1)
    atomic_write_npz(
        path,
        flow=flow.cpu().numpy().astype(np.uint8),
        T=rows.source2target.cpu().numpy().astype(np.float32),
        indices=rows.motions.cpu().numpy().astype(np.uint16),
    )


def read_flow(
    path: str | os.PathLike,
    frame_offsets: Sequence[int],
    spec: GridSpec = OCC3D_NUSCENES.spec,
    classes: Sequence[int] | None = None,
) -> FlowRows:
    """Read one sample's rows.

    Args:
        path: the file.
        frame_offsets: the frames that are wanted; rows of others are left out. `frames` index into these.
        spec: the grid that the rows index.
        classes: classes whose rows are wanted; None: all.

    Raises:
        ValueError: truncated file, a missing array, arrays that do not fit together, a voxel outside the grid.
    """
    arrays = read_npz(path, ["flow", "T", "indices"])
    flow, motions, indices = arrays["flow"], arrays["T"], arrays["indices"]
    # Where nothing moves the published files hold arrays without elements, of whatever shape.
    flow = flow.reshape(-1, 11) if not flow.size else flow
    motions = motions.reshape(-1, 4, 4) if not motions.size else motions
    if flow.ndim != 2 or flow.shape[1] != 11 or flow.dtype.kind not in "iu" and flow.size:
        raise ValueError(f"{path}: flow is integer [N, 11], got {flow.dtype} {list(flow.shape)}")
    if motions.shape[1:] != (4, 4) or indices.reshape(-1).shape != (len(flow),):
        raise ValueError(
            f"{path}: {len(flow)} rows need as many indices and T [K, 4, 4]; got indices {list(indices.shape)} and T "
            f"{list(motions.shape)}"
        )
    values = torch.from_numpy(flow.astype(np.int64))
    which = torch.from_numpy(indices.reshape(-1).astype(np.int64))
    source, target, corner = cells = [part.flip(1) for part in values[:, :9].split(3, 1)]
    if len(values):
        if any(bool((cell >= torch.tensor(spec.shape)).any()) for cell in cells):
            raise ValueError(
                f"{path}: a voxel lies outside the grid of {spec.shape} [x, y, z]; is it of another grid?"
            )
        if int(values[:, 10].max()) >= len(FLOW_OFFSETS) or int(which.max()) >= len(motions):
            raise ValueError(
                f"{path}: a row has a time index beyond 5 or a motion beyond {len(motions) - 1}; damaged?"
            )
    place = torch.tensor([frame_offsets.index(o) if o in frame_offsets else -1 for o in FLOW_OFFSETS])
    frames = place[values[:, 10]]
    transforms = torch.from_numpy(motions.astype(np.float32))
    rows = FlowRows(source, target, corner, values[:, 9], frames, which, transforms)
    wanted = frames >= 0
    if classes is not None:
        wanted &= torch.isin(rows.labels, torch.tensor(list(classes)))
    return rows.select(wanted)
