"""Prediction, ground truth and their differences side by side. Legend: X Y Z voxels, H W pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from syntheocc.occupancy.pictures.above import bev_picture
from syntheocc.occupancy.pictures.colors import ERROR_COLORS, VoxelColors, class_colors, error_colors
from syntheocc.occupancy.pictures.oblique import PAPER, oblique_picture
from syntheocc.occupancy.pictures.sheets import class_legend, labelled, legend, tiled
from syntheocc.occupancy.pictures.viewpoint import Viewpoint

if TYPE_CHECKING:
    from syntheocc.occupancy.grids import OccupancyGrid

__all__ = ["comparison_picture"]


def comparison_picture(
    prediction: OccupancyGrid,
    truth: OccupancyGrid,
    known: Any = None,
    view: Viewpoint | None = Viewpoint(),  # noqa: B008 (frozen)
    *,
    height: int = 480,
    width: int = 640,
    below: float | None = None,
) -> np.ndarray:
    """Prediction | ground truth | where they differ, with a legend of the classes and of the errors.

    Args:
        prediction: of the truth's geometry; its classes are mapped to the truth's.
        truth: 255 is not judged.
        known: bool [X, Y, Z], what else is judged (Occ3D's mask_camera, ...): prediction and truth are drawn in
            full, errors only where it is True.
        view: of the three oblique pictures; None draws them from above.
        height: of one of the three, pixels (from above: of the voxels, enlarged by a whole number).
        width: of one of the three, pixels (from above: follows from the grid).
        below: leaves out what is higher, metres along ego z.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: grids of different geometry, or a mask of another shape.
    """
    prediction = prediction.map_to(truth.taxonomy)
    errors = error_colors(prediction, truth, known)

    def draw(grid: OccupancyGrid, colors: VoxelColors) -> np.ndarray:
        if view is not None:
            return oblique_picture(grid, view, height=height, width=width, colors=colors, below=below)
        rows = bev_picture(grid).shape[0]
        return bev_picture(grid, below=below, scale=max(1, height // rows), ego=True, colors=colors, background=PAPER)

    tiles = [
        labelled(draw(prediction, class_colors(prediction)), "prediction"),
        labelled(draw(truth, class_colors(truth)), "ground truth"),
        labelled(draw(truth, errors), "errors"),
    ]
    row = tiled([tiles], background=PAPER)
    size = max(11, row.shape[1] // 110)
    keys = [class_legend(truth.taxonomy, prediction, truth), ERROR_COLORS]
    return np.concatenate([row, *(legend(key, row.shape[1], size) for key in keys if key)])
