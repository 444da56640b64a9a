"""What ``syntheocc edit`` does with one frame and one recipe, and where its frames come from."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syntheocc.commands.edit_pictures import write_edit_pictures, write_view_pictures
from syntheocc.commands.edit_sample import edited_labels
from syntheocc.commands.outputs import OutputFolder
from syntheocc.engine.files import atomic_write_json

if TYPE_CHECKING:
    from syntheocc.commands.batch import Tally
    from syntheocc.occupancy import OccupancyGrid
    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.occupancy.data.nuscenes import NuScenesTables
    from syntheocc.occupancy.editing import Editor, Recipe

STREET = "street"
_KEPT_FRAMES = 100


class Views:
    """Generates the views of a frame before and after an edit, from the same noise.

    Args:
        draw: grid, frame -> one picture a camera.
    """

    def __init__(self, draw: Callable[["OccupancyGrid", "Frame"], Sequence[Any]]):
        self._draw = draw
        self._before: dict[str, Sequence[Any]] = {}

    def __call__(self, editor: "Editor", frame: "Frame") -> tuple[Sequence[Any], Sequence[Any]]:
        """Pictures before and after; those before are kept for the next recipe."""
        if frame.token not in self._before:
            if len(self._before) >= _KEPT_FRAMES:
                self._before.pop(next(iter(self._before)))
            self._before[frame.token] = self._draw(editor.original, frame)
        return self._before[frame.token], self._draw(editor.grid, frame)


@dataclass(frozen=True)
class Source:
    """Frames and their occupancy.

    Args:
        frames: the frames.
        unreadable: token -> reason of those that are damaged.
        grid_of: reads a frame's occupancy.
        kind: format of the labels; None: the grid is written as a `.npz` that says everything about itself.
        label_of: the file that a grid is read from; None where there is none.
    """

    frames: list["Frame"]
    unreadable: dict[str, str]
    grid_of: Callable[["Frame"], "OccupancyGrid"]
    kind: str | None
    label_of: Callable[["Frame"], Path | None]

    def editor(self, frame: "Frame") -> "Editor":
        """A frame, loaded."""
        from syntheocc.occupancy.editing import Editor

        return Editor(self.grid_of(frame), frame.boxes, frame.token)


def street_source(seed: int = 0) -> Source:
    """The embedded street."""
    import torch

    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.worlds.street import LIDAR2EGO, example_street

    street = example_street(seed)
    frame = Frame(
        token=STREET,
        scene=STREET,
        timestamp_us=0,
        cameras=street.rig,
        image_paths={name: Path(f"{STREET}.jpg") for name in street.rig.names},
        lidar_path=Path(f"{STREET}.pcd.bin"),
        lidar2ego=torch.from_numpy(LIDAR2EGO),
        ego2global=torch.eye(4, dtype=torch.float64),
        boxes=street.boxes,
    )
    return Source([frame], {}, lambda _: street.grid, "syntheocc", lambda _: None)


def file_source(path: Path, kind: str) -> Source:
    """One label file without a data set: no boxes, and nuScenes' nominal cameras for the pictures."""
    import torch

    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.occupancy.data.grid_files import read_grid_file
    from syntheocc.occupancy.data.occupancy_files import OCCUPANCY_KINDS, read_occupancy
    from syntheocc.worlds.street import LIDAR2EGO, nominal_rig

    own = kind not in OCCUPANCY_KINDS
    rig, lidar2ego = nominal_rig(), torch.from_numpy(LIDAR2EGO)
    token = path.stem if path.stem != "labels" else path.resolve().parent.name
    frame = Frame(
        token=token,
        scene="file",
        timestamp_us=0,
        cameras=rig,
        image_paths={name: Path(f"{token}.jpg") for name in rig.names},
        lidar_path=Path(f"{token}.pcd.bin"),
        lidar2ego=lidar2ego,
    )
    read = (lambda _: read_grid_file(path)) if own else (lambda _: read_occupancy(path, kind, lidar2ego))
    return Source([frame], {}, read, None if own else kind, lambda _: path)


class EditFolder(OutputFolder):
    """The results of one recipe: a folder of `OutputFolder`'s layout without views, and pictures beside."""

    def write_edited(self, editor: "Editor", frame: "Frame", kind: str | None, source: Path | None) -> list[str]:
        """Write the labels of an edited frame.

        Args:
            editor: the frame, edited.
            frame: its frame with the boxes as they are now.
            kind: the labels' format; None: a `.npz` grid file.
            source: the file that the grid was read from.

        Returns:
            The paths below the root: the labels in their own format and in Occ3D's, and the boxes.
        """
        from syntheocc.occupancy.data.grid_files import write_grid_file
        from syntheocc.occupancy.data.occ3d import Occ3DLabels, write_occ3d
        from syntheocc.occupancy.data.occupancy_files import occupancy_path
        from syntheocc.occupancy.editing.export import resampled
        from syntheocc.occupancy.grids import OCC3D_NUSCENES

        grid = editor.grid.to("cpu")
        if kind is not None:
            paths = self.write_labels(frame, grid=edited_labels(editor, kind, source), kind=kind)
        else:
            path = self.root / "labels" / "grid" / f"{frame.token}.npz"
            write_grid_file(grid, path)
            paths = [str(path.relative_to(self.root)), *self.write_labels(frame)]
        if kind not in ("occ3d", "semantic_kitti", None):
            # Occ3D sorts by scene, which some info files do not name.
            named = frame if frame.scene else dataclasses.replace(frame, scene="unnamed")
            path = occupancy_path(self.root / "labels" / "occ3d", named, "occ3d")
            coarse, known = resampled(grid, OCC3D_NUSCENES)
            write_occ3d(Occ3DLabels(coarse, known, known), path)
            paths.append(str(path.relative_to(self.root)))
        return paths


def make_edit(
    source: Source, recipe: "Recipe", outputs: EditFolder, pictures: bool, views: Views | None
) -> Callable[["Frame"], None]:
    """The work on one frame: load, edit, write labels, boxes and pictures; a ValueError leaves it undone."""

    def make(frame: "Frame") -> None:
        loaded = source.editor(frame)
        editor = recipe.edit(loaded.grid, loaded.boxes, frame.token)
        edited = dataclasses.replace(frame, boxes=editor.boxes)
        files = outputs.write_edited(editor, edited, source.kind, source.label_of(frame))
        drawn = []
        if pictures:
            drawn += write_edit_pictures(editor, frame.cameras, outputs.root / "pictures", frame.token)
        if views is not None:
            from syntheocc.commands.outputs import read_photos

            photos = [] if frame.missing_files() else read_photos(frame)
            path = outputs.root / "pictures" / f"{frame.token}_views.png"
            drawn.append(write_view_pictures(editor, frame.cameras, views(editor, frame), photos, path))
        before, after = (() if boxes is None else boxes.names for boxes in (frame.boxes, editor.boxes))
        record = {
            "token": frame.token,
            "scene": frame.scene,
            "recipe": recipe.to_json(),
            "changed_voxels": int(editor.changed.sum()),
            "boxes_before": len(before),
            "boxes_after": len(after),
            "inserted": list(editor.inserted),
            "files": [*files, *(str(path.relative_to(outputs.root)) for path in drawn)],
        }
        outputs.write_record(frame, record)

    return make


def finish_recipe(
    outputs: EditFolder, frames: Sequence["Frame"], tally: "Tally", tables: "NuScenesTables | None"
) -> list[str]:
    """Write what belongs to all frames of a recipe: info pickles and nuScenes tables with the boxes as they are now.

    Args:
        outputs: the recipe's folder.
        frames: all frames of the job; those that failed are left out.
        tally: what became of them.
        tables: the nuScenes tables that hold the frames, None where there are none.

    Returns:
        What was written, in words.
    """
    from syntheocc.occupancy.data.infos_writing import write_infos
    from syntheocc.occupancy.data.nuscenes import write_tables
    from syntheocc.occupancy.data.nuscenes_subset import subset_tables
    from syntheocc.occupancy.editing.export import annotation_rows

    made = [
        dataclasses.replace(frame, boxes=_boxes_of(outputs, frame))
        for frame in frames
        if frame.token not in tally.failed
    ]
    placed = [frame for frame in made if frame.lidar2ego is not None and frame.ego2global is not None]
    written = []
    if placed:
        for style, name in (("mmdet3d_v1.0", "infos.pkl"), ("mmdet3d_v1.1", "infos_v1.1.pkl")):
            write_infos(outputs.root / name, placed, style)
            written.append(name)
        rows = {frame.token: annotation_rows(frame) for frame in placed if frame.boxes is not None}
        if tables is not None:
            rows = {token: [as_annotated(tables, row) for row in own] for token, own in rows.items()}
        if tables is not None and rows:
            folder = outputs.root / tables.folder.name
            write_tables(folder, subset_tables(tables, {frame.token for frame in placed}, annotations=rows))
            written.append(f"{folder.name}/")
        elif rows:
            atomic_write_json(outputs.root / "sample_annotation.json", [row for own in rows.values() for row in own])
            written.append("sample_annotation.json")
    return written


def as_annotated(tables: "NuScenesTables", row: dict[str, Any]) -> dict[str, Any]:
    """The original's row of an object that stands where it stood; else the new one with the original's attribute."""
    of = {one["instance_token"]: one for one in tables.annotations.get(row["sample_token"], [])}
    original = of.get(row["instance_token"])
    if original is None:
        return row
    if max(abs(a - b) for key in ("translation", "size") for a, b in zip(row[key], original[key], strict=True)) < 1e-5:
        turn = abs(sum(a * b for a, b in zip(row["rotation"], original["rotation"], strict=True)))
        if turn > 1 - 1e-9:
            return dict(original)
    return row | {key: original[key] for key in ("token", "attribute_tokens", "visibility_token") if key in original}


def _boxes_of(outputs: EditFolder, frame: "Frame") -> Any:
    """The boxes that a frame's record was written with."""
    import torch

    from syntheocc.engine.files import read_json
    from syntheocc.occupancy.data.frames import Boxes

    listed = read_json(outputs.root / "labels" / f"{frame.token}.json")["boxes"]
    if listed is None:
        return None
    nan = float("nan")
    return Boxes(
        torch.tensor([box["box2ego"] for box in listed], dtype=torch.float64),
        torch.tensor([box["size_lwh"] for box in listed], dtype=torch.float64),
        tuple(box["name"] for box in listed),
        torch.tensor([[nan if v is None else v for v in box["velocity"]] for box in listed], dtype=torch.float64),
        torch.tensor([box["num_lidar_points"] for box in listed]),
        tuple(box["instance_token"] for box in listed),
        # Folders made by an earlier version lack the next two.
        torch.tensor([box.get("num_radar_points", -1) for box in listed]),
        tuple(box.get("attribute", "") for box in listed),
    )
