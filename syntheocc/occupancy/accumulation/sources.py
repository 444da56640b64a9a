"""Which frames, sweeps and classes a build job has: from the tables, or from infos, or both.

The tables list every sweep and name objects over time. Infos know the boxes and the key sweeps, mmdetection3d 1.0's
also up to ten sweeps before each; where tables lie beside them, the sweeps come from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from syntheocc.occupancy.accumulation.point_classes import FileClasses, PointClasses, RuleClasses
from syntheocc.occupancy.cameras import NUSCENES_CAMERAS
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.infos import read_infos
from syntheocc.occupancy.data.lidar_sweeps import LIDAR, SweepFile, sweeps_of_frames, sweeps_of_tables
from syntheocc.occupancy.data.lidarseg import LIDARSEG_NAMES, NOISE_AND_EGO, LidarReader, lidarseg_names
from syntheocc.occupancy.data.nuscenes import NuScenesTables, read_tables
from syntheocc.occupancy.data.nuscenes_frames import frames_from_tables
from syntheocc.occupancy.data.table_stream import LeanTables
from syntheocc.occupancy.taxonomy import OCC3D_TAXONOMY

__all__ = ["ClassSource", "SceneFiles", "class_source", "point_classes", "read_sources"]

ClassSource = Literal["auto", "lidarseg", "panoptic", "rules"]
# Key frames without a scene's name belong together while no more than this passes between them.
_SCENE_BREAK_US = 2_000_000


@dataclass(frozen=True, eq=False)
class SceneFiles:
    """A scene's key frames and sweeps, both in time order."""

    name: str
    frames: Sequence[Frame]
    sweeps: Sequence[SweepFile]


def read_sources(
    root: Path,
    version: str | None = None,
    info_paths: Sequence[str | Path] = (),
    scenes: Sequence[str] = (),
    cameras: Sequence[str] = NUSCENES_CAMERAS,
) -> tuple[list[SceneFiles], dict[str, str], NuScenesTables | None]:
    """The scenes of a data root.

    Args:
        root: the data root.
        version: the tables' folder; see `read_tables`.
        info_paths: info pickles; without any the frames come from the tables.
        scenes: names of the scenes to keep; all when left out.
        cameras: that every frame of the tables must have.

    Returns:
        The scenes in time order; token -> reason of the samples that are damaged; the tables, if there are any.

    Raises:
        ValueError: neither infos nor tables, a file that cannot be read, a scene that there is not, or no sample.
    """
    unreadable: dict[str, str] = {}
    try:
        found = read_tables(root, version)
    except ValueError:
        if not info_paths or version is not None:
            raise
        found = None
    tables = None if found is None else LeanTables(found.folder, found.root, (LIDAR, *cameras), tuple(cameras))
    if info_paths:
        listed = {f.token: f for path in info_paths for f in read_infos(path, root, unreadable=unreadable)}
        frames = list(listed.values())
    else:
        assert tables is not None
        frames = frames_from_tables(tables, cameras=cameras, unreadable=unreadable)
    swept = {} if tables is None else sweeps_of_tables(tables)
    if tables is not None and info_paths:
        frames = [_completed(frame, tables) for frame in frames]
    groups = _by_scene(frames)
    if scenes:
        unknown = sorted(set(scenes) - {group[0].scene for group in groups})
        if unknown:
            known = ", ".join(sorted({group[0].scene for group in groups})[:10])
            raise ValueError(f"{root}: no scene is named {', '.join(unknown)}; there are {known}, ...")
        groups = [group for group in groups if group[0].scene in scenes]
    if not groups:
        reasons = "".join(f"; {reason}" for reason in list(unreadable.values())[:3])
        raise ValueError(f"{', '.join(map(str, info_paths)) or root}: no samples in it{reasons}")
    made = []
    for group in groups:
        sweeps = swept.get(group[0].extras.get("scene_token", "")) or sweeps_of_frames(group, root)
        made.append(SceneFiles(group[0].scene, group, sweeps))
    return made, unreadable, tables


def class_source(root: Path, asked: ClassSource, tables: NuScenesTables | None = None) -> ClassSource:
    """Where point classes come from: what was asked for, or for "auto" what there is.

    Raises:
        ValueError: files were asked for and there is no folder of them.
    """
    there = [kind for kind in ("lidarseg", "panoptic") if any((root / kind).glob("v1.0-*/*_*"))]
    if asked == "auto":
        return there[0] if there else "rules"  # type: ignore[return-value]
    if asked != "rules" and asked not in there:
        raise ValueError(
            f"{root / asked}: holds no v1.0-*/ with {asked} files; unpack them there, or give --classes=rules"
        )
    return asked


def point_classes(root: Path, source: ClassSource, tables: NuScenesTables | None = None) -> PointClasses:
    """The reader of key sweeps that a source means (not "auto"); ValueError as `lidarseg_table` says."""
    if source == "rules":
        return RuleClasses()
    indexed = tables is not None and any("index" in row for row in tables.table("category"))
    names = lidarseg_names(tables) if indexed and tables is not None else LIDARSEG_NAMES
    kind: Literal["lidarseg", "panoptic"] = "panoptic" if source == "panoptic" else "lidarseg"
    return FileClasses(LidarReader(root, kind, drop_raw_ids=NOISE_AND_EGO, taxonomy=OCC3D_TAXONOMY, names=names))


def _completed(frame: Frame, tables: NuScenesTables) -> Frame:
    """A frame of an info with what only the tables know: its scene and the sweep's token."""
    row = tables.key_data.get(frame.token, {}).get(LIDAR)
    if row is None:
        return frame
    scene_token = tables.get("sample", frame.token).get("scene_token", "")
    name = frame.scene
    if not name and scene_token and tables.has("scene"):
        name = tables.get("scene", scene_token).get("name", "")
    extras = {"scene_token": scene_token, "lidar_token": row["token"]}
    return replace(frame, scene=name, extras={**frame.extras, **extras})


def _by_scene(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames of one scene together, in time order; without names, as long as no pause is between them."""
    groups: dict[str, list[Frame]] = {}
    before, run = None, 0
    for frame in sorted(frames, key=lambda frame: frame.timestamp_us):
        key = frame.extras.get("scene_token") or frame.scene
        if not key:
            if before is None or frame.timestamp_us - before > _SCENE_BREAK_US:
                run += 1
            before, key = frame.timestamp_us, f"unnamed {run}"
        groups.setdefault(key, []).append(frame)
    return list(groups.values())
