"""The info pickles of a split in every style, under the names that programs ask for."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.infos_writing import write_infos
from syntheocc.occupancy.data.occupancy_files import occupancy_path

__all__ = ["INFO_FILES", "info_file", "with_label_path", "write_split_infos"]

# Style -> file name; mmdetection3d 1.0's has the name that most programs ask for.
INFO_FILES = {
    "mmdet3d_v1.0": "nuscenes{tag}_infos_{split}.pkl",
    "mmdet3d_v1.1": "nuscenes{tag}_infos_{split}_v1.1.pkl",
    "sweep": "nuscenes{tag}_infos_{split}_sweep.pkl",
    "bevdet": "bevdetv2-nuscenes{tag}_infos_{split}.pkl",
    "openoccupancy": "nuscenes{tag}_occ_infos_{split}.pkl",
}
# Styles that name a label file, and where those lie below the data root.
_LABELS = {"bevdet": ("occ3d", "gts"), "openoccupancy": ("openoccupancy", "nuScenes-Occupancy")}


def info_file(style: str, split: str, tag: str = "") -> str:
    """The file name of a style's infos, e.g. "nuscenes_infos_train.pkl"."""
    return INFO_FILES[style].format(split=split, tag=tag)


def write_split_infos(
    root: Path,
    split: str,
    frames: Sequence[Frame],
    version: str,
    styles: Collection[str] = tuple(INFO_FILES),
    progress: Callable[[Sequence[Frame]], Any] = iter,
) -> None:
    """Write the info pickles of a split.

    Args:
        root: the data root; the pickles appear in it.
        split: its name, which is part of the files' names.
        frames: its key frames, their files below the root.
        version: folder of the tables.
        styles: of `INFO_FILES`.
        progress: wraps the iteration over the frames.
    """
    for style in styles:
        chosen = [with_label_path(frame, style, index) for index, frame in enumerate(frames)]
        write_infos(root / info_file(style, split), chosen, style, root, version, progress=progress)


def with_label_path(frame: Frame, style: str, index: int) -> Frame:
    """The frame with its place in the list and the label file that an info style names, relative to the data root."""
    if style not in _LABELS:
        return frame
    kind, folder = _LABELS[style]
    path = occupancy_path(Path(folder), frame, kind)
    # Occ3D's users add the file's name themselves.
    path = path.parent if kind == "occ3d" else path
    return replace(frame, occupancy_path=path, extras={**frame.extras, "frame_idx": index})
