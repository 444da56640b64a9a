"""The frames that semantic scene completion is learnt and judged on: those of a KITTI tree that have voxels.

`<root>/sequences/XX` or `<root>/dataset/sequences/XX`, as SemanticKITTI's archives unpack. A frame is one that has a
voxel file (every fifth has); a sequence without `voxels/` gives a frame for each picture, so plain KITTI odometry can
be predicted on. Pictures are not opened here but for the first of each camera. Source: specs/occdepth.md 1.1.
"""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.kitti import STEREO, read_sequence
from syntheocc.occupancy.data.semantic_kitti import RELEASES, detected_release

__all__ = [
    "SEQUENCES",
    "chosen_sequences",
    "completion_frames",
    "frame_names",
    "sequence_release",
    "sequences_folder",
]

# SemanticKITTI's split; the test sequences have no labels.
SEQUENCES = {
    "train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"),
    "val": ("08",),
    "test": ("11", "12", "13", "14", "15", "16", "17", "18", "19", "20", "21"),
}

# KITTI recorded with three calibrations: focal length and principal row -> height and width of the rectified pictures.
_SIZES = {(718.856, 185.2157): (376, 1241), (721.5377, 172.854): (375, 1242), (707.0912, 183.1104): (370, 1226)}

# Frames of a sequence that are asked which release they are of, until one tells.
_ASKED = 5


def sequences_folder(root: str | os.PathLike) -> Path:
    """The folder `sequences/` of a tree; ValueError where there is none."""
    root = Path(root)
    for folder in (root / "sequences", root / "dataset" / "sequences"):
        if folder.is_dir():
            return folder
    raise ValueError(f"{root}: neither sequences/ nor dataset/sequences/ in it; give KITTI's root folder")


def completion_frames(
    root: str | os.PathLike, sequences: str | Iterable[str] = "train", views: int = 2
) -> list[Frame]:
    """The frames of sequences, in order.

    Args:
        root: of the tree.
        sequences: "train", "val" or "test", of which those that the tree has; or a name, "08"; or several of these.
        views: 2: the stereo pair; 1: the left picture alone, the right one need not exist.

    Returns:
        Frames of `kitti.read_sequence`.

    Raises:
        ValueError: no such split or sequence, no calibration or one without `Tr`, no pictures of a camera, pictures of
            another calibration's size, or no frame at all.
    """
    if views not in (1, 2):
        raise ValueError(f"there are one or two views, not {views}")
    cameras = list(STEREO)[:views]
    folders = chosen_sequences(root, sequences)
    frames = [frame for folder in folders for frame in _sequence_frames(folder, cameras)]
    if not frames:
        empty = [str(folder / "voxels") for folder in folders if (folder / "voxels").is_dir()]
        raise ValueError(
            f"{root}: sequences {', '.join(f.name for f in folders)} have neither voxels nor pictures"
            + (f"; nothing is in {', '.join(empty)}: remove it, and every picture is a frame" if empty else "")
        )
    return frames


def chosen_sequences(root: str | os.PathLike, sequences: str | Iterable[str]) -> list[Path]:
    """The folders of sequences: names ("08"), and splits, of which those that the tree has.

    Raises:
        ValueError: no such tree, an unknown name, or a split of which the tree has nothing.
    """
    folder = sequences_folder(root)
    found: dict[str, Path] = {}
    for name in [sequences] if isinstance(sequences, str) else sequences:
        wanted = [n for n in SEQUENCES.get(name, (name,)) if (folder / n).is_dir()]
        if not wanted:
            there = sorted(path.name for path in folder.iterdir() if path.is_dir())
            raise ValueError(
                f"{folder}: has no sequence of {name!r}, it has {', '.join(there) or 'none'}; splits are "
                f"{', '.join(SEQUENCES)}"
            )
        found |= {n: folder / n for n in wanted}
    if not found:
        raise ValueError(f"{folder}: name a split or a sequence")
    return list(found.values())


def sequence_release(folder: Path) -> str:
    """The release that a sequence's voxel files are of, found out from its first frame; an old one is warned of.

    Args:
        folder: of the sequence.

    Returns:
        One of `RELEASES`; the current one where there are no targets that it would matter to.

    Raises:
        ValueError: neither the first frame nor the next ones tell; says why the first does not.
    """
    files = sorted((folder / "voxels").glob("*.label")) or sorted((folder / "voxels").glob("*.invalid"))
    if not files:
        return RELEASES[0]
    release = _first_told(files)
    if release != RELEASES[0]:
        warnings.warn(
            f"{folder / 'voxels'}: voxels released before 2020-08-24, one element late; they are put right as they "
            "are read. Newer files: SemanticKITTI's site, SSC v1.1",
            stacklevel=2,
        )
    return release


def _first_told(files: Sequence[Path]) -> str:
    """The release of the first frame that tells: a damaged file is no reason to give up its sequence."""
    reason: ValueError | None = None
    for path in files[:_ASKED]:
        try:
            return detected_release(path)
        except ValueError as error:
            reason = reason or error
    assert reason is not None
    raise reason


def frame_names(folder: Path, camera: str, every_frame: bool = False) -> list[str]:
    """NNNNNN of a sequence's frames: those that have voxels, or all pictures of a camera where there is no `voxels/`.

    Args:
        folder: of the sequence.
        camera: folder of the pictures.
        every_frame: all pictures in any case.
    """
    voxels = folder / "voxels"
    if voxels.is_dir() and not every_frame:
        return sorted({path.stem for suffix in ("bin", "label") for path in voxels.glob(f"*.{suffix}")})
    return sorted(path.stem for path in (folder / camera).glob("*.png"))


def _sequence_frames(folder: Path, cameras: Sequence[str]) -> list[Frame]:
    names = frame_names(folder, cameras[0])
    if not names:
        return []
    frames = read_sequence(folder, cameras, names)
    _check_sizes(folder, frames[0])
    return frames


def _check_sizes(folder: Path, frame: Frame) -> None:
    """Pictures of another sequence betray themselves by their size, where the calibration is one of KITTI's."""
    sizes = {name: (camera.height, camera.width) for name, camera in frame.cameras.items()}
    for name, size in sizes.items():
        focal, row = (float(frame.cameras[name].intrinsics[i]) for i in ((0, 0), (1, 2)))
        close = (known for (f, v), known in _SIZES.items() if abs(focal - f) < 1e-3 and abs(row - v) < 1e-3)
        meant = next(close, size)
        if size != meant:
            raise ValueError(
                f"{folder / name}: pictures of {size[0]} x {size[1]} pixels, but {folder / 'calib.txt'} (focal length "
                f"{focal:g}) is of a recording of {meant[0]} x {meant[1]}; one of them is of another sequence"
            )
        if size != next(iter(sizes.values())):
            raise ValueError(
                f"{folder / name}: pictures of {size[0]} x {size[1]} pixels, but those of {next(iter(sizes))} have "
                f"{' x '.join(map(str, next(iter(sizes.values()))))}; one of them is of another sequence"
            )
