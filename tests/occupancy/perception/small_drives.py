"""Two small drives on disk in a tenth of a second: noise for pictures, a road with cars for labels, infos."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from syntheocc.occupancy.cameras import NUSCENES_CAMERAS, CameraRig
from syntheocc.occupancy.data.frames import Boxes, Frame
from syntheocc.occupancy.data.infos_writing import write_infos
from syntheocc.occupancy.data.nuscenes_frames import write_nuscenes
from syntheocc.occupancy.data.occ3d import Occ3DLabels, occ3d_path, write_occ3d
from syntheocc.occupancy.grids import OCC3D_NUSCENES, OccupancyGrid
from syntheocc.occupancy.taxonomy import UNKNOWN
from syntheocc.worlds.street import LIDAR2EGO

HEIGHT, WIDTH = 54, 96
YAWS = (55, 0, -55, -110, 180, 110)
CAR, ROAD, FREE = 4, 11, 17


def labels_of(frame: Frame) -> Occ3DLabels:
    """A road, a car in each box, seen by the cameras ahead of the car only."""
    labels = torch.full(OCC3D_NUSCENES.spec.shape, FREE, dtype=torch.uint8)
    labels[:, 80:120, 2] = ROAD
    for box in frame.boxes.box2ego:
        x, y = (int((float(box[axis, 3]) + 40) / 0.4) for axis in (0, 1))
        labels[x - 4 : x + 4, y - 2 : y + 2, 3:6] = CAR
    seen = torch.zeros_like(labels, dtype=torch.bool)
    seen[100:] = True
    return Occ3DLabels(OccupancyGrid(labels, *OCC3D_NUSCENES), torch.ones_like(seen), seen)


def write_drives(root: Path, camera_at, scenes: int = 2, key_frames: int = 3) -> list[Frame]:
    """Write pictures, labels (in `gts`), tables and infos: `named.pkl`, and nameless ones: `later.pkl`, `first.pkl`.

    The latter two hold the scenes' first frames and all others; given the later ones first, scenes are out of order.

    Args:
        root: the data root.
        camera_at: the fixture.
        scenes, key_frames: how many.

    Returns:
        the frames, in order.
    """
    rig = CameraRig(
        {
            name: camera_at(yaw, focal=48.0, height=HEIGHT, width=WIDTH)
            for name, yaw in zip(NUSCENES_CAMERAS, YAWS, strict=True)
        }
    )
    noise = np.random.default_rng(0)
    frames: list[Frame] = []
    for scene in range(scenes):
        for i in range(key_frames):
            token = f"s{scene}f{i}"
            paths = {}
            for name in rig.names:
                paths[name] = root / "samples" / name / f"{token}.png"
                paths[name].parent.mkdir(parents=True, exist_ok=True)
                coarse = Image.fromarray(noise.integers(0, 256, (6, 12, 3), dtype=np.uint8))
                coarse.resize((WIDTH, HEIGHT)).save(paths[name])
            lidar = root / "samples" / "LIDAR_TOP" / f"{token}.pcd.bin"
            lidar.parent.mkdir(parents=True, exist_ok=True)
            lidar.write_bytes(b"")
            ego2global = torch.eye(4, dtype=torch.float64)
            ego2global[0, 3] = 3.0 * i
            boxes = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
            boxes[:, :3, 3] = torch.tensor([[12.0 + scene, 3.0, 0.8], [-10.0, -3.0 + i, 0.8]])
            frames.append(
                Frame(
                    token=token,
                    scene=f"scene-{scene:04d}",
                    timestamp_us=10**15 + 10**9 * scene + 500_000 * i,
                    cameras=rig,
                    image_paths=paths,
                    lidar_path=lidar,
                    lidar2ego=torch.from_numpy(LIDAR2EGO),
                    ego2global=ego2global,
                    boxes=Boxes(boxes, torch.tensor([[3.2, 1.6, 1.6]]).repeat(2, 1), ("car", "car")),
                    prev=f"s{scene}f{i - 1}" if i else None,
                )
            )
            write_occ3d(labels_of(frames[-1]), occ3d_path(root / "gts", frames[-1]))
    write_nuscenes(root, "v1.0-mini", frames)
    write_infos(root / "named.pkl", frames, data_root=root)
    for name, is_first in (("first", True), ("later", False)):
        some = [replace(frame, scene="") for frame in frames if (frame.prev is None) == is_first]
        write_infos(root / f"{name}.pkl", some, data_root=root)
    return frames


def relabel(root: Path, frame: Frame, semantics: torch.Tensor) -> None:
    """Give a frame other labels; 255 is seen by no sensor."""
    seen = semantics != UNKNOWN
    grid = OccupancyGrid(torch.where(seen, semantics, FREE), *OCC3D_NUSCENES)
    write_occ3d(Occ3DLabels(grid, seen, seen), occ3d_path(root / "gts", frame))
