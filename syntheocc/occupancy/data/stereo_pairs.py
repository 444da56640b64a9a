"""Any calibrated stereo pair as a frame: two pictures and a KITTI `calib.txt`, or the numbers themselves.

For pictures that lie in no KITTI odometry tree (`kitti.read_sequence` reads those): the object benchmark's pairs, or a
rig of one's own. Ego is the velodyne frame of the calibration (x forward, y left, z up), or whatever frame the given
pose ends in; SemanticKITTI's grid begins 2 m below and at x = 0 of it.
"""

import os
from pathlib import Path
from typing import Any

import torch

from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.kitti import STEREO, read_calib, stereo_rig
from syntheocc.occupancy.data.picture_sizes import picture_size

__all__ = ["calibrated_pair", "read_object_frames", "read_stereo_pair"]


def read_stereo_pair(
    left: str | os.PathLike,
    right: str | os.PathLike,
    calib: str | os.PathLike,
    lidar: str | os.PathLike | None = None,
    token: str | None = None,
) -> Frame:
    """The frame of two pictures and a `calib.txt` of KITTI's odometry or object benchmark.

    Args:
        left: a picture.
        right: the other one, of the same size.
        calib: with P2, P3 and the velodyne's pose.
        lidar: a velodyne scan of the same moment.
        token: what it is called; the left picture's stem unless given.

    Raises:
        ValueError: a missing or damaged file, pictures of different sizes, or a calibration without the velodyne.
    """
    paths = _pair_of_paths(left, right)
    rig = stereo_rig(read_calib(calib), picture_size(left))
    return _frame(token or Path(left).stem, rig, paths, None if lidar is None else Path(lidar))


def calibrated_pair(
    left: str | os.PathLike,
    right: str | os.PathLike,
    intrinsics: Any,
    baseline: float,
    left2ego: Any,
    token: str | None = None,
) -> Frame:
    """The frame of two rectified pictures of any rig.

    Args:
        left: a picture.
        right: the other one, of the same size.
        intrinsics: [3, 3] pixels, of both.
        baseline: metres from the left camera to the right one.
        left2ego: [4, 4] from the left camera (x right, y down, z forward) to the grid's frame (x forward, y left, z
            up; the ground at about z = -1.7 for a model that learnt from KITTI).
        token: what it is called; the left picture's stem unless given.

    Raises:
        ValueError: pictures of different sizes, a baseline that is not positive, or matrices that are none.
    """
    if not baseline > 0:
        raise ValueError(f"the baseline is {baseline} m; it is positive, the right camera stands to the right")
    paths = _pair_of_paths(left, right)
    apart = torch.eye(4, dtype=torch.float64)
    apart[0, 3] = baseline
    first = Camera(intrinsics, left2ego, *picture_size(left))
    rig = CameraRig(dict(zip(STEREO, (first, first.moved(first.cam2ego @ apart)), strict=True)))
    return _frame(token or Path(left).stem, rig, paths, None)


def read_object_frames(root: str | os.PathLike) -> list[Frame]:
    """The frames of KITTI's object benchmark: `image_2/`, `image_3/`, `calib/NNNNNN.txt`, `velodyne/` in one folder.

    Raises:
        ValueError: no pictures, or a frame that lacks its second picture or calibration.
    """
    root = Path(root)
    frames = []
    for left in sorted((root / "image_2").glob("*.png")):
        scan = root / "velodyne" / f"{left.stem}.bin"
        paths = (left, root / "image_3" / left.name, root / "calib" / f"{left.stem}.txt")
        frames.append(read_stereo_pair(*paths, lidar=scan if scan.is_file() else None))
    if not frames:
        raise ValueError(f"{root / 'image_2'}: no pictures NNNNNN.png; give the folder that holds image_2 and calib")
    return frames


def _pair_of_paths(left: str | os.PathLike, right: str | os.PathLike) -> dict[str, Path]:
    sizes = [picture_size(path) for path in (left, right)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{right}: {sizes[1][0]} x {sizes[1][1]} pixels, but {left} has {sizes[0][0]} x {sizes[0][1]}; a stereo "
            "pair is of one size"
        )
    return dict(zip(STEREO, (Path(left), Path(right)), strict=True))


def _frame(token: str, rig: CameraRig, paths: dict[str, Path], lidar: Path | None) -> Frame:
    return Frame(
        token=token,
        scene="",
        timestamp_us=0,
        cameras=rig,
        image_paths=paths,
        lidar_path=lidar,
        lidar2ego=torch.eye(4, dtype=torch.float64),
    )
