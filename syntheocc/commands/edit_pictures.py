"""Before and after an edit: the occupancy in 3D, the condition in the cameras, and what a model makes of both."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from syntheocc.occupancy import CameraRig
    from syntheocc.occupancy.editing import Editor
    from syntheocc.occupancy.pictures import Viewpoint

# Cells of the drawn conditions: finer than the networks' own, so that a person can read them.
_CELLS = (112, 200)
_TILE = (224, 400)
_MOST_CAMERAS = 3


def write_edit_pictures(editor: "Editor", rig: "CameraRig", folder: Path, name: str) -> list[Path]:
    """Write `<name>_3d.png` and `<name>_condition.png`.

    Args:
        editor: the frame, edited.
        rig: its cameras.
        folder: where to.
        name: first part of the file names.

    Returns:
        the files.
    """
    from syntheocc.occupancy.pictures import (
        class_legend,
        condition_pictures,
        labelled,
        oblique_picture,
        save_picture,
        tiled,
        with_legend,
    )

    view = viewpoint_of(editor)
    solid = [
        labelled(oblique_picture(grid, view, height=600, width=800), title)
        for grid, title in ((editor.original, "before"), (editor.grid, "after"))
    ]
    sheet = with_legend(tiled([solid]), class_legend(editor.grid.taxonomy, editor.grid))
    files = [save_picture(sheet, folder / f"{name}_3d.png")]
    before, after, shown = conditions(editor, rig)
    rows = {"before": condition_pictures(before), "after": condition_pictures(after)}
    files.append(_sheet(rows, rig.names, shown, folder / f"{name}_condition.png"))
    return files


def write_view_pictures(
    editor: "Editor",
    rig: "CameraRig",
    views: tuple[Sequence[Any], Sequence[Any]],
    photos: Sequence[Any],
    path: Path,
) -> Path:
    """Write the conditions before and after with the views generated from each, and the photographs.

    Args:
        editor: the frame, edited.
        rig: its cameras.
        views: generated from the grid as it was, and as it is, at one seed.
        photos: of the cameras; empty where there are none.
        path: the file.
    """
    from syntheocc.occupancy.pictures import condition_pictures

    before, after, shown = conditions(editor, rig)
    rows: dict[str, Sequence[Any]] = {
        "condition before": condition_pictures(before),
        "generated before": views[0],
        "condition after": condition_pictures(after),
        "generated after": views[1],
    }
    if photos:
        rows["photograph (before)"] = photos
    return _sheet(rows, rig.names, shown, path)


def viewpoint_of(editor: "Editor") -> "Viewpoint":
    """From behind the car, close enough for the change to be seen."""
    from syntheocc.occupancy.editing.ground import voxel_centers
    from syntheocc.occupancy.pictures import Viewpoint

    index = editor.changed.nonzero()
    if not len(index):
        return Viewpoint()
    centers = voxel_centers(editor.grid, index)
    low, high = centers.amin(0), centers.amax(0)
    x, y, z = ((low + high) / 2).tolist()
    extent = float((high - low)[:2].max())
    spread = float(max(s * n for s, n in zip(editor.grid.spec.voxel_size, editor.grid.spec.shape, strict=True)))
    return Viewpoint(zoom=min(max(spread / (extent + 22.0), 1.0), 4.0), target=(x, y, z))


def conditions(editor: "Editor", rig: "CameraRig") -> tuple[Any, Any, list[int]]:
    """The MPIs before and after, and the cameras that show most of the change, at most three, in the rig's order."""
    from syntheocc.occupancy import render_mpi

    before, after = (render_mpi(grid.to("cpu"), rig, *_CELLS) for grid in (editor.original, editor.grid))
    counts = (before.nearest != after.nearest).flatten(1).sum(1)
    most = counts.argsort(descending=True, stable=True)[:_MOST_CAMERAS].tolist()
    return before, after, sorted(i for i in most if counts[i]) or list(range(min(len(rig), _MOST_CAMERAS)))


def _sheet(rows: Mapping[str, Sequence[Any]], names: Sequence[str], shown: list[int], path: Path) -> Path:
    from syntheocc.occupancy.pictures import save_picture, strip

    chosen: dict[str, list[np.ndarray]] = {title: [row[i] for i in shown] for title, row in rows.items()}
    picture = strip(
        chosen,
        [names[i] for i in shown],
        size=_TILE,
        nearest_rows=[title for title in rows if "generated" not in title],
    )
    return save_picture(picture, path)
