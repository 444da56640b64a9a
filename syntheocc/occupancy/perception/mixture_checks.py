"""Does an extra data root go with the first one? Asked before anything is trained; every message names the root."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.samples import LABEL_FOLDERS
from syntheocc.occupancy.perception.labels import LabelReader
from syntheocc.occupancy.perception.registry import ModelEntry
from syntheocc.occupancy.perception.settings import TrainConfig
from syntheocc.occupancy.perception.sources import check_readable

__all__ = ["check_places", "check_sample", "check_samples_once"]


def check_places(settings: TrainConfig, wanted: TrainConfig) -> None:
    """Make sure that a root and its info pickles are there, before they are read.

    Args:
        settings: of the extra root.
        wanted: of the run, for what was asked.

    Raises:
        ValueError: the root or an info pickle is missing.
    """
    if not settings.dataroot.is_dir():
        raise ValueError("no such folder; give the one that holds samples/ (several: one flag each)")
    for path in settings.info_path:
        if not Path(path).is_file():
            remedy = "check the path"
            if not wanted.extra_info_path:
                remedy = (
                    f"--info_path={','.join(wanted.info_path)} chooses the frames of --dataroot; give this root's as "
                    "--extra_info_path"
                )
            raise ValueError(f"{path}: no such info pickle; {remedy}")


def check_sample(entry: ModelEntry, config: Any, settings: TrainConfig, first: Any, data: Any) -> None:
    """Make sure that a root's samples are like those of the first one: cameras, pictures, labels.

    Args:
        entry: the model's.
        config: the model's, fitted to the first root.
        settings: of the extra root.
        first: the training dataset of the first root.
        data: that of this one; its cameras are put into the first one's order.

    Raises:
        ValueError: other cameras, pictures that lie elsewhere, labels that are missing or of another kind, or samples
            none of which can be read; and what the model asks for besides (`ModelEntry.check_extra`).
    """
    here, there = _cameras(data.frames), _cameras(first.frames)
    if set(here) != set(there):
        raise ValueError(
            f"has the cameras {', '.join(here)}, --dataroot has {', '.join(there)}; one model has one rig's views: "
            "give a root with the same cameras"
        )
    if hasattr(data, "cameras"):
        data.cameras = first.cameras
    _check_pictures(settings.dataroot, data.frames)
    reader = getattr(data, "labels", None)
    if isinstance(reader, LabelReader):
        _check_labels(settings, reader)
    sample = check_readable(data)
    free = config.taxonomy.free
    if sample.semantics is not None and not bool((sample.semantics == free).any()):
        raise ValueError(
            f"sample {sample.tokens[0]}: no voxel of its labels is free (id {free} of {config.taxonomy.name}); they "
            f"are of another class table than --labels={settings.labels}"
        )
    entry.check_extra(config, settings, data)


def check_samples_once(roots: Sequence[Path], datasets: Sequence[Any]) -> None:
    """Make sure that no root brings samples that it brought before.

    Raises:
        ValueError: names the root and one of the samples.
    """
    seen: dict[Path, set[str]] = {}
    for root, data in zip(roots, datasets, strict=True):
        tokens, before = {frame.token for frame in data.frames}, seen.setdefault(root.resolve(), set())
        twice = sorted(tokens & before)
        if twice:
            raise ValueError(
                f"--extra_dataroot {root}: {len(twice)} samples of this folder are given twice, such as {twice[0]}; "
                "give it once, and how often it counts as --extra_repeat or --extra_share"
            )
        before |= tokens


def _cameras(frames: Sequence[Frame]) -> list[str]:
    return list(dict.fromkeys(name for frame in frames for name in frame.cameras.names))


def _check_pictures(root: Path, frames: Sequence[Frame]) -> None:
    """An info pickle's paths count as they are where such files exist, be they the original's photographs."""
    folder = os.path.join(os.path.abspath(root), "")
    for frame in frames:
        for path in frame.image_paths.values():
            if not os.path.abspath(path).startswith(folder) and not path.resolve().is_relative_to(root.resolve()):
                raise ValueError(
                    f"sample {frame.token} has the picture {path}, which is none of this root's: its infos were "
                    "written for another one. Give infos that were written for this root as --extra_info_path"
                )


def _check_labels(settings: TrainConfig, reader: LabelReader) -> None:
    root, own = Path(reader.root), settings.dataroot
    if settings.labels_root is not None:
        if not root.is_dir():
            raise ValueError(f"{root} (--extra_labels_root) is not a folder")
    elif not root.is_dir() or not os.path.abspath(root).startswith(os.path.join(os.path.abspath(own), "")):
        there = [kind for kind, name in LABEL_FOLDERS.items() if name != "." and (own / name).is_dir()]
        raise ValueError(
            f"holds no {settings.labels} labels of its own (looked for {own / LABEL_FOLDERS[settings.labels]}); "
            + (f"it holds {', '.join(there)}. " if there else "")
            + "All roots have labels of one format: make them (syntheocc occupancy build; syntheocc generate "
            "--as-dataset of a root that has them), or give their folder as --extra_labels_root"
        )
