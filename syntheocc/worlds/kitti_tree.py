"""A scene written as a KITTI odometry sequence with SemanticKITTI's labels.

`<root>/sequences/XX/`: `calib.txt` with Tr, `times.txt`, `poses.txt` (10 Hz, all frames), and for every key frame
(2 Hz: each fifth frame, those that SemanticKITTI gives voxels for) `image_2`, `image_3`, `velodyne`, `labels`,
`voxels` (`.bin .label .invalid .occluded`, in the layout since 2020-08-24) and `depth` (exact, of the left picture).
The modules that write here are the ones that read: `occupancy.data.kitti` and `occupancy.data.semantic_kitti`.

The same street carries another sensor set: a velodyne on the roof (x forward, y left, z up) and a rectified stereo
pair before it, all at one instant.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import atomic_write_image
from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.data import kitti
from syntheocc.occupancy.data.semantic_kitti import write_point_labels, write_semantic_kitti
from syntheocc.occupancy.data.semantic_kitti_frames import SEQUENCES
from syntheocc.occupancy.transforms import invert_rigid
from syntheocc.worlds.families import random_for
from syntheocc.worlds.kitti_labels import kitti_voxels, point_labels
from syntheocc.worlds.primitives import Primitives
from syntheocc.worlds.scene import Scene
from syntheocc.worlds.velodyne import AZIMUTHS, HDL64E_DEG, velodyne_scan

__all__ = ["SEQUENCES", "kitti_view", "nominal_calibration", "sequence_names", "write_kitti_sequence"]

IMAGE_SIZE = (376, 1241)  # height, width of sequence 00
FRAME_RATE = 10.0

# The velodyne in the car's frame (rear axle, on the ground), metres.
_VELODYNE2EGO = torch.eye(4, dtype=torch.float64)
_VELODYNE2EGO[:3, 3] = torch.tensor([0.76, 0.0, 1.73])
# Camera 0 in the velodyne's frame, and the colour pair's offsets from it (cam0 axes, metres), as in sequence 00.
_CAM0 = (0.27, 0.0, -0.08)
_OFFSETS = {
    "P0": (0.0, 0.0, 0.0),
    "P1": (-0.5372, 0.0, 0.0),
    "P2": (0.06, -1e-3, 3.8e-3),
    "P3": (-0.4733, 2e-3, 4.9e-3),
}
_AXES = torch.tensor([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]], dtype=torch.float64)  # velodyne to camera


def sequence_names(splits: Sequence[str]) -> list[str]:
    """SemanticKITTI's sequence numbers for scenes of these splits, in order.

    Raises:
        ValueError: an unknown split, or more scenes of one than KITTI has sequences (10 train, 1 val, 11 test).
    """
    left = {split: list(names) for split, names in SEQUENCES.items()}
    out = []
    for split in splits:
        if split not in left:
            raise ValueError(f"split must be one of {', '.join(SEQUENCES)}; got {split!r}")
        if not left[split]:
            raise ValueError(
                f"SemanticKITTI has {len(SEQUENCES[split])} {split} sequences, but {splits.count(split)} scenes are "
                f"to be written as such; write fewer, or into another root"
            )
        out.append(left[split].pop(0))
    return out


def nominal_calibration(size: tuple[int, int] = IMAGE_SIZE, seed: int | None = None) -> kitti.KittiCalibration:
    """A calibration like sequence 00's, for pictures of (height, width) pixels.

    With a seed the mounting angles differ by about half a degree, as they do between KITTI's recording days.
    """
    height, width = size
    focal = 718.856 * width / IMAGE_SIZE[1]
    center = (607.1928 * width / IMAGE_SIZE[1], 185.2157 * height / IMAGE_SIZE[0])
    intrinsics = torch.tensor([[focal, 0, center[0]], [0, focal, center[1]], [0, 0, 1]], dtype=torch.float64)
    lidar2cam0 = torch.eye(4, dtype=torch.float64)
    lidar2cam0[:3, :3] = _AXES
    if seed is not None:
        x, y, z = random_for(seed, "kitti calibration").normal(0.0, 0.008, 3)
        skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
        lidar2cam0[:3, :3] = torch.linalg.matrix_exp(skew) @ _AXES
    lidar2cam0[:3, 3] = -lidar2cam0[:3, :3] @ torch.tensor(_CAM0, dtype=torch.float64)
    projections = {
        name: torch.cat([intrinsics, intrinsics @ torch.tensor(offset, dtype=torch.float64)[:, None]], 1)
        for name, offset in _OFFSETS.items()
    }
    return kitti.KittiCalibration(projections, lidar2cam0)


def kitti_view(scene: Scene, rig: CameraRig) -> Scene:
    """The scene with KITTI's sensors in place of nuScenes'.

    Args:
        scene: any scene.
        rig: cameras whose ego is the velodyne (`kitti.stereo_rig`).

    Returns:
        A scene whose lidar2ego is the velodyne's, with these cameras mounted on the car, and without the car's body,
        which no KITTI picture shows.
    """
    mounted = {name: camera.moved(_VELODYNE2EGO @ camera.cam2ego) for name, camera in rig.items()}
    return replace(scene, rig=CameraRig(mounted), lidar2ego=_VELODYNE2EGO.clone(), ego_body=Primitives.empty())


def write_kitti_sequence(
    scene: Scene,
    root: str | os.PathLike,
    sequence: str,
    size: tuple[int, int] = IMAGE_SIZE,
    rig: CameraRig | None = None,
    frames: Iterable[int] | None = None,
    beams_deg: tuple[float, ...] = HDL64E_DEG,
    azimuths: int = AZIMUTHS,
) -> Path:
    """Write one sequence; frames whose files exist are left as they are.

    Args:
        scene: the scene.
        root: the folder that will hold `sequences/`.
        sequence: "00".."21" (`sequence_names`).
        size: (height, width) of the pictures where no rig is given.
        rig: a rectified pair named image_2 and image_3 whose ego is the velodyne; `nominal_calibration` with the
            scene's seed unless given.
        frames: which key frames to write; all unless given. The calibration, times and poses are always written.
        beams_deg: elevations of the velodyne's beams, degrees.
        azimuths: its firings a turn.

    Returns:
        The sequence's folder.

    Raises:
        ValueError: a rig that KITTI's calibration cannot hold, or a key frame that the scene has not.
    """
    if rig is None:
        calibration = nominal_calibration(size, scene.seed)
        rig = kitti.stereo_rig(calibration, size)
    else:
        calibration = kitti.calibration_of(rig.select(kitti.STEREO))
    view = kitti_view(scene, rig.select(kitti.STEREO))
    chosen = list(range(len(scene.key_times))) if frames is None else list(frames)
    missing = [index for index in chosen if not 0 <= index < len(scene.key_times)]
    if missing:
        raise ValueError(f"{scene.name} has key frames 0..{len(scene.key_times) - 1}, not {missing}")
    folder = Path(root) / "sequences" / sequence
    start = scene.key_times[0]
    times = np.arange(round((scene.key_times[-1] - start) * FRAME_RATE) + 1) / FRAME_RATE
    kitti.write_calib(calibration, folder / "calib.txt")
    kitti.write_times(times, folder / "times.txt")
    kitti.write_poses(_cam0_poses(view, calibration.lidar2cam0, start + times), folder / "poses.txt")
    for index in chosen:
        _write_frame(view, folder, scene.key_times[index], start, beams_deg, azimuths)
    return folder


def _cam0_poses(view: Scene, lidar2cam0: Tensor, times: np.ndarray) -> Tensor:
    """Camera 0 at each time to camera 0 at the first, float64 [T, 4, 4]."""
    cam02world = torch.from_numpy(view.ego.poses_at(times)) @ view.lidar2ego @ invert_rigid(lidar2cam0)
    return invert_rigid(cam02world[0]) @ cam02world


def _write_frame(
    view: Scene, folder: Path, t: float, start: float, beams_deg: tuple[float, ...], azimuths: int
) -> None:
    from syntheocc.worlds.camera_images import render_view

    name = f"{round((t - start) * FRAME_RATE):06d}"
    done = folder / "voxels" / f"{name}.label"
    if done.is_file():
        return
    ego2global = view.ego.pose_at(t)
    for camera in view.rig:
        shot = render_view(view, view.rig[camera], ego2global, t)
        atomic_write_image(folder / camera / f"{name}.png", np.asarray(shot.image.cpu()))
        if camera == next(iter(kitti.STEREO)):
            kitti.write_depth(np.asarray(shot.depth.cpu()), folder / "depth" / f"{name}.png")
    scan = velodyne_scan(view, t, ego2global @ view.lidar2ego, beams_deg, azimuths)
    kitti.write_scan(scan.points, folder / "velodyne" / f"{name}.bin")
    write_point_labels(*point_labels(view, t, scan), folder / "labels" / f"{name}.label")
    # Last: it tells a resumed job that the frame is complete.
    write_semantic_kitti(kitti_voxels(view, t, scan), done)
