"""SemanticKITTI's voxel labels, `<root>/sequences/XX/voxels/NNNNNN.*` (its scans: `semantic_kitti_scans`).

Voxels: 256 x 256 x 32 of 0.2 m from (0, -25.6, -2) in the velodyne frame, x slowest, z fastest.

* `.label`: little-endian uint16 raw class ids, 0 free;
* `.bin` (occupied in the single scan), `.invalid` (never observed), `.occluded`: packed bits, eight voxels a byte, the
  first in the highest bit.

**Voxels released before 2020-08-24 are one element late** (their writer counted before it wrote), which is one voxel
up in z. Nothing in the files says so: `detect_release` compares `.bin` with the voxelised scan (0.23 IoU for the old
release, above 0.99 once shifted), `release_of_mask` needs no scan, and `release=` says which one is read.

Source: specs/occdepth.md 1.1.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import atomic_write_bytes, atomic_write_npy, not_opened
from syntheocc.occupancy.data.downsampling import downsample_labels
from syntheocc.occupancy.data.frames import Frame, about
from syntheocc.occupancy.data.kitti import read_scan
from syntheocc.occupancy.data.semantic_kitti_scans import (
    SHAPE,
    read_point_labels,
    voxelize_scan,
    write_point_labels,
)
from syntheocc.occupancy.grids import SEMANTIC_KITTI, OccupancyGrid
from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = [
    "LEARNING_MAP",
    "RAW_OF_CLASS",
    "RELEASES",
    "SemanticKittiVoxels",
    "classes_of_raw",
    "detect_release",
    "detected_release",
    "read_point_labels",
    "read_semantic_kitti",
    "read_semantic_kitti_voxels",
    "read_voxel_bits",
    "release_of_mask",
    "semantic_kitti_path",
    "voxelize_scan",
    "write_point_labels",
    "write_preprocessed",
    "write_semantic_kitti",
]

_NUM_VOXELS = SHAPE[0] * SHAPE[1] * SHAPE[2]

# Raw class id -> one of the 20 classes. Raw 1 (outlier), 52 and 99 (other structure, other object) have no class.
LEARNING_MAP = {
    0: 0, 10: 1, 11: 2, 13: 5, 15: 3, 16: 5, 18: 4, 20: 5, 30: 6, 31: 7, 32: 8, 40: 9, 44: 10, 48: 11, 49: 12,
    50: 13, 51: 14, 60: 9, 70: 15, 71: 16, 72: 17, 80: 18, 81: 19, 252: 1, 253: 7, 254: 6, 255: 8, 256: 5, 257: 5,
    258: 4, 259: 5,
}  # fmt: skip
# The raw id that a class is written as, [20].
RAW_OF_CLASS = (0, 10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81)

# The voxel files as they are today, the off-by-one ones of before 2020-08-24, and "find out from the scan".
RELEASES = ("current", "before_2020_08_24", "detect")
# IoU of the right release: 0.997 (the official tool drops a few voxels by majority vote); of the wrong one: 0.23.
_AGREEMENT = 0.9

_CLASS_OF_RAW = np.full(1 << 16, UNKNOWN, np.uint8)
_CLASS_OF_RAW[list(LEARNING_MAP)] = list(LEARNING_MAP.values())


@dataclass(frozen=True, eq=False)
class SemanticKittiVoxels:
    """The voxel files of one frame.

    Args:
        grid: classes in the velodyne frame; 255 where invalid or where the raw id has no class. None without
            a `.label` (test split).
        scan: bool [X, Y, Z], occupied in the single scan (`.bin`); None where there is no such file.
        invalid: bool [X, Y, Z], never observed; None where there is no such file.
        occluded: bool [X, Y, Z], behind something from every pose; None where there is no such file.
    """

    grid: OccupancyGrid | None
    scan: Tensor | None = None
    invalid: Tensor | None = None
    occluded: Tensor | None = None


def classes_of_raw(raw: np.ndarray) -> np.ndarray:
    """The 20 classes of raw ids, uint8 of the same shape; 255 where a raw id has none."""
    raw = np.asarray(raw)
    if raw.dtype.kind not in "iu" or (raw.size and not 0 <= int(raw.min()) <= int(raw.max()) < 1 << 16):
        raise ValueError(f"raw SemanticKITTI ids are integers 0..65535, got {raw.dtype}")
    return _CLASS_OF_RAW[raw]


def read_semantic_kitti(path: str | os.PathLike, lidar2ego: Any = None, release: str = "current") -> OccupancyGrid:
    """Read a voxel `.label` file and the `.invalid` beside it.

    Args:
        path: `voxels/NNNNNN.label`.
        lidar2ego: [4, 4]; the identity unless given, for ego is the velodyne frame in KITTI's frames.
        release: one of `RELEASES`; "detect" takes the `.bin` beside and the scan in `../velodyne/`, or else a mask.

    Raises:
        ValueError: a missing file, a wrong size, an unknown release, or files that agree with no release.
    """
    path = Path(path)
    shift = _shifted(path, release)
    raw = _restore(np.frombuffer(_read(path, 2 * _NUM_VOXELS), "<u2"), shift)
    labels = _CLASS_OF_RAW[raw].reshape(SHAPE)
    labels[_bits(path.with_suffix(".invalid"), shift)] = UNKNOWN
    with about(str(path)):
        return OccupancyGrid(labels, *SEMANTIC_KITTI, _identity() if lidar2ego is None else lidar2ego)


def read_semantic_kitti_voxels(
    path: str | os.PathLike, lidar2ego: Any = None, release: str = "current"
) -> SemanticKittiVoxels:
    """Read every voxel file of one frame that exists.

    Args:
        path: any of `voxels/NNNNNN.{bin,label,invalid,occluded}`.
        lidar2ego: see `read_semantic_kitti`.
        release: see `read_semantic_kitti`.

    Raises:
        ValueError: none of the files exists, or what `read_semantic_kitti` finds.
    """
    path = Path(path)
    found = {s for s in ("bin", "label", "invalid", "occluded") if path.with_suffix(f".{s}").is_file()}
    if not found:
        raise ValueError(f"{path}: no such voxel files (.bin, .label, .invalid, .occluded); check the path")
    shift = _shifted(path, release)
    plain = RELEASES[shift]
    grid = read_semantic_kitti(path.with_suffix(".label"), lidar2ego, plain) if "label" in found else None
    bits = {
        name: torch.from_numpy(_bits(path.with_suffix(f".{suffix}"), shift))
        for name, suffix in (("scan", "bin"), ("invalid", "invalid"), ("occluded", "occluded"))
        if suffix in found
    }
    return SemanticKittiVoxels(grid, **bits)


def read_voxel_bits(path: str | os.PathLike, release: str = "current") -> Tensor:
    """Read one packed file (`.bin`, `.invalid`, `.occluded`): bool [256, 256, 32]."""
    return torch.from_numpy(_bits(Path(path), _shifted(Path(path), release)))


def detect_release(bin_path: str | os.PathLike, scan_path: str | os.PathLike) -> str:
    """Which release a voxel `.bin` is of: the one under which it agrees with its own scan.

    Args:
        bin_path: `voxels/NNNNNN.bin`.
        scan_path: `velodyne/NNNNNN.bin` of the same frame.

    Returns:
        "current" or "before_2020_08_24".

    Raises:
        ValueError: it agrees (IoU above 0.9) under neither.
    """
    stored, scan = _bits(Path(bin_path), 0), voxelize_scan(read_scan(scan_path))
    ious = []
    for shift in (0, 1):
        voxels = _restore(stored.ravel(), shift).reshape(SHAPE)
        ious.append(float((voxels & scan).sum() / max(1, (voxels | scan).sum())))
    best = int(ious[1] > ious[0])
    if ious[best] < _AGREEMENT:
        raise ValueError(
            f"{bin_path}: agrees with {scan_path} neither as it is (IoU {ious[0]:.2f}) nor shifted by one as before "
            f"2020-08-24 ({ious[1]:.2f}); are both of the same frame?"
        )
    return RELEASES[best]


def release_of_mask(path: str | os.PathLike) -> str:
    """Which release an `.invalid` or `.occluded` file is of, without the scan: "current" or "before_2020_08_24".

    Space is smooth. Both masks hardly change between a column's two lowest voxels, and differ between the highest of
    one column and the lowest of the next (sky against underground); a file that is one element late has it the other
    way around: on the real sequence 00 the two agree for 25 % and 100 % of the columns.

    Raises:
        ValueError: neither pair agrees clearly more often than the other (by a tenth of the columns).
    """
    columns = _bits(Path(path), 0).reshape(-1, SHAPE[2])
    within = float((columns[:, 0] == columns[:, 1]).mean())
    across = float((columns[1:, 0] == columns[:-1, -1]).mean())
    if abs(within - across) < 0.1:
        raise ValueError(
            f"{path}: cannot be told to be of before or after 2020-08-24 ({within:.2f} of the columns' lowest voxels "
            f"are like their neighbour above, {across:.2f} like the end of the column before); name the release"
        )
    return RELEASES[int(across > within)]


def detected_release(path: Path) -> str:
    """The release of a frame's files (any of `voxels/NNNNNN.*`): by its scan, or without one by its masks.

    Raises:
        ValueError: neither is there, or they do not tell.
    """
    scan = path.resolve().parent.parent / "velodyne" / f"{path.stem}.bin"
    if scan.is_file() and path.with_suffix(".bin").is_file():
        return detect_release(path.with_suffix(".bin"), scan)
    for mask in (path.with_suffix(".invalid"), path.with_suffix(".occluded")):
        if mask.is_file():
            return release_of_mask(mask)
    raise ValueError(f"{path}: the release cannot be found out without {scan} or a mask beside; name the release")


def write_semantic_kitti(voxels: SemanticKittiVoxels | OccupancyGrid, path: str | os.PathLike) -> None:
    """Write the voxel files of one frame in the current layout: `.label` and `.invalid`, and what else there is.

    Args:
        voxels: the files' content, or a grid alone. Unknown (255) voxels are written as raw 0 and invalid.
        path: `voxels/NNNNNN.label`; the others lie beside it. Each file appears by rename, `.label` last.

    Raises:
        ValueError: another suffix, a grid of another geometry or class table, a mask of another shape, or nothing.
    """
    path = Path(path)
    if path.suffix != ".label":
        raise ValueError(f"{path}: SemanticKITTI's voxel labels are named NNNNNN.label, their masks lie beside them")
    voxels = SemanticKittiVoxels(voxels) if isinstance(voxels, OccupancyGrid) else voxels
    masks = {"bin": voxels.scan, "invalid": voxels.invalid, "occluded": voxels.occluded}
    raw = None
    if voxels.grid is not None:
        grid = voxels.grid
        if grid.spec != SEMANTIC_KITTI.spec or grid.taxonomy != SEMANTIC_KITTI.taxonomy:
            raise ValueError(
                f"{path}: SemanticKITTI's voxels are {SEMANTIC_KITTI.spec} with the classes of 'semantic_kitti'; the "
                f"grid is {grid.spec} with {grid.taxonomy.name!r}; resample or map it first"
            )
        labels = grid.labels.cpu()
        unknown = labels == UNKNOWN
        masks["invalid"] = unknown if voxels.invalid is None else unknown | voxels.invalid.cpu()
        table = np.zeros(256, np.uint16)
        table[: len(RAW_OF_CLASS)] = RAW_OF_CLASS
        raw = table[labels.numpy()].astype("<u2").tobytes()
    contents = {suffix: np.asarray(mask.cpu()) for suffix, mask in masks.items() if mask is not None}
    if raw is None and not contents:
        raise ValueError(f"{path}: neither a grid nor a mask to write")
    for suffix, mask in contents.items():
        if mask.shape != SHAPE or mask.dtype != bool:
            raise ValueError(f"{path}: .{suffix} is bool {list(SHAPE)}, got {mask.dtype} {list(mask.shape)}")
    for suffix, mask in contents.items():
        atomic_write_bytes(path.with_suffix(f".{suffix}"), np.packbits(mask).tobytes())
    if raw is not None:
        atomic_write_bytes(path.with_suffix(".label"), raw)


def semantic_kitti_path(root: str | os.PathLike, frame: Frame) -> Path:
    """Where the voxel labels of a frame of `kitti.read_sequence` lie below the folder that holds `sequences/`."""
    if not frame.scene or "frame" not in frame.extras:
        raise ValueError(f"sample {frame.token}: SemanticKITTI's labels go by sequence and frame number; it has none")
    return Path(root) / "sequences" / frame.scene / "voxels" / f"{frame.extras['frame']}.label"


def write_preprocessed(grid: OccupancyGrid, folder: str | os.PathLike, name: str) -> None:
    """Write OccDepth's targets: `NAME_1_1.npy` float32 [256, 256, 32] and `NAME_1_8.npy` uint8 [32, 32, 4]."""
    labels = grid.labels.cpu().numpy()
    atomic_write_npy(Path(folder) / f"{name}_1_1.npy", labels.astype(np.float32))
    atomic_write_npy(Path(folder) / f"{name}_1_8.npy", downsample_labels(labels, 8, grid.taxonomy.free))


def _identity() -> Tensor:
    return torch.eye(4, dtype=torch.float64)


def _shifted(path: Path, release: str) -> int:
    """By how many elements the files of a frame are late: 0 or 1, the release's place in `RELEASES`."""
    if release not in RELEASES:
        raise ValueError(f"{path}: release is one of {', '.join(RELEASES)}; got {release!r}")
    if release == "detect":
        release = detected_release(path)
    return RELEASES.index(release)


def _restore(values: np.ndarray, shift: int) -> np.ndarray:
    """Flat values in their own places; what the old release lost at the end is 0."""
    if not shift:
        return values
    fixed = np.zeros_like(values)
    fixed[:-1] = values[1:]
    return fixed


def _bits(path: Path, shift: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(_read(path, _NUM_VOXELS // 8), np.uint8)).astype(bool)
    return _restore(bits, shift).reshape(SHAPE)


def _read(path: Path, size: int) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise not_opened(path, error) from error
    if len(data) != size:
        raise ValueError(
            f"{path}: {len(data)} bytes, want {size} for {'x'.join(map(str, SHAPE))} voxels; it is cut or of another "
            "kind (velodyne/ and labels/ have the same suffixes), copy it again"
        )
    return data
