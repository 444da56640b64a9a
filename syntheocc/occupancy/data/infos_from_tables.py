"""Key frames of the nuScenes tables with everything that info files hold."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from syntheocc.occupancy.cameras import NUSCENES_CAMERAS
from syntheocc.occupancy.data.frames import Frame, about
from syntheocc.occupancy.data.nuscenes import NuScenesTables
from syntheocc.occupancy.data.nuscenes_frames import Locate, frame_of_sample

__all__ = ["frames_for_infos"]


def frames_for_infos(
    tables: NuScenesTables,
    split_of: Mapping[str, str],
    sweeps: Mapping[str, int],
    unreadable: dict[str, str] | None = None,
    check_files: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, list[Frame]]:
    """The key frames of some scenes, in the order of the sample table.

    Tables without annotations (v1.0-test) give frames without boxes.

    Args:
        tables: where they come from.
        split_of: scene name -> the split that its samples go to; other scenes are passed over.
        sweeps: "lidar" and "camera" -> how many firings before each key frame are listed at most (`data.sweeps`).
        unreadable: where a sample that is no valid frame goes, token -> reason; left out, it is an error.
        check_files: a sample whose pictures or sweep do not exist is no valid frame.
        progress: wraps the iteration over the samples.

    Returns:
        Split -> frames.

    Raises:
        ValueError: a table that is missing or damaged, or a sample that is no valid frame.
    """
    wanted = {
        tables.field("scene", row, "token"): split_of[row["name"]]
        for row in tables.table("scene")
        if row.get("name") in split_of
    }
    samples = [row for row in tables.table("sample") if tables.field("sample", row, "scene_token") in wanted]
    # The big tables are read before the first sample: what is wrong with one of them is no sample's fault.
    tables.key_data  # noqa: B018
    tables.table("ego_pose")
    has_boxes = tables.has("sample_annotation") and bool(tables.annotations)
    point_files = {task: _files_of(tables, task) for task in ("lidarseg", "panoptic")}
    locate: Locate = lambda given, _: (tables.root / given, [])  # noqa: E731
    frames: dict[str, list[Frame]] = {split: [] for split in dict.fromkeys(split_of.values())}
    for sample in progress(samples):
        token = str(sample.get("token", "without token"))
        with about(f"{tables.folder}, sample {token}", token, unreadable):
            frame = frame_of_sample(tables, locate, sample, NUSCENES_CAMERAS, sweeps)
            if check_files:
                frame.check_files()
            lidar = frame.extras["lidar_token"]
            extras = {f"{task}_filename": files[lidar] for task, files in point_files.items() if lidar in files}
            frames[wanted[sample["scene_token"]]].append(
                replace(frame, boxes=frame.boxes if has_boxes else None, extras={**frame.extras, **extras})
            )
    return frames


def _files_of(tables: NuScenesTables, task: str) -> dict[str, str]:
    """Token of a lidar reading -> its file of point labels, where the tables have them."""
    if not tables.has(task):
        return {}
    return {
        tables.field(task, row, "sample_data_token"): tables.field(task, row, "filename") for row in tables.table(task)
    }
