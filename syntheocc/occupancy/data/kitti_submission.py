"""Submissions to SemanticKITTI's scene completion benchmark: written, read, and checked before they are uploaded.

A submission is a zip of ``sequences/XX/predictions/NNNNNN.label``, one for every ``voxels/NNNNNN.bin`` of sequences 11
to 21: uint16 raw class ids (0 free) of the 256 x 256 x 32 voxels, z fastest. The server wants the folders as entries
of their own, and besides them at most a ``description.txt``. Source: specs/occdepth.md 3.3.

The checks are those of the official validator (the zip's name, the folders, a file of the right size for every frame,
their number) and three that it lacks: ids that the scorer's class table does not have, files that do not belong, and
damaged archives. The scorer counts such voxels as errors without a word.
"""

import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import atomic_path, atomic_write_bytes, not_opened
from syntheocc.occupancy.data.semantic_kitti import LEARNING_MAP, RAW_OF_CLASS, SHAPE, classes_of_raw
from syntheocc.occupancy.data.semantic_kitti_frames import SEQUENCES, sequences_folder
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.taxonomy import SEMANTIC_KITTI_TAXONOMY, UNKNOWN

__all__ = [
    "TEST_SEQUENCES",
    "check_submission",
    "prediction_bytes",
    "prediction_path",
    "read_prediction",
    "submission_frames",
    "write_prediction",
    "write_submission",
]

TEST_SEQUENCES = SEQUENCES["test"]
DESCRIPTION = "description.txt"
_BYTES = 2 * SHAPE[0] * SHAPE[1] * SHAPE[2]
_BIN_BYTES = _BYTES // 16
_RAW_OF_CLASS = np.array(RAW_OF_CLASS, np.uint16)
# What the scorer's table knows: moving things (252..259) too, which it counts as their resting twins.
_KNOWN_IDS = np.array(sorted(LEARNING_MAP))
_MOST_SHOWN = 10


def submission_frames(root: str | os.PathLike, sequences: Sequence[str] = TEST_SEQUENCES) -> dict[str, list[str]]:
    """Which frames are to be predicted: sequence -> NNNNNN of every ``voxels/NNNNNN.bin``, in order.

    Raises:
        ValueError: a sequence without such files, or a file of another size than its voxels have.
    """
    base = sequences_folder(root)
    wanted: dict[str, list[str]] = {}
    for sequence in sequences:
        files = sorted((base / sequence / "voxels").glob("*.bin"))
        if not files:
            raise ValueError(
                f"{base / sequence / 'voxels'}: no NNNNNN.bin, which say what is to be predicted; unpack "
                "data_odometry_voxels.zip there, or name other sequences"
            )
        for file in files:
            if file.stat().st_size != _BIN_BYTES:
                raise ValueError(f"{file}: {file.stat().st_size} bytes, want {_BIN_BYTES}; it is cut, copy it again")
        wanted[sequence] = [file.stem for file in files]
    return wanted


def prediction_path(folder: str | os.PathLike, sequence: str, frame: str) -> Path:
    """Where a frame's prediction lies below a folder (or in the zip)."""
    return Path(folder) / "sequences" / sequence / "predictions" / f"{frame}.label"


def prediction_bytes(labels: OccupancyGrid | Tensor | np.ndarray) -> bytes:
    """The content of a prediction's file.

    Args:
        labels: a grid, or its classes 0..19 [256, 256, 32]. Unknown (255) is no answer: it is an error.

    Raises:
        ValueError: another class table, shape or type, or a class that there is not.
    """
    if isinstance(labels, OccupancyGrid):
        if labels.taxonomy != SEMANTIC_KITTI_TAXONOMY:
            raise ValueError(
                f"a submission has the classes of 'semantic_kitti', the grid's are {labels.taxonomy.name!r}"
            )
        labels = labels.labels
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.shape != SHAPE or values.dtype.kind not in "iu":
        raise ValueError(f"a prediction is integer classes {list(SHAPE)}, got {values.dtype} {list(values.shape)}")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= len(RAW_OF_CLASS):
        bad = "255 (unknown)" if high == UNKNOWN else str(low if low < 0 else high)
        raise ValueError(f"a prediction's classes are 0..{len(RAW_OF_CLASS) - 1}, got {bad}")
    return _RAW_OF_CLASS[values].astype("<u2").tobytes()


def write_prediction(labels: OccupancyGrid | Tensor | np.ndarray, path: str | os.PathLike) -> None:
    """Write one frame's ``.label`` by rename; see `prediction_bytes`."""
    try:
        data = prediction_bytes(labels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    atomic_write_bytes(path, data)


def read_prediction(path: str | os.PathLike) -> Tensor:
    """Read one frame's ``.label``: classes uint8 [256, 256, 32]; raw ids without a class become 255, a miss.

    Raises:
        ValueError: the file is missing or of another size.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise not_opened(path, error) from error
    if len(data) != _BYTES:
        raise ValueError(
            f"{path}: {len(data)} bytes, a prediction of {'x'.join(map(str, SHAPE))} voxels has {_BYTES}; is it of "
            "the segmentation benchmark?"
        )
    return torch.from_numpy(classes_of_raw(np.frombuffer(data, "<u2")).reshape(SHAPE))


def write_submission(
    path: str | os.PathLike,
    wanted: Mapping[str, Sequence[str]],
    labels_of: Callable[[str, str], OccupancyGrid | Tensor | np.ndarray],
    description: str | None = None,
) -> Path:
    """Write the zip; it appears with all its predictions or not at all. The same predictions give the same bytes.

    Args:
        path: ends in .zip.
        wanted: sequence -> frames, see `submission_frames`.
        labels_of: (sequence, frame) -> what `prediction_bytes` takes; called once for each, in order.
        description: text of ``description.txt``; None for none.

    Returns:
        the path.

    Raises:
        ValueError: another suffix, nothing to write, or a prediction that is missing or does not fit; names it.
    """
    from tqdm import tqdm

    path = Path(path)
    if path.suffix != ".zip":
        raise ValueError(f"{path}: a submission is a .zip")
    if not any(wanted.values()):
        raise ValueError(f"{path}: no frames to write")
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        if description is not None:
            archive.writestr(_entry(DESCRIPTION), description)
        for folder in _folders(wanted):
            archive.writestr(_entry(folder), b"")
        frames = [(sequence, frame) for sequence, names in wanted.items() for frame in names]
        for sequence, frame in tqdm(frames, desc="submission", unit="frame"):
            try:
                data = prediction_bytes(labels_of(sequence, frame))
            except ValueError as error:
                raise ValueError(f"sequence {sequence}, frame {frame}: {error}") from error
            archive.writestr(_entry(prediction_path("", sequence, frame).as_posix()), data)
    return path


def check_submission(
    path: str | os.PathLike, root: str | os.PathLike, sequences: Sequence[str] = TEST_SEQUENCES
) -> int:
    """Check a zip, or a folder that holds ``sequences/``, against the data set that it is for.

    Args:
        path: the submission.
        root: the data set, with the ``voxels/NNNNNN.bin`` of the sequences.
        sequences: the benchmark's by default.

    Returns:
        the number of predictions, all of them in order.

    Raises:
        ValueError: what is wrong with it, all of it (of many files the first few).
    """
    path = Path(path)
    wanted = submission_frames(root, sequences)
    if path.is_dir():
        problems = _of_files(_names_below(path), wanted, lambda name: (path / name).read_bytes())
    else:
        if path.suffix != ".zip":
            raise ValueError(f"{path}: a submission's name ends in .zip")
        try:
            with zipfile.ZipFile(path) as archive:
                problems = _of_zip(archive, wanted)
        except OSError as error:
            raise not_opened(path, error) from error
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path}: no zip archive ({error}); write it again") from error
    if problems:
        shown = [f"{path}: {problem}" for problem in problems[:_MOST_SHOWN]]
        more = len(problems) - len(shown)
        raise ValueError("\n".join(shown) + (f"\nand {more} more" if more else ""))
    return sum(len(frames) for frames in wanted.values())


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry of a fixed date: the archive's bytes depend on its content alone."""
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.external_attr = (0o40755 << 16 | 0x10) if name.endswith("/") else 0o100644 << 16
    entry.compress_type = zipfile.ZIP_STORED if name.endswith("/") else zipfile.ZIP_DEFLATED
    return entry


def _folders(wanted: Iterable[str]) -> list[str]:
    inner = [name for s in wanted for name in (f"sequences/{s}/", f"sequences/{s}/predictions/")]
    return ["sequences/", *inner]


def _names_below(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _of_zip(archive: zipfile.ZipFile, wanted: Mapping[str, Sequence[str]]) -> list[str]:
    names = archive.namelist()
    there = set(names)
    folders = _folders(wanted)
    problems = [
        f"lacks the entry {name}; zip the folders too, as write_submission does"
        for name in folders
        if name not in there
    ]
    problems += [f"holds {name} {times} times" for name, times in Counter(names).items() if times > 1]
    strange = [name for name in names if name.endswith("/") and name not in folders]
    problems += [f"holds a folder that does not belong there: {name}" for name in strange]

    def content(name: str) -> bytes:
        try:
            # The header's size is looked at first: a small archive may unfold to any number of bytes.
            return b"" if archive.getinfo(name).file_size != _BYTES else archive.read(name)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"{name} is damaged ({error})") from error

    sizes = {name: archive.getinfo(name).file_size for name in there}
    return problems + _of_files([name for name in there if not name.endswith("/")], wanted, content, sizes)


def _of_files(
    names: Iterable[str],
    wanted: Mapping[str, Sequence[str]],
    content: Callable[[str], bytes],
    sizes: Mapping[str, int] | None = None,
) -> list[str]:
    """Problems of the files of a submission: those that are missing, too many, cut or of unknown classes."""
    from tqdm import tqdm

    expected = [prediction_path("", s, frame).as_posix() for s, frames in wanted.items() for frame in frames]
    there = set(names)
    problems = [f"lacks {name}" for name in expected if name not in there]
    strange = sorted(there - set(expected) - {DESCRIPTION})
    problems += [f"holds a file that does not belong there: {name}" for name in strange]
    for name in tqdm([name for name in expected if name in there], desc="check", unit="frame"):
        try:
            data = content(name)
        except ValueError as error:
            problems.append(str(error))
            continue
        size = len(data) if sizes is None else sizes[name]
        if size != _BYTES:
            problems.append(f"{name} has {size} bytes, want {_BYTES}")
            continue
        problem = _unknown_ids(np.frombuffer(data, "<u2"))
        problems += [f"{name} {problem}"] if problem else []
    return problems


def _unknown_ids(raw: np.ndarray) -> str | None:
    """What is wrong with the ids of a file, None if nothing is."""
    found = np.flatnonzero(np.bincount(raw, minlength=1))
    strange: Any = np.setdiff1d(found, _KNOWN_IDS)
    if not len(strange):
        return None
    hint = "; these are train ids, map them with learning_map_inv" if int(raw.max()) < len(RAW_OF_CLASS) else ""
    return f"holds ids {', '.join(map(str, strange[:8].tolist()))}, which are no raw ids of a class{hint}"
