"""Scenes written as a nuScenes data root: tables, pictures, sweeps, labels and info pickles.

Each scene is written on its own (`write_scene`), its rows of the tables into `world/<scene>.json`, and that file last:
a scene that has it is complete and is not made again. `finish_tree` puts the rows of all scenes together. Every file
appears by rename, and nothing depends on who wrote it or in which order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import (
    atomic_write_bytes,
    atomic_write_image,
    atomic_write_json,
    atomic_write_npz,
    read_json,
)
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.infos_from_tables import frames_for_infos
from syntheocc.occupancy.data.lidar import write_lidar
from syntheocc.occupancy.data.nuscenes import TABLE_NAMES, read_tables, write_tables
from syntheocc.occupancy.data.split_infos import write_split_infos
from syntheocc.occupancy.data.sweeps import CAMERA_SWEEPS, LIDAR_SWEEPS
from syntheocc.occupancy.transforms import transform_points
from syntheocc.worlds.accumulate import Accumulation
from syntheocc.worlds.table_rows import Seen, map_filename, scene_rows
from syntheocc.worlds.taxonomy import WORLD_TAXONOMY
from syntheocc.worlds.timeline import LIDAR, Reading, key_frame, readings
from syntheocc.worlds.tree_labels import write_labels
from syntheocc.worlds.visibility import visible_shares

__all__ = ["TreeOptions", "finish_tree", "is_complete", "part_path", "write_scene"]

PARTS = "world"
LIDAR_TASKS = ("lidarseg", "panoptic")


@dataclass(frozen=True, kw_only=True)
class TreeOptions:
    """What is written of a scene.

    Args:
        version: folder of the tables.
        sweeps: also the firings between the key frames (cameras 12 Hz, lidar 20 Hz).
        labels: occupancy from the geometry, or accumulated from the sweeps with the real data's errors.
        jpeg_quality: of the pictures.
    """

    version: str = "v1.0-trainval"
    sweeps: bool = False
    labels: Literal["exact", "accumulated"] = "exact"
    jpeg_quality: int = 92


def part_path(root: Path, name: str) -> Path:
    """Where the rows of a scene lie; the file says that the scene is complete."""
    return Path(root) / PARTS / f"{name}.json"


def is_complete(root: Path, name: str) -> bool:
    """Whether a scene was written to its end."""
    return part_path(root, name).is_file()


def write_scene(scene: Any, root: Path, options: TreeOptions = TreeOptions()) -> None:  # noqa: B008 (frozen)
    """Write everything of one scene below a data root, but for the tables that all scenes share.

    Args:
        scene: a `Scene`.
        root: the data root.
        options: what is written.
    """
    root = Path(root)
    fired = readings(scene, options.sweeps)
    sweeps = _write_sweeps(scene, root, fired, options)
    views = _write_pictures(scene, root, fired, options)
    accumulation = Accumulation.of(scene, sweeps)
    seen = []
    for index, sweep in enumerate(sweeps):
        of = {r.channel: r for r in fired if r.key and r.sample == index}
        frame = key_frame(scene, index, root, of)
        seen.append(_seen(scene, frame, sweep, views[index]))
        write_labels(root, frame, scene, index, accumulation, options.labels)
    _write_map(scene, root)
    rows = scene_rows(scene, fired, seen, options.version)
    atomic_write_json(part_path(root, scene.name), {"split": scene.split, "rows": rows}, indent=None)


def _write_sweeps(scene: Any, root: Path, fired: Sequence[Reading], options: TreeOptions) -> list[Any]:
    from syntheocc.worlds.lidar import scan

    key_sweeps = []
    for reading in fired:
        if reading.channel != LIDAR:
            continue
        sweep = scan(scene, reading.t)
        write_lidar(torch.as_tensor(sweep.points).numpy(), root / reading.filename)
        if reading.key:
            key_sweeps.append(sweep)
            category = torch.as_tensor(sweep.category).numpy().astype(np.uint8)
            instance = torch.as_tensor(sweep.instance).numpy().astype(np.int64)
            stem = f"{options.version}/{reading.token}"
            atomic_write_bytes(root / f"lidarseg/{stem}_lidarseg.bin", category.tobytes())
            atomic_write_npz(
                root / f"panoptic/{stem}_panoptic.npz", data=(category.astype(np.int64) * 1000 + instance).astype("u2")
            )
    return key_sweeps


def _write_pictures(
    scene: Any, root: Path, fired: Sequence[Reading], options: TreeOptions
) -> list[dict[str, tuple[Tensor, float]]]:
    """Write every picture; returns for every key frame the cameras' instance maps and times."""
    from syntheocc.worlds.camera_images import render_view

    views: list[dict[str, tuple[Tensor, float]]] = [{} for _ in scene.key_times]
    for reading in fired:
        if reading.channel == LIDAR:
            continue
        view = render_view(scene, scene.rig[reading.channel], scene.ego.pose_at(reading.t), reading.t)
        pixels = torch.as_tensor(view.image).cpu().numpy()
        atomic_write_image(root / reading.filename, pixels, quality=options.jpeg_quality)
        if reading.key:
            views[reading.sample][reading.channel] = (torch.as_tensor(view.instances), reading.t)
    return views


def _seen(scene: Any, frame: Frame, sweep: Any, views: dict[str, tuple[Tensor, float]]) -> list[Seen]:
    assert frame.boxes is not None and frame.lidar2ego is not None
    points = transform_points(frame.lidar2ego, torch.as_tensor(sweep.points)[:, :3].double())
    counts = frame.boxes.contains(points).sum(1).tolist()
    shares = visible_shares(scene, views)
    return [Seen(float(share), int(count)) for share, count in zip(shares, counts, strict=True)]


def _write_map(scene: Any, root: Path) -> None:
    """The drivable area as nuScenes' semantic prior: 255 where it is, 0.1 m a pixel, rows from north to south."""
    drivable = scene.ground.labels.cpu().numpy() == WORLD_TAXONOMY.id_of("driveable_surface")
    atomic_write_image(root / map_filename(scene), np.ascontiguousarray(drivable.T[::-1]).astype(np.uint8) * 255)


def finish_tree(root: Path, options: TreeOptions = TreeOptions()) -> list[Frame]:  # noqa: B008 (frozen)
    """Write the tables and info pickles of all complete scenes.

    Args:
        root: the data root.
        options: what the scenes were written with.

    Returns:
        All key frames, in the order of the sample table.

    Raises:
        ValueError: there is no complete scene.
    """
    root = Path(root)
    parts = [read_json(path) for path in sorted((root / PARTS).glob("scene-*.json"))]
    if not parts:
        raise ValueError(f"{root / PARTS}: no complete scene; write one first")
    merged: dict[str, dict[str, dict]] = {}
    for part in parts:
        for table, rows in part["rows"].items():
            merged.setdefault(table, {}).update({row["token"]: row for row in rows})
    folder = root / options.version
    write_tables(folder, {name: list(merged.get(name, {}).values()) for name in TABLE_NAMES})
    for task in LIDAR_TASKS:
        atomic_write_json(folder / f"{task}.json", list(merged.get(task, {}).values()), indent=0)
    split_of = {part["rows"]["scene"][0]["name"]: part["split"] for part in parts}
    tables = read_tables(root, options.version)
    by_split = frames_for_infos(tables, split_of, {"lidar": LIDAR_SWEEPS, "camera": CAMERA_SWEEPS})
    for split, members in sorted(by_split.items()):
        write_split_infos(root, split, members, options.version)
    order = {row["token"]: index for index, row in enumerate(tables.table("sample"))}
    return sorted((frame for members in by_split.values() for frame in members), key=lambda frame: order[frame.token])
