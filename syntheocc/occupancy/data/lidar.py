"""nuScenes lidar sweeps: float32 records of x, y, z (metres, lidar frame), intensity (0..255) and ring."""

import os

import numpy as np

from syntheocc.engine.files import atomic_write_bytes, not_opened

__all__ = ["read_lidar", "write_lidar"]


def read_lidar(path: str | os.PathLike, columns: int = 5) -> np.ndarray:
    """Read a `.bin` sweep.

    Args:
        path: little-endian float32 records.
        columns: numbers in a record (nuScenes 5, KITTI 4).

    Returns:
        float32 [N, columns]; the first three are x, y, z in metres.

    Raises:
        ValueError: no such file, or a size that is no whole number of records, or coordinates that are not finite.
    """
    try:
        data = np.fromfile(path, dtype="<f4")
        size = os.path.getsize(path)
    except OSError as error:
        raise not_opened(path, error) from error
    if size == 0 or size % (4 * columns):
        raise ValueError(
            f"{path}: {size} bytes are no whole number of records of {columns} float32; it is truncated or has "
            "another number of columns"
        )
    points = data.reshape(-1, columns)
    if not np.isfinite(points[:, :3]).all():
        raise ValueError(f"{path}: holds coordinates that are not finite; it is damaged or has other columns")
    return points


def write_lidar(points: np.ndarray, path: str | os.PathLike) -> None:
    """Write records [N, columns] as float32; the file appears by rename."""
    points = np.asarray(points)
    if points.ndim != 2:
        raise ValueError(f"{path}: a sweep is [N, columns], got {list(points.shape)}")
    atomic_write_bytes(path, np.ascontiguousarray(points, dtype="<f4").tobytes())
