"""``infer.py --edit recipe.json``: every sample's occupancy goes through a recipe before it is rendered.

A sample in which an edit cannot be made (no such object, no room) is reported as failed and the job goes on.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syntheocc.commands.generate import GenerateConfig
    from syntheocc.occupancy import OccupancyGrid
    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.occupancy.data.occ3d import Occ3DLabels
    from syntheocc.occupancy.editing import Editor, Recipe

__all__ = ["check_edit", "edited_labels", "edited_sample", "read_recipe"]


def check_edit(config: "GenerateConfig") -> None:
    """Raise ValueError where `--edit` does not go with other flags."""
    if config.edit is None:
        return
    if config.as_dataset is not None and config.occ_kind in ("mpi", "lidar"):
        raise ValueError(
            "--as_dataset writes the edited labels beside the views; give the format of those that are edited as "
            "--occ_kind=syntheocc, occ3d, ..."
        )
    if config.occ_kind == "mpi" and not config.occupancy:
        raise ValueError(
            "--edit changes occupancy, and MPI files are rendered already; give labels as --occ_kind=syntheocc, "
            "occ3d, lidar, ..."
        )
    if not Path(config.edit).is_file():
        raise ValueError(f"--edit={config.edit}: no such recipe")


def read_recipe(path: Path) -> "Recipe":
    """The recipe of a file."""
    from syntheocc.occupancy.editing import Recipe

    return Recipe.load(path)


def edited_sample(
    recipe: "Recipe", frame: "Frame", grid: "OccupancyGrid", labels: dict[str, Any]
) -> tuple["Frame", "OccupancyGrid", dict[str, Any]]:
    """A sample taken through a recipe.

    Args:
        recipe: the edits.
        frame: the sample.
        grid: its occupancy.
        labels: what `OutputFolder.write_labels` was to be given.

    Returns:
        The frame with its boxes as they are now, the edited grid, and what `write_labels` is to be given.
    """
    editor = recipe.edit(grid, frame.boxes, frame.token)
    if "kind" in labels:
        labels = {"grid": edited_labels(editor, labels["kind"], labels.get("source")), "kind": labels["kind"]}
    return dataclasses.replace(frame, boxes=editor.boxes), editor.grid, labels


def edited_labels(editor: "Editor", kind: str, source: Path | None) -> "OccupancyGrid | Occ3DLabels":
    """What to write of an edited grid: with the masks and instances of the Occ3D file that it comes from, if any."""
    from syntheocc.occupancy.data.occ3d import read_occ3d
    from syntheocc.occupancy.data.occupancy_files import preset_of
    from syntheocc.occupancy.editing.export import edited_occ3d

    if kind not in ("occ3d", "openocc_v2") or source is None:
        return editor.grid.to("cpu")
    return edited_occ3d(read_occ3d(source, preset_of(kind)), editor)
