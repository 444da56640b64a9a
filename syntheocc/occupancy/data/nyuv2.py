"""NYUv2 scene completion in the SSCNet packing: `NAME.bin` (voxels and pose), `NAME.png` (depth), `NAME_color.jpg`.

`.bin`, little-endian: float32 origin [3] (metres, world), float32 camera-to-world pose [16] (row-major), then
uint32 pairs (value, run length) until 240 x 144 x 240 voxels of 0.02 m are full. Values are 0 empty, 1..36 SSCNet's
ids, 255 outside or unknown. The file's axes are **[x, up, y]**; the world is x right, y into the room, z up. The
reader maps the ids to 12 classes, downsamples by 4 (`downsample_labels`) and transposes to [x, y, up], so the grid
lives in world axes at the file's origin; its `grid2ego` (world counts as ego) is that shift. The camera is Kinect's
colour camera.

Depth is millimetres rotated left by three bits in a 16-bit `.png`. Source: specs/occdepth.md 1.7.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import atomic_write_bytes, not_opened
from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.data.downsampling import downsample_labels
from syntheocc.occupancy.data.frames import Frame, about
from syntheocc.occupancy.data.png16 import read_png16, write_png16
from syntheocc.occupancy.grids import NYUV2, OccupancyGrid
from syntheocc.occupancy.taxonomy import UNKNOWN
from syntheocc.occupancy.transforms import numbers, rigid_transform

__all__ = [
    "CLASS_OF_ID",
    "INTRINSICS",
    "NyuVoxels",
    "decode_runs",
    "encode_runs",
    "nyuv2_camera",
    "read_depth",
    "read_nyuv2",
    "read_nyuv2_frame",
    "read_nyuv2_frames",
    "read_nyuv2_pose",
    "read_nyuv2_targets",
    "read_nyuv2_voxels",
    "write_depth",
    "write_nyuv2",
]

FILE_SHAPE = (240, 144, 240)  # x, up, y
_HEADER = 4 * (3 + 16)

# SSCNet's ids 0..36 -> the 12 classes of NYUV2_TAXONOMY.
CLASS_OF_ID = (
    0, 1, 2, 3, 4, 11, 5, 6, 7, 8, 8, 10, 10, 10, 11, 11, 9, 8, 11, 11, 11, 11, 11, 11, 11, 11, 11, 10, 10, 11, 8, 10,
    11, 9, 11, 11, 11,
)  # fmt: skip
_TABLE = np.full(256, UNKNOWN, np.uint8)
_TABLE[: len(CLASS_OF_ID)] = CLASS_OF_ID

INTRINSICS = ((518.8579, 0.0, 320.0), (0.0, 518.8579, 240.0), (0.0, 0.0, 1.0))
IMAGE_SIZE = (480, 640)
CAMERA_NAME = "camera"


@dataclass(frozen=True, eq=False)
class NyuVoxels:
    """A `.bin` as it is stored.

    Args:
        ids: uint8 [240, 144, 240] (x, up, y): SSCNet ids 0..36, 255 unknown.
        origin: float64 [3] the grid's lower corner in the world, metres.
        cam2world: float64 [4, 4].

    Raises:
        ValueError: ids of another shape, type or range, an origin that is not finite, a pose that is not rigid.
    """

    ids: np.ndarray
    origin: Tensor
    cam2world: Tensor

    def __post_init__(self):
        ids = np.asarray(self.ids)
        if ids.shape != FILE_SHAPE or ids.dtype != np.uint8:
            raise ValueError(f"NYU voxels are uint8 {list(FILE_SHAPE)} [x, up, y], got {ids.dtype} {list(ids.shape)}")
        _check_ids(ids)
        origin = numbers(self.origin, "the voxel origin")
        if tuple(origin.shape) != (3,) or not bool(torch.isfinite(origin).all()):
            raise ValueError(f"the voxel origin must be three finite metres, got {origin.tolist()}")
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "origin", origin)
        object.__setattr__(self, "cam2world", rigid_transform(self.cam2world, "cam2world"))

    def grid(self) -> OccupancyGrid:
        """The 12 classes on the 60 x 60 x 36 voxels of 0.08 m, [x, y, up] in world axes."""
        labels = downsample_labels(_TABLE[self.ids], 4).transpose(0, 2, 1)
        grid2world = torch.eye(4, dtype=torch.float64)
        grid2world[:3, 3] = self.origin
        return OccupancyGrid(np.ascontiguousarray(labels), *NYUV2, grid2world)


def decode_runs(pairs: np.ndarray, size: int) -> np.ndarray:
    """Expand (value, run length) pairs uint32 [2 n] to uint8 [size].

    Raises:
        ValueError: an odd number of entries, a value past 255, or runs that do not add up to the size.
    """
    pairs = np.asarray(pairs)
    if pairs.ndim != 1 or len(pairs) % 2:
        raise ValueError(f"runs are pairs of value and length, got {pairs.size} numbers")
    values, lengths = pairs[0::2], pairs[1::2].astype(np.int64)
    # Before expanding: a damaged length may ask for more than any memory holds.
    if int(lengths.sum()) != size:
        raise ValueError(f"runs of {int(lengths.sum())} voxels, want {size}; the file is cut or a dummy")
    if len(values) and int(values.max()) > UNKNOWN:
        raise ValueError(f"a run of value {int(values.max())}; ids are 0..36 and 255, the file is damaged")
    return np.repeat(values.astype(np.uint8), lengths)


def encode_runs(values: np.ndarray) -> np.ndarray:
    """The (value, run length) pairs, uint32 [2 n], of a flat array of ids."""
    values = np.asarray(values).ravel()
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] ^ 1)) if len(values) else np.zeros(0, np.int64)
    lengths = np.diff(starts, append=len(values))
    return np.stack([values[starts], lengths], 1).astype("<u4").ravel()


def read_nyuv2_voxels(path: str | os.PathLike) -> NyuVoxels:
    """Read a `.bin` as stored; ValueError for a cut or damaged file, wrong counts included."""
    origin, cam2world, pairs = _stored(path)
    with about(str(path)):
        ids = decode_runs(pairs, int(np.prod(FILE_SHAPE)))
        return NyuVoxels(ids.reshape(FILE_SHAPE), origin, cam2world)


def read_nyuv2_targets(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """The labels that OccDepth learns from: `read_nyuv2(path).labels` and those of voxels four times as large.

    Returns:
        uint8 [60, 60, 36] and [15, 15, 9] of 12 classes, 255 unknown; both downsampled from the file's 0.02 m.

    Raises:
        ValueError: as `read_nyuv2_voxels`.
    """
    _, _, pairs = _stored(path)
    with about(str(path)):
        _check_ids(pairs[0::2])
        # Runs take their classes before they are voxels: there are a hundred times fewer.
        mapped = pairs.copy()
        mapped[0::2] = _TABLE[np.minimum(pairs[0::2], UNKNOWN)]
        classes = decode_runs(mapped, int(np.prod(FILE_SHAPE))).reshape(FILE_SHAPE)
    fine, coarse = (downsample_labels(classes, factor).transpose(0, 2, 1) for factor in (4, 16))
    return np.ascontiguousarray(fine), np.ascontiguousarray(coarse)


def read_nyuv2_pose(path: str | os.PathLike) -> tuple[Tensor, Tensor]:
    """The grid's lower corner float64 [3] (metres, world) and cam2world float64 [4, 4] of a `.bin`, from its header.

    Raises:
        ValueError: no such file, a cut header, or numbers that are no pose.
    """
    try:
        with open(path, "rb") as file:
            return _pose(file.read(_HEADER), path)
    except OSError as error:
        raise not_opened(path, error) from error


def _pose(header: bytes, path: str | os.PathLike) -> tuple[Tensor, Tensor]:
    if len(header) < _HEADER:
        raise ValueError(f"{path}: {len(header)} bytes are no header of {_HEADER} and pairs of 8; it is cut")
    values = torch.from_numpy(np.frombuffer(header, "<f4").astype(np.float64))
    with about(str(path)):
        if not bool(torch.isfinite(values[:3]).all()):
            raise ValueError(f"the voxel origin must be three finite metres, got {values[:3].tolist()}")
        return values[:3], rigid_transform(values[3:].reshape(4, 4), "cam2world")


def _stored(path: str | os.PathLike) -> tuple[Tensor, Tensor, np.ndarray]:
    """Origin, cam2world and the pairs uint32 [2 n] of a `.bin`."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise not_opened(path, error) from error
    if len(data) < _HEADER or (len(data) - _HEADER) % 8:
        raise ValueError(
            f"{path}: {len(data)} bytes are no header of {_HEADER} and pairs of 8; it is cut or of another kind"
        )
    return *_pose(data[:_HEADER], path), np.frombuffer(data, "<u4", offset=_HEADER)


def _check_ids(ids: np.ndarray) -> None:
    bad = ids[(ids >= len(CLASS_OF_ID)) & (ids != UNKNOWN)]
    if len(bad):
        raise ValueError(f"NYU voxels hold id {int(bad[0])}; SSCNet's ids are 0..36 and 255")


def read_nyuv2(path: str | os.PathLike) -> OccupancyGrid:
    """Read a `.bin` as the 12-class grid [60, 60, 36] that models train on; see `NyuVoxels.grid`."""
    return read_nyuv2_voxels(path).grid()


def write_nyuv2(voxels: NyuVoxels, path: str | os.PathLike) -> None:
    """Write a `.bin`; origin and pose are rounded to float32."""
    header = np.concatenate([voxels.origin.numpy(), voxels.cam2world.numpy().ravel()]).astype("<f4")
    atomic_write_bytes(path, header.tobytes() + encode_runs(voxels.ids).tobytes())


def nyuv2_camera(cam2world: Any) -> Camera:
    """Kinect's colour camera, 640 x 480, at a pose in the world."""
    return Camera(INTRINSICS, cam2world, *IMAGE_SIZE)


def read_nyuv2_frame(path: str | os.PathLike) -> Frame:
    """The frame of a `.bin`: one camera named "camera", ego is the world, extras "depth" where the `.png` exists.

    Only the header is read. The picture `NAME_color.jpg` is named whether or not it exists (`Frame.check_files` says
    so when it matters).
    """
    path = Path(path)
    _, cam2world = read_nyuv2_pose(path)
    depth = path.with_suffix(".png")
    return Frame(
        token=path.stem,
        scene="",
        timestamp_us=0,
        cameras=CameraRig({CAMERA_NAME: nyuv2_camera(cam2world)}),
        image_paths={CAMERA_NAME: path.with_name(f"{path.stem}_color.jpg")},
        occupancy_path=path,
        extras={"depth": depth} if depth.is_file() else {},
    )


def read_nyuv2_frames(root: str | os.PathLike, split: str = "train") -> list[Frame]:
    """The frames of `<root>/NYUtrain` or `<root>/NYUtest` (also below `depthbin/`), in order of their names.

    Raises:
        ValueError: no such folder, no `.bin` in it, or a damaged header.
    """
    if split not in ("train", "test"):
        raise ValueError(f"NYUv2's splits are train and test, which also validates; got {split!r}")
    folders = [Path(root) / f"NYU{split}", Path(root) / "depthbin" / f"NYU{split}"]
    found = next((sorted(folder.glob("*.bin")) for folder in folders if folder.is_dir()), None)
    if not found:
        raise ValueError(f"{folders[0]}: {'no such folder' if found is None else 'no .bin in it'}; give NYUv2's root")
    return [read_nyuv2_frame(path) for path in found]


def read_depth(path: str | os.PathLike) -> np.ndarray:
    """Read a depth `.png`: float32 [H, W] metres along the optical axis, 0 where there is none.

    The published loaders divide the stored number by 8000 and clip at 10 m, which is the same below 8.192 m only.
    """
    stored = read_png16(path)
    return ((stored >> 3) | (stored << 13)).astype(np.float32) / np.float32(1000.0)


def write_depth(depth: np.ndarray, path: str | os.PathLike) -> None:
    """Write depth [H, W] metres; what is not finite, not positive or past 65.535 m becomes 0 (none)."""
    millimetres = np.rint(np.nan_to_num(np.asarray(depth, np.float64), nan=0.0, posinf=0.0, neginf=0.0) * 1000.0)
    millimetres = np.where((millimetres > 0) & (millimetres <= 65535), millimetres, 0).astype(np.uint16)
    write_png16((millimetres << 3) | (millimetres >> 13), path)
