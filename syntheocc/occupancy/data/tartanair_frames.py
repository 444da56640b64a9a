"""The frames of SemanticTartanAir: stereo pairs of `<root>/office/{Easy,Hard}/P00x` and the voxels made of them.

Every fifth frame has voxels: a pickle where someone has exported them, else they are voted from depth and
segmentation as they are read (`tartanair.export_voxels`). Source: specs/occdepth.md 1.8.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.data import tartanair
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.transforms import invert_rigid

__all__ = ["STEREO", "TRAJECTORIES", "read_tartanair_frames", "read_voxels"]

STEREO = ("image_left", "image_right")
# OccDepth's split of the office: difficulty and trajectory.
TRAJECTORIES = {
    "train": tuple(("Easy", f"P00{number}") for number in (0, 1, 2, 3, 4, 6)),
    "val": (("Easy", "P005"),),
}
BASELINE = 0.25  # metres
_EVERY = 5


def read_tartanair_frames(
    root: str | os.PathLike,
    trajectories: str | Iterable[tuple[str, str]] = "train",
    voxels_root: str | os.PathLike | None = None,
    scene: str = "office",
) -> list[Frame]:
    """The frames that have voxels, in order; pictures are not opened.

    Args:
        root: the raw tree, with `office/`.
        trajectories: "train" or "val", of which those that the tree has; or pairs such as ("Hard", "P003").
        voxels_root: folder with `labels/office/Easy/P00x/voxels_left/NNNNNN.pkl`; without, voxels are voted.
        scene: the folder below the root.

    Returns:
        Frames with token `Easy_P000_000005`; ego is the levelled camera's, the cameras `STEREO`; occupancy_path the
        exported voxels, or the segmentation that they are voted from; extras "depth", "segments", "body2world" and,
        where exported, "voxels".

    Raises:
        ValueError: no such split or trajectory, a pose missing for a picture, or no frame.
    """
    base = Path(root) / scene
    if isinstance(trajectories, str):
        if trajectories not in TRAJECTORIES:
            raise ValueError(f"{trajectories!r} is none of the splits {', '.join(TRAJECTORIES)}")
        wanted = [pair for pair in TRAJECTORIES[trajectories] if (base / pair[0] / pair[1]).is_dir()]
    else:
        wanted = list(trajectories)
    frames: list[Frame] = []
    for level, name in wanted:
        exported = None if voxels_root is None else Path(voxels_root) / "labels" / scene / level / name / "voxels_left"
        frames += _trajectory(base / level / name, f"{level}_{name}", exported)
    if not frames:
        raise ValueError(f"{base}: no frames of {trajectories}; give the raw tree's root, whose {scene}/Easy/P000 is")
    return frames


def read_voxels(frame: Frame, index_rule: str = "rint") -> tartanair.TartanAirVoxels:
    """A frame's voxels: the exported ones, or voted now; ValueError naming a missing or damaged file."""
    if "voxels" in frame.extras:
        return tartanair.read_tartanair(frame.extras["voxels"], index_rule)
    depth, segments = tartanair.read_depth(frame.extras["depth"]), tartanair.read_segments(frame.extras["segments"])
    if depth.shape != segments.shape:
        raise ValueError(f"{frame.extras['segments']}: {segments.shape} pixels, its depth picture has {depth.shape}")
    return tartanair.export_voxels(depth, segments, frame.extras["body2world"], index_rule=index_rule)


def _trajectory(folder: Path, name: str, exported: Path | None) -> list[Frame]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such trajectory")
    left = tartanair.read_poses(folder / "pose_left.txt")
    apart = _right2left(folder, left)
    frames = []
    for picture in sorted((folder / "image_left").glob("*_left.png")):
        number = picture.name.removesuffix("_left.png")
        if not number.isdigit() or int(number) % _EVERY:
            continue
        if int(number) >= len(left):
            raise ValueError(f"{folder / 'pose_left.txt'}: {len(left)} poses, but there is {picture}; it is cut")
        body2world = left[int(number)]
        cam2ego = tartanair.CAM2EGO_AXES @ tartanair.levelled(body2world)
        cameras = [Camera(tartanair.INTRINSICS, pose, *tartanair.IMAGE_SIZE) for pose in (cam2ego, cam2ego @ apart)]
        right = folder / "image_right" / f"{number}_right.png"
        extras: dict[str, Any] = {
            "body2world": body2world,
            "depth": folder / "depth_left" / f"{number}_left_depth.npy",
            "segments": folder / "seg_left" / f"{number}_left_seg.npy",
        }
        frames.append(
            Frame(
                token=f"{name}_{number}",
                scene=name,
                timestamp_us=0,
                cameras=CameraRig(dict(zip(STEREO, cameras, strict=True))),
                image_paths=dict(zip(STEREO, (picture, right), strict=True)),
                occupancy_path=extras["segments"] if exported is None else exported / f"{number}.pkl",
                extras=extras | ({} if exported is None else {"voxels": exported / f"{number}.pkl"}),
            )
        )
    return frames


def _right2left(folder: Path, left: Tensor) -> Tensor:
    """The right camera in the left one's axes, float64 [4, 4]: of the first poses, as published."""
    path = folder / "pose_right.txt"
    apart = torch.eye(4, dtype=torch.float64)
    apart[0, 3] = BASELINE
    if path.is_file() and len(left):
        right = tartanair.read_poses(path)
        if len(right):
            apart = tartanair.CAM2BODY.T @ invert_rigid(left[0]) @ right[0] @ tartanair.CAM2BODY
    return apart
