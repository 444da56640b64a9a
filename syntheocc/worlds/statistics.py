"""What a world is made of, in numbers: shares of the classes' voxels, distances of the objects, visible fractions.

Legend: C classes of Occ3D without free (17).
"""

from collections.abc import Iterable

import numpy as np

from syntheocc.occupancy.data.frames import DETECTION_CLASSES, Boxes
from syntheocc.occupancy.grids import OCC3D_NUSCENES, OccupancyGrid
from syntheocc.occupancy.losses import OCC3D_COUNTS

__all__ = ["OCC3D_COUNTS", "class_shares", "distances_of", "histogram", "occ3d_shares"]


def occ3d_shares() -> np.ndarray:
    """Shares of Occ3D's occupied voxels by class, float64 [C], in the order of its ids 0..16."""
    counts = np.array(OCC3D_COUNTS, dtype=np.float64)
    return counts / counts.sum()


def class_shares(grids: Iterable[OccupancyGrid]) -> np.ndarray:
    """Shares of the occupied voxels of Occ3D grids by class, float64 [C].

    Raises:
        ValueError: a grid has another class table.
    """
    table = OCC3D_NUSCENES.taxonomy
    counts = np.zeros(256)
    for grid in grids:
        if grid.taxonomy != table:
            raise ValueError(f"shares are counted in taxonomy {table.name!r}, got a grid in {grid.taxonomy.name!r}")
        counts += np.bincount(grid.labels.cpu().numpy().ravel(), minlength=256)
    return counts[: table.free] / max(counts[: table.free].sum(), 1)


def distances_of(boxes: Boxes) -> dict[str, np.ndarray]:
    """Distance of the boxes' centres from the ego origin in the plane, metres, by detection class."""
    distance = boxes.centers[:, :2].norm(dim=-1).numpy()
    names = np.array(boxes.names)
    return {name: distance[names == name] for name in DETECTION_CLASSES}


def histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of the values between consecutive edges, float64 [len(edges) - 1]; zeros where there are none."""
    counts = np.histogram(values, edges)[0].astype(np.float64)
    return counts / max(counts.sum(), 1)
