"""``syntheocc generate --as_dataset OUT``: a data root like the original whose key frames' pictures are generated.

<OUT>/samples/<CAM>/...          generated views under the originals' names, in the originals' size
<OUT>/samples/LIDAR_TOP, sweeps, lidarseg, panoptic, maps, label folders    as in the original: links to it, or copies
<OUT>/v1.0-*                     the tables, cut down to the samples that were generated
<OUT>/*infos_<split>*.pkl        info pickles of every style
<OUT>/generated/manifest.jsonl   one line a sample: seed, prompt, condition, recipe, weights, version
<OUT>/generated/records/         the same as the job goes: what is there is not made again
<OUT>/generated/settings.json, failed.json

The cameras' firings between the key frames are left out, for nobody generated them. Nothing here depends on the number
of processes or on how often the job was stopped: the same command gives the same bytes.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from syntheocc.commands.outputs import OutputFolder
from syntheocc.engine.files import atomic_path, atomic_write_json, atomic_write_text, read_json
from syntheocc.occupancy.data.generated import NOTES, manifest_path

if TYPE_CHECKING:
    from syntheocc.commands.batch import Tally
    from syntheocc.occupancy import OccupancyGrid
    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.occupancy.data.nuscenes import NuScenesTables
    from syntheocc.occupancy.data.occ3d import Occ3DLabels
    from syntheocc.occupancy.editing import Recipe

# Tables beside nuScenes' thirteen, of files that belong to a lidar sweep.
_LIDAR_TABLES = ("lidarseg", "panoptic")


class DatasetFolder(OutputFolder):
    """A generated data root.

    Args:
        root: the folder that is written.
        source: the original data root.
        unchanged: what is made of files that stay as they are.

    Raises:
        ValueError: root and source are one folder.
    """

    def __init__(self, root: str | Path, source: str | Path, unchanged: Literal["link", "copy"] = "link"):
        super().__init__(root)
        self.source, self.unchanged = Path(source), unchanged
        if self.root.resolve() == self.source.resolve():
            raise ValueError(f"--as_dataset={root} is the data root itself; give another folder")

    def view_path(self, frame: "Frame", camera: str) -> Path:
        """Where a generated view goes: the original's place below the data root."""
        named = super().view_path(frame, camera)
        return self.root / self.place(frame.image_paths[camera], Path("samples") / camera / named.name)

    def record_path(self, frame: "Frame") -> Path:
        """The file that marks a sample as done."""
        return self.root / NOTES / "records" / f"{frame.token}.json"

    def place(self, path: Path, otherwise: Path) -> Path:
        """A file's path below the data root; `otherwise` for one that lies elsewhere."""
        return path.relative_to(self.source) if path.is_relative_to(self.source) else otherwise

    def keep(self, path: Path, place: Path) -> str:
        """Link or copy a file of the original to a place below the root, and say where; what is there stays."""
        target = self.root / place
        if not target.is_file():
            with atomic_path(target) as temporary:
                if self.unchanged == "link":
                    temporary.symlink_to(path.resolve())
                else:
                    # Blocks, not the whole file: a copied sweep or map may be large.
                    with open(path, "rb") as source, open(temporary, "wb") as copy:
                        while block := source.read(1 << 20):
                            copy.write(block)
        return str(place)

    def write_labels(
        self,
        frame: "Frame",
        grid: "OccupancyGrid | Occ3DLabels | None" = None,
        kind: str | None = None,
        source: Path | None = None,
    ) -> list[str]:
        """Bring every label file of the sample that the original has; see `OutputFolder.write_labels`.

        Args:
            frame: the sample.
            grid: unused: nothing was changed, so the original's files are true of the generated views.
            kind: the format of `source`.
            source: the file that the condition was read from.
        """
        found = {path: place for path, place, _ in label_files(self.source, frame) if path.is_file()}
        if source is not None and source not in found and kind is not None:
            if label_place(frame, kind) in found.values():
                # Made from other labels than the original's (edited ones): those alone are true of the views.
                found = {}
            found[source] = label_place(frame, kind)
        return [self.keep(path, place) for path, place in found.items()]

    def write_edited(self, recipe: "Recipe", frame: "Frame", kind: str, source: Path | None) -> list[str]:
        """Write the labels of a sample in every format in which a recipe's edits can be made, and its annotations.

        Labels in which they cannot (a grid too coarse for a cone) are left out: the original's would be untrue.

        Args:
            recipe: the edits.
            frame: the sample as the original has it.
            kind: the format that the condition was read in.
            source: its file.

        Returns:
            The paths below the root.

        Raises:
            ValueError: the edits cannot be made in the condition's own format.
        """
        from syntheocc.commands.edit_sample import edited_labels
        from syntheocc.occupancy.data.occ3d import Occ3DLabels, write_occ3d
        from syntheocc.occupancy.data.occupancy_files import read_occupancy, write_occupancy
        from syntheocc.occupancy.editing.export import annotation_rows

        found = {path: (place, name) for path, place, name in label_files(self.source, frame) if path.is_file()}
        if source is not None:
            found[source] = found.get(source, (label_place(frame, kind), kind))[0], kind
        written, boxes = [], frame.boxes
        for path, (place, name) in found.items():
            try:
                editor = recipe.edit(read_occupancy(path, name, frame.lidar2ego), frame.boxes, frame.token)
                labels = edited_labels(editor, name, path)
            except ValueError:
                if path == source:
                    raise
                continue
            if isinstance(labels, Occ3DLabels):
                write_occ3d(labels, self.root / place)
            else:
                write_occupancy(labels, self.root / place, name)
            written.append(str(place))
            boxes = editor.boxes if path == source else boxes
        if boxes is not None and frame.ego2global is not None:
            path = self.annotations_path(frame)
            atomic_write_json(path, annotation_rows(replace(frame, boxes=boxes)))
            written.append(str(path.relative_to(self.root)))
        return written

    def annotations_path(self, frame: "Frame") -> Path:
        """The annotation rows of an edited sample."""
        return self.root / NOTES / "annotations" / f"{frame.token}.json"


def label_place(frame: "Frame", kind: str) -> Path:
    """Where a sample's label file of a format lies below a data root that holds everything itself."""
    from syntheocc.occupancy.data.occupancy_files import occupancy_path
    from syntheocc.occupancy.data.samples import LABEL_FOLDERS

    return occupancy_path(Path(LABEL_FOLDERS[kind]), frame, kind)


def label_files(root: Path, frame: "Frame") -> Iterable[tuple[Path, Path, str]]:
    """(file, place below a generated root, format) of the labels that a sample may have, in every format."""
    from syntheocc.occupancy.data.occupancy_files import occupancy_path
    from syntheocc.occupancy.data.samples import LABEL_FOLDERS, usual_label_root

    for kind in LABEL_FOLDERS:
        try:
            place = label_place(frame, kind)
        except ValueError:  # a source without scene names has no files that are sorted by them
            continue
        yield occupancy_path(usual_label_root(root, kind), frame, kind), place, kind  # type: ignore[arg-type]
    # SparseOcc's copies with object ids, beside Occ3D's.
    for kind in ("occ3d", "openocc_v2"):
        if frame.scene:
            place = occupancy_path(Path(f"{kind}_panoptic"), frame, kind)
            yield root / place, place, kind


def finish_dataset(
    outputs: DatasetFolder,
    splits: Mapping[str, Sequence["Frame"]],
    tables: "NuScenesTables | None",
    settings: Mapping[str, Any],
    tally: "Tally",
) -> Path:
    """Write tables, infos and manifest of the samples that did not fail, and bring what they need beside.

    Args:
        outputs: the data root.
        splits: name -> its frames, as the original has them.
        tables: of the original; None: they are written from the frames.
        settings: what all samples were made with.
        tally: which of them failed.

    Returns:
        the manifest.

    Raises:
        ValueError: no sample is left, or a table that does not fit.
    """
    from syntheocc.occupancy.data.nuscenes_frames import read_nuscenes, write_nuscenes

    frames = [frame for members in splits.values() for frame in members if frame.token not in tally.failed]
    if not frames:
        token, reason = next(iter(tally.failed.items()))
        raise ValueError(f"{outputs.root}: no sample could be generated; {token}: {reason}")
    if tables is None:
        version = "v1.0-trainval"
        write_nuscenes(outputs.root, version, [_placed(outputs, frame) for frame in frames])
    else:
        version = tables.folder.name
        _write_tables(outputs, tables, frames)
    for frame in frames:
        if frame.lidar_path is not None and frame.lidar_path.is_file():
            outputs.keep(frame.lidar_path, _lidar_place(outputs, frame))
    written = {frame.token: frame for frame in read_nuscenes(outputs.root, version)}
    for split, members in splits.items():
        own = [_with_sweeps(written[f.token], f) for f in members if f.token in written]
        if own:
            _write_infos(outputs.root, split, own, version)
    return _write_manifest(outputs, frames, settings, tally)


def _write_tables(outputs: DatasetFolder, tables: "NuScenesTables", frames: Sequence["Frame"]) -> None:
    """Cut the tables down to the samples, and bring the files that they name."""
    from syntheocc.commands.edit_work import as_annotated
    from syntheocc.occupancy.data.nuscenes import write_tables
    from syntheocc.occupancy.data.nuscenes_subset import subset_tables

    edited = {
        frame.token: [as_annotated(tables, row) for row in read_json(outputs.annotations_path(frame))]
        for frame in frames
        if outputs.annotations_path(frame).is_file()
    }
    rows = subset_tables(tables, {frame.token for frame in frames}, annotations=edited)
    folder = outputs.root / tables.folder.name
    write_tables(folder, rows)
    kept = {row["token"] for row in rows["sample_data"]}
    named = [row["filename"] for name in ("sample_data", "map") for row in rows[name]]
    for name in _LIDAR_TABLES:
        if tables.has(name):
            own = [row for row in tables.table(name) if row["sample_data_token"] in kept]
            atomic_write_json(folder / f"{name}.json", own, indent=0)
            named += [row["filename"] for row in own]
    # Lanes, base maps and what else lies beside the semantic priors.
    maps = outputs.source / "maps"
    if maps.is_dir() and any(row.get("filename") for row in rows["map"]):
        named += [path.relative_to(outputs.source).as_posix() for path in sorted(maps.glob("*/**/*"))]
    for name in dict.fromkeys(named):
        path = outputs.source / name
        if path.is_file() and not (outputs.root / name).is_file():
            outputs.keep(path, Path(name))


def _lidar_place(outputs: DatasetFolder, frame: "Frame") -> Path:
    assert frame.lidar_path is not None
    return outputs.place(frame.lidar_path, Path("samples/LIDAR_TOP") / frame.lidar_path.name)


def _placed(outputs: DatasetFolder, frame: "Frame") -> "Frame":
    """The frame with the paths that its files have below the generated root."""
    images = {name: outputs.view_path(frame, name) for name in frame.image_paths}
    lidar = None if frame.lidar_path is None else outputs.root / _lidar_place(outputs, frame)
    return replace(frame, image_paths=images, lidar_path=lidar)


def _with_sweeps(frame: "Frame", original: "Frame") -> "Frame":
    """The frame with the lidar sweeps that the original's infos list; camera sweeps are the original's photographs."""
    sweeps = [sweep for sweep in original.extras.get("sweeps") or () if _of_lidar(sweep)]
    return replace(frame, extras={**frame.extras, "sweeps": sweeps})


def _of_lidar(sweep: Any) -> bool:
    """Whether a listed sweep is the lidar's: mmdetection3d's are dicts with a path, SparseOcc's name cameras."""
    return isinstance(sweep, Mapping) and "data_path" in sweep


def _write_infos(root: Path, split: str, frames: Sequence["Frame"], version: str) -> None:
    from syntheocc.occupancy.data.split_infos import write_split_infos

    write_split_infos(root, split, frames, version)


def _write_manifest(
    outputs: DatasetFolder, frames: Sequence["Frame"], settings: Mapping[str, Any], tally: "Tally"
) -> Path:
    """One JSON line a sample, in the job's order, and beside it what failed."""
    lines = [json.dumps(read_json(outputs.record_path(frame)), allow_nan=False) for frame in frames]
    path = manifest_path(outputs.root)
    atomic_write_json(outputs.root / NOTES / "failed.json", dict(tally.failed))
    atomic_write_text(path, "\n".join(lines) + "\n")
    return path


def recipe_note(recipe: "Recipe | None") -> dict[str, str] | None:
    """What the manifest says of a recipe: its name, and the SHA-256 of its document (whole in settings.json)."""
    if recipe is None:
        return None
    document = json.dumps(recipe.to_json(), sort_keys=True)
    return {"name": recipe.name, "sha256": hashlib.sha256(document.encode()).hexdigest()}


def weights_digest(model: str) -> str | None:
    """SHA-256 over all files of a model folder, names included; None for what is no folder (a hub id)."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in _WEIGHTS):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


_WEIGHTS = (".safetensors", ".bin", ".json", ".txt")


@cache
def code_version() -> dict[str, str | None]:
    """The package's version, and the commit of its checkout where it is one."""
    import syntheocc

    commit = os.environ.get("SYNTHEOCC_COMMIT")
    try:
        place = Path(syntheocc.__file__).parent
        run = subprocess.run(["git", "rev-parse", "HEAD"], cwd=place, capture_output=True, text=True)
        commit = run.stdout.strip() if run.returncode == 0 else commit
    except OSError:  # no git here
        pass
    return {"version": syntheocc.__version__, "commit": commit}
