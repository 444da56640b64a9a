"""``syntheocc infos``: nuScenes' raw tables -> info pickles of every style, so that nobody needs a downloaded one.

    syntheocc infos --dataroot-path data/nuscenes
    syntheocc infos --dataroot-path data/nuscenes --version v1.0-mini --styles bevdet --tag=-mini

What is written is listed in `<out>/infos.json`; a file that was made with the same settings of the same tables is not
made again, and one that this command did not make is not overwritten.
"""

import gc
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syntheocc.engine.flags import flag

if TYPE_CHECKING:
    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.occupancy.data.nuscenes import NuScenesTables

MANIFEST = "infos.json"
ALL_STYLES = ("mmdet3d_v1.0", "mmdet3d_v1.1", "sweep", "bevdet", "openoccupancy")


@dataclass(kw_only=True)
class InfosConfig:
    """Make info pickles (mmdetection3d 1.0 and 1.1, BEVDet, SparseOcc's sweeps, OpenOccupancy) of nuScenes' tables."""

    dataroot_path: Path = flag(Path("./data/nuscenes"), "data root, the folder that holds samples/ and v1.0-*/")
    version: str | None = flag(None, "folder of the tables, e.g. v1.0-mini; by default the only one there is")
    out: Path | None = flag(None, "folder of the pickles; by default the data root")
    styles: tuple[str, ...] = flag(ALL_STYLES, "styles to write")
    splits: tuple[str, ...] = flag((), "splits to write; by default all that the tables hold scenes of")
    split_file: Path | None = flag(
        None, 'own division of the scenes, a JSON object {"train": [scene names], ...}; by default the official lists'
    )
    tag: str = flag("", "put after 'nuscenes' in the file names, e.g. -mini")
    prefix: str = flag("", "put before file paths, which are relative to the data root, e.g. ./data/nuscenes/")
    lidar_sweeps: int = flag(10, "lidar firings before a key frame that are listed at most")
    camera_sweeps: int = flag(5, "camera firings before a key frame that the sweep style lists")
    check_files: bool = flag(False, "leave out (and report) samples whose pictures or sweep do not exist")
    overwrite: bool = flag(False, "replace pickles that this command did not make")

    def __post_init__(self):
        unknown = [style for style in self.styles if style not in ALL_STYLES]
        if unknown or not self.styles:
            raise ValueError(f"--styles are {', '.join(ALL_STYLES)}; got {', '.join(unknown) or 'none'}")
        for name in ("lidar_sweeps", "camera_sweeps"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} cannot be negative, got {getattr(self, name)}")
        if any(character in self.tag for character in "/\\"):
            raise ValueError(f"--tag is part of a file name, got {self.tag!r}")

    @property
    def folder(self) -> Path:
        """Where the pickles appear."""
        return Path(self.dataroot_path if self.out is None else self.out)

    def settings(self, style: str, tables: "NuScenesTables") -> dict[str, Any]:
        """Everything that the bytes of a pickle depend on, as JSON values."""
        names = ("prefix", "lidar_sweeps", "camera_sweeps", "check_files")
        files = sorted(tables.folder.glob("*.json"))
        stamps = {path.stem: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
        values = {name: value for name, value in asdict(self).items() if name in names}
        return {"style": style, "version": tables.folder.name, **values, "tables": stamps}


@dataclass(frozen=True)
class _Job:
    """One pickle to write."""

    split: str
    style: str
    path: Path
    settings: dict[str, Any]


def run(config: InfosConfig) -> int:
    """Write the pickles; returns the exit status (1: some samples are left out)."""
    from syntheocc.engine.files import read_json
    from syntheocc.occupancy.data.nuscenes import read_tables

    tables = read_tables(config.dataroot_path, config.version)
    scenes = _divided(config, tables)
    manifest_path = config.folder / MANIFEST
    manifest = read_json(manifest_path) if manifest_path.is_file() else {}
    jobs = _jobs(config, tables, scenes, manifest)
    waiting = [job for job in jobs if not _is_done(job, manifest)]
    failed: dict[str, str] = {}
    if waiting:
        _can_write(config.folder)
        # Python would walk through the millions of records again and again in search of cycles; there are none.
        collects = gc.isenabled()
        gc.disable()
        try:
            frames = _read(config, tables, waiting, scenes, failed)
            for job in waiting:
                _write(config, job, frames[job.split], scenes[job.split], manifest, failed)
        finally:
            if collects:
                gc.enable()
    for job in jobs:
        entry = manifest[job.path.name]
        failed |= entry["failed"]
        said = "was there already" if job not in waiting else _size(job.path)
        print(f"{job.path}: {_count(entry['samples'], 'sample')} of {_count(entry['scenes'], 'scene')}, {said}")
    for token, reason in list(failed.items())[:20]:
        print(f"  left out: {token}: {reason}")
    if len(failed) > 20:
        print(f"  ... and {len(failed) - 20} more, all named in {manifest_path}")
    return 1 if failed else 0


def _can_write(folder: Path) -> None:
    """Raise ValueError where no file can be made, before minutes go into reading."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder}: nothing can be written there ({error.strerror}); give another --out") from error


def _divided(config: InfosConfig, tables: "NuScenesTables") -> dict[str, list[str]]:
    """Split -> its scenes, those splits that are asked for."""
    from syntheocc.occupancy.data.nuscenes_splits import read_split_file, splits_of_version

    names = [str(tables.field("scene", row, "name")) for row in tables.table("scene")]
    if config.split_file is not None:
        scenes = read_split_file(config.split_file, names)
    else:
        scenes = splits_of_version(tables.folder.name, names)
    absent = [split for split in config.splits if split not in scenes]
    if absent:
        raise ValueError(
            f"{tables.folder}: no scene of split {', '.join(absent)}; it has {', '.join(scenes) or 'none'}"
        )
    return {split: members for split, members in scenes.items() if not config.splits or split in config.splits}


def _jobs(
    config: InfosConfig, tables: "NuScenesTables", scenes: dict[str, list[str]], manifest: dict[str, Any]
) -> list[_Job]:
    """The pickles in the order in which they are written; ValueError before anything is overwritten."""
    from syntheocc.occupancy.data.split_infos import info_file

    jobs = [
        _Job(
            split,
            style,
            config.folder / info_file(style, split, config.tag),
            {**config.settings(style, tables), "split": split, "scenes": scenes[split]},
        )
        for split in scenes
        for style in config.styles
    ]
    foreign = [job.path.name for job in jobs if job.path.is_file() and job.path.name not in manifest]
    if foreign and not config.overwrite:
        raise ValueError(
            f"{config.folder} has {', '.join(foreign)}, which this command did not make; give another --out or a "
            "--tag, or --overwrite to replace them"
        )
    return jobs


def _is_done(job: _Job, manifest: dict[str, Any]) -> bool:
    return job.path.is_file() and manifest.get(job.path.name, {}).get("settings") == job.settings


def _read(
    config: InfosConfig,
    tables: "NuScenesTables",
    waiting: list[_Job],
    scenes: dict[str, list[str]],
    failed: dict[str, str],
) -> dict[str, list["Frame"]]:
    """Split -> its key frames, in the tables' order."""
    from syntheocc.occupancy.cameras import NUSCENES_CAMERAS
    from syntheocc.occupancy.data.infos_from_tables import frames_for_infos
    from syntheocc.occupancy.data.table_stream import LeanTables

    styles = {job.style for job in waiting}
    counts = {
        "lidar": config.lidar_sweeps if styles - {"sweep"} else 0,
        "camera": config.camera_sweeps if "sweep" in styles else 0,
    }
    lean = LeanTables(
        tables.folder,
        tables.root,
        channels=("LIDAR_TOP", *NUSCENES_CAMERAS),
        key_frames_only=[
            *(() if counts["lidar"] else ("LIDAR_TOP",)),
            *(() if counts["camera"] else NUSCENES_CAMERAS),
        ],
        progress=_rows_bar,
    )
    split_of = {name: split for split in {job.split for job in waiting} for name in scenes[split]}
    frames = frames_for_infos(lean, split_of, counts, failed, config.check_files, _bar("reading samples"))
    lean.release()
    return frames


def _write(
    config: InfosConfig,
    job: _Job,
    frames: list["Frame"],
    scenes: list[str],
    manifest: dict[str, Any],
    failed: dict[str, str],
) -> None:
    from syntheocc.engine.files import atomic_write_json
    from syntheocc.occupancy.data.infos_writing import write_infos
    from syntheocc.occupancy.data.split_infos import with_label_path

    chosen = [with_label_path(frame, job.style, index) for index, frame in enumerate(frames)]
    version = job.settings["version"]
    write_infos(job.path, chosen, job.style, config.dataroot_path, version, config.prefix, _bar(job.path.name))
    manifest[job.path.name] = {
        "settings": job.settings,
        "samples": len(frames),
        "scenes": len(scenes),
        "failed": failed,
    }
    atomic_write_json(config.folder / MANIFEST, manifest)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _rows_bar(table: str, rows: Iterator[dict]) -> Iterator[dict]:
    from tqdm import tqdm

    return iter(tqdm(rows, desc=f"{table}.json", unit="row", unit_scale=True))


def _bar(description: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    from tqdm import tqdm

    return lambda items: tqdm(items, desc=description, unit="sample")
