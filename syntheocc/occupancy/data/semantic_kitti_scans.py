"""SemanticKITTI's scans: point labels `labels/NNNNNN.label`, and scans as voxels.

Point labels are uint32: the class in the low 16 bits, the instance in the high 16. Source: specs/occdepth.md 1.1.
"""

import os
from pathlib import Path

import numpy as np

from syntheocc.engine.files import atomic_write_bytes, not_opened
from syntheocc.occupancy.grids import SEMANTIC_KITTI

__all__ = ["read_point_labels", "voxelize_scan", "write_point_labels"]

SHAPE = SEMANTIC_KITTI.spec.shape


def voxelize_scan(points: np.ndarray, raw: np.ndarray | None = None) -> np.ndarray:
    """Which voxels a scan hits, bool [256, 256, 32].

    Points nearer than 2.5 m or farther than 70 m are dropped, and all is computed in float32, as in the official tool.

    Args:
        points: [N, 3 or more] metres, velodyne frame.
        raw: raw class ids [N] (`read_point_labels`): a voxel most of whose points have no class (raw 0) is free, as in
            the official voxels; left out, every point counts.

    Raises:
        ValueError: another number of ids than of points.
    """
    points = np.asarray(points)[:, :3].astype(np.float32)
    if raw is not None and len(raw) != len(points):
        raise ValueError(f"{len(raw)} labels for {len(points)} points; are both of the same scan?")
    distance = np.sqrt((points * points).sum(1))
    lower, size = (np.array(v, np.float32) for v in (SEMANTIC_KITTI.spec.lower, SEMANTIC_KITTI.spec.voxel_size))
    cell = np.floor((points - lower) / size)
    kept = (distance >= 2.5) & (distance <= 70.0) & ((cell >= 0) & (cell < SHAPE)).all(1)
    flat = np.ravel_multi_index(cell[kept].astype(np.int64).T, SHAPE)
    voxels = np.zeros(int(np.prod(SHAPE)), bool)
    if raw is None:
        voxels[flat] = True
    else:
        hit, place = np.unique(flat, return_inverse=True)
        ids, vote = np.unique(np.asarray(raw)[kept], return_inverse=True)
        votes = np.bincount(place * len(ids) + vote, minlength=len(hit) * len(ids)).reshape(len(hit), -1)
        voxels[hit[ids[votes.argmax(1)] > 0]] = True
    return voxels.reshape(SHAPE)


def read_point_labels(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read `labels/NNNNNN.label`: raw class ids uint16 [N] and instances uint16 [N] (0 none) of the scan's points."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise not_opened(path, error) from error
    if not data or len(data) % 4:
        raise ValueError(f"{path}: {len(data)} bytes are no whole number of uint32 labels; it is cut, copy it again")
    labels = np.frombuffer(data, "<u4")
    return (labels & 0xFFFF).astype(np.uint16), (labels >> 16).astype(np.uint16)


def write_point_labels(semantic: np.ndarray, instance: np.ndarray, path: str | os.PathLike) -> None:
    """Write raw class ids [N] and instances [N], both 0..65535, as uint32."""
    columns = [np.asarray(semantic), np.asarray(instance)]
    for column in columns:
        if column.ndim != 1 or column.dtype.kind not in "iu" or len(column) != len(columns[0]):
            raise ValueError(f"{path}: labels are two integer arrays [N], got {[list(c.shape) for c in columns]}")
        if len(column) and not 0 <= int(column.min()) <= int(column.max()) < 1 << 16:
            raise ValueError(f"{path}: labels take 16 bits, got {column.min()}..{column.max()}")
    low, high = (column.astype("<u4") for column in columns)
    atomic_write_bytes(path, (low | high << 16).astype("<u4").tobytes())
