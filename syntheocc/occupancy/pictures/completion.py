"""Scene completion as its papers print it: what the camera sees in full colour, the rest darker, beside the truth.

Legend: X Y Z voxels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from syntheocc.occupancy.pictures.basics import BACKGROUND, as_picture, resized, to_array
from syntheocc.occupancy.pictures.colors import VoxelColors, class_colors
from syntheocc.occupancy.pictures.mesh_view import mesh_picture
from syntheocc.occupancy.pictures.oblique import PAPER, oblique_picture
from syntheocc.occupancy.pictures.sheets import class_legend, labelled, tiled, with_legend
from syntheocc.occupancy.pictures.viewpoint import Viewpoint
from syntheocc.occupancy.pictures.wires import camera_wires, seen_by
from syntheocc.occupancy.taxonomy import UNKNOWN

if TYPE_CHECKING:
    from syntheocc.occupancy.cameras import CameraRig
    from syntheocc.occupancy.grids import OccupancyGrid

__all__ = ["STREET_VIEW", "completion_colors", "completion_sheet"]

# Behind and above the car, as MonoScene's figures look.
STREET_VIEW = Viewpoint(azimuth_deg=200.0, elevation_deg=32.0)
# How far the camera's pyramid reaches, metres, in streets and in rooms.
_PYRAMID = {"world": 0.75, "camera": 0.75}
_STREET_PYRAMID = 7.0
# How far the view of a room is turned from the camera's own, degrees.
_ASIDE = 20.0


def completion_colors(grid: OccupancyGrid, seen: Any = None, known: Any = None) -> VoxelColors:
    """Classes in their colours, those that no camera sees at two thirds of it.

    Args:
        grid: a prediction, or the truth: unknown voxels (invalid ones, in SemanticKITTI) are not drawn.
        seen: bool [X, Y, Z], what lies in a camera's picture (`seen_by`); None: everything.
        known: bool [X, Y, Z], what is drawn at all, e.g. where the truth is known (usual for rooms); None: everything.

    Raises:
        ValueError: a mask of another shape.
    """
    shown = class_colors(grid)
    drawn, colors = shown
    for name, mask in (("seen", seen), ("known", known)):
        if mask is not None and to_array(mask).shape != drawn.shape:
            raise ValueError(f"{name} must be {drawn.shape} (X, Y, Z) as the grid, got {to_array(mask).shape}")
    if known is not None:
        drawn = drawn & to_array(known).astype(bool)
    if seen is not None:
        colors = np.where(to_array(seen).astype(bool)[..., None], colors, colors // 3 * 2)
    return VoxelColors(drawn, colors)


def completion_sheet(
    photos: Mapping[str, Any],
    prediction: OccupancyGrid,
    truth: OccupancyGrid | None = None,
    rig: CameraRig | None = None,
    view: Viewpoint | None = None,
    *,
    mesh: bool = True,
    hide_unknown: bool | None = None,
    width: int = 1440,
    smooth: int = 6,
) -> np.ndarray:
    """The pictures, and below them prediction and truth as voxels and as a skin, with the cameras and a legend.

    Args:
        photos: name -> picture, as the model saw them; side by side in the first row. May be empty.
        prediction: of a model.
        truth: of the same geometry; None where there is none.
        rig: the cameras: their pyramids are drawn, and what lies outside of their pictures is darker.
        view: from where; None: from behind the car, or of rooms and offices from behind the first camera.
        mesh: also draw the skins.
        hide_unknown: leave out predictions where the truth is unknown; None: only of rooms, as their papers do.
        width: of the sheet, pixels.
        smooth: rounds of relaxation of the skins.

    Returns:
        uint8 [H, width, 3].

    Raises:
        ValueError: grids of different geometry.
    """
    frame = prediction.spec.frame
    if truth is not None and truth.spec != prediction.spec:
        raise ValueError(f"a prediction is compared on the truth's grid, got {prediction.spec} and {truth.spec}")
    grids = {"prediction": prediction} | ({} if truth is None else {"ground truth": truth})
    view = view or _view_of(frame, rig)
    hide = frame == "world" if hide_unknown is None else hide_unknown
    known = None if truth is None or not hide else to_array(truth.labels) != UNKNOWN
    seen = None if rig is None else seen_by(prediction, rig)
    wires = None if rig is None else camera_wires(rig, _PYRAMID.get(frame, _STREET_PYRAMID))
    columns = len(grids) if truth is not None or not mesh else 2
    each = (width - 4 * (columns - 1)) // columns
    size: dict[str, Any] = {"height": round(each * 0.68), "width": each}
    colors = {name: completion_colors(grid, seen, known) for name, grid in grids.items()}

    def voxels(name: str) -> np.ndarray:
        return labelled(oblique_picture(grids[name], view, colors=colors[name], ego=False, wires=wires, **size), name)

    def skin(name: str) -> np.ndarray:
        picture = mesh_picture(grids[name], view, colors=colors[name], smooth=smooth, wires=wires, **size)
        return labelled(picture, f"{name}, mesh")

    rows = [[voxels(name) for name in grids]]
    if mesh:
        skins = [skin(name) for name in grids]
        rows = [*rows, skins] if truth is not None else [[*rows[0], *skins]]
    parts = [] if not photos else [_in_a_row(photos, width)]
    parts += [_wide(tiled(rows, background=PAPER), width, PAPER)]
    legend = class_legend(prediction.taxonomy)  # of all classes: sheets of a drive are of one size
    return with_legend(np.concatenate(parts), legend, size=max(11, width // 100))


def _view_of(frame: str, rig: CameraRig | None) -> Viewpoint:
    """The usual view of grids of a frame of reference."""
    if frame not in _PYRAMID or rig is None:
        return STREET_VIEW
    ahead = next(iter(rig.values())).cam2ego[:3, 2]
    behind = math.degrees(math.atan2(-float(ahead[1]), -float(ahead[0])))
    return Viewpoint(behind + _ASIDE, STREET_VIEW.elevation_deg)


def _in_a_row(photos: Mapping[str, Any], width: int, gap: int = 4) -> np.ndarray:
    """Pictures of one height side by side, as wide as the sheet; one alone keeps to half of it, in the middle."""
    pictures = {name: as_picture(photo) for name, photo in photos.items()}
    share = (width - gap * (len(pictures) - 1)) // max(2, len(pictures))
    first = next(iter(pictures.values()))
    height = round(share * first.shape[0] / first.shape[1])
    row = tiled([[labelled(resized(p, height, share), name) for name, p in pictures.items()]], gap)
    return _wide(row, width, BACKGROUND)


def _wide(picture: np.ndarray, width: int, background: tuple[int, int, int]) -> np.ndarray:
    """The picture in the middle of one of that width."""
    out = np.empty((picture.shape[0], width, 3), np.uint8)
    out[:] = background
    left = (width - picture.shape[1]) // 2
    out[:, left : left + picture.shape[1]] = picture
    return out
