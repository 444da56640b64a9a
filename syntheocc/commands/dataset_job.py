"""What ``--as_dataset`` adds to a job of `commands.generate`: its settings, its splits, the tables it cuts down."""

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from syntheocc.commands.batch import Tally
    from syntheocc.commands.dataset import DatasetFolder
    from syntheocc.commands.generate import GenerateConfig
    from syntheocc.engine.ranks import Ranks
    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.occupancy.data.nuscenes import NuScenesTables
    from syntheocc.occupancy.data.samples import OccupancyKind

# Labels that a data set is made from where nothing else is asked for and there are no MPI files.
_FINEST_FIRST: tuple["OccupancyKind", ...] = ("syntheocc", "openoccupancy", "surroundocc", "occ3d", "openocc_v2")


def dataset_settings(config: "GenerateConfig", ranks: "Ranks") -> "GenerateConfig":
    """The settings of a data set: captions as prompts, and labels as the condition where there are no MPI files."""
    from syntheocc.commands.generate import GenerateConfig
    from syntheocc.occupancy.data.samples import usual_label_root

    changed: dict[str, Any] = {"real_row": False}
    default = next(field.default for field in fields(GenerateConfig) if field.name == "prompt")
    if config.prompt == default:
        changed["use_captions"] = True
    if config.occ_kind == "mpi" and not (Path(config.dataroot_path) / config.mtp_path).is_dir():
        present = (kind for kind in _FINEST_FIRST if _has_labels(usual_label_root(config.dataroot_path, kind), kind))
        changed["occ_kind"] = kind = next(present, "mpi")
        if ranks.is_main and kind != "mpi":
            print(f"no MPI files: conditions are rendered from the {kind} labels (--occ_kind says otherwise)")
    return replace(config, **changed)


def _has_labels(root: Path, kind: str) -> bool:
    """Whether the folder that holds a format's label files exists."""
    from syntheocc.occupancy.data.syntheocc import FOLDER

    return (root / FOLDER if kind == "syntheocc" else root).is_dir()


def finish(
    config: "GenerateConfig",
    outputs: "DatasetFolder",
    frames: Sequence["Frame"],
    settings: dict[str, Any],
    tally: "Tally",
) -> None:
    """Put the data root together from what all ranks have made; call it on one of them."""
    from syntheocc.commands.dataset import finish_dataset

    splits: dict[str, list[Frame]] = {}
    of = _splits_of(config)
    for frame in frames:
        splits.setdefault(of.get(frame.token, config.gen_train_or_val), []).append(frame)
    finish_dataset(outputs, splits, _tables_of(config, frames), settings, tally)


def _splits_of(config: "GenerateConfig") -> dict[str, str]:
    """Token -> split, of samples whose split is not simply `--split`.

    Info files say it in their names (``..._train.pkl``); tables, where both splits are asked for, by their scenes.
    """
    everything = replace(config, max_samples=None)
    if config.info_path:
        named = {path: _split_in_name(path) for path in config.info_path}
        # Reading a large file once more is worth it only where its name says something else.
        return {
            frame.token: name
            for path, name in named.items()
            if name not in (None, config.gen_train_or_val)
            for frame in replace(everything, info_path=(path,)).read_frames()[0]
        }
    names: tuple[Literal["train", "val"], ...] = ("train", "val") if config.gen_train_or_val == "trainval" else ()
    return {f.token: name for name in names for f in replace(everything, gen_train_or_val=name).read_frames()[0]}


def _split_in_name(path: str) -> str | None:
    """Train, val or test, if a file's name has exactly one of these words."""
    words = {word for word in re.split(r"[\W_]+", Path(path).stem) if word in ("train", "val", "test")}
    return words.pop() if len(words) == 1 else None


def check_edited_tables(config: "GenerateConfig", frames: Sequence["Frame"]) -> None:
    """Raise ValueError where samples are edited and there are no tables whose annotations could follow."""
    if config.edit is not None and _tables_of(config, frames) is None:
        raise ValueError(
            f"{config.dataroot_path}: no nuScenes tables (v1.0-*) that hold the samples; with --edit the annotations "
            "follow the edits, so give a data root with tables, or leave --as_dataset out"
        )


def _tables_of(config: "GenerateConfig", frames: Sequence["Frame"]) -> "NuScenesTables | None":
    """The nuScenes tables that have all samples; None where there are none."""
    from syntheocc.occupancy.data.nuscenes import NuScenesTables

    root = Path(config.dataroot_path)
    given = [Path(path) for path in config.info_path if Path(path).is_dir()]
    wanted = {frame.token for frame in frames}
    for folder in given or sorted(root.glob("v1.0-*")):
        if (folder / "sample.json").is_file() and (folder / "sample_data.json").is_file():
            tables = NuScenesTables(folder, root)
            if wanted <= {row.get("token") for row in tables.table("sample")}:
                return tables
    return None
