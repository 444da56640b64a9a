"""What benchmarks/sparseocc.py feeds: a drive past six cameras, labels that look like a street, JPEG files."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.perception.dataset import SPARSEOCC_CAMERAS
from syntheocc.occupancy.perception.sparseocc.config import SparseOccConfig
from syntheocc.occupancy.perception.transforms import ImageAugmentation
from syntheocc.occupancy.transforms import invert_rigid

HEIGHT, WIDTH = 900, 1600
# Yaws of nuScenes' cameras, degrees to the left, in the published order.
YAWS = (0, -55, 55, 180, 110, -110)
METRES_A_FRAME = 5.0


def camera_rig() -> CameraRig:
    """Six level cameras with nuScenes' focal lengths."""
    cameras = {}
    for name, yaw in zip(SPARSEOCC_CAMERAS, YAWS, strict=True):
        cos, sin = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
        cam2ego = torch.eye(4, dtype=torch.float64)
        cam2ego[:3, :3] = torch.tensor([[sin, 0, cos], [-cos, 0, sin], [0, -1, 0]], dtype=torch.float64)
        cam2ego[2, 3] = 1.5
        focal = 809.0 if name == "CAM_BACK" else 1266.0
        intrinsics = [[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]]
        cameras[name] = Camera(intrinsics, cam2ego, HEIGHT, WIDTH)
    return CameraRig(cameras)


def ego_pose(index: int) -> Tensor:
    """Straight ahead, one step a frame."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3] = METRES_A_FRAME * index
    return pose


def projections(config: SparseOccConfig) -> Tensor:
    """ego2img [1, T, V, 4, 4] of a frame with a full history."""
    height, width = config.image_size
    window = ImageAugmentation(height=height, width=width).for_test(HEIGHT, WIDTH).matrix()
    rows = []
    for age in range(config.num_frames):
        row = []
        for camera in camera_rig().values():
            intrinsics = torch.eye(4, dtype=torch.float64)
            intrinsics[:3, :3] = camera.intrinsics
            row.append(window @ intrinsics @ invert_rigid(ego_pose(-age) @ camera.cam2ego))
        rows.append(torch.stack(row))
    return torch.stack(rows)[None].float()


def street_labels(config: SparseOccConfig, seed: int = 0) -> Tensor:
    """uint8 [1, X, Y, Z]: a ground plane, walls on both sides and boxes of every class."""
    rng = np.random.default_rng(seed)
    x, y, z = config.grid.shape
    labels = np.full((x, y, z), config.taxonomy.free, np.uint8)
    occupied = config.occupied_classes
    labels[:, :, z // 8] = occupied[-1]
    for edge in (y // 6, y - y // 6):
        labels[:, edge : edge + max(1, y // 50), z // 8 : z // 2] = occupied[-2]
    for label in occupied:
        for _ in range(3):
            i, j = int(rng.integers(0, max(1, x - 10))), int(rng.integers(0, max(1, y - 5)))
            labels[i : i + 10, j : j + 5, z // 8 + 1 : z // 8 + 5] = label
    return torch.from_numpy(labels)[None]


def write_drive(folder: Path, frames: int, size: tuple[int, int] = (HEIGHT, WIDTH), pictures: int = 12) -> list[Frame]:
    """Key frames with JPEGs of nuScenes' size and detail (about 150 kB at quality 90), written below a folder."""
    from PIL import Image

    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(pictures):
        # Detail on several scales: each octave half as strong and twice as fine.
        total = np.zeros((*size, 3), np.float32)
        for octave in range(2, 9):
            noise = rng.normal(size=(2 + size[0] // 2 ** (9 - octave), 2 + size[1] // 2 ** (9 - octave), 3))
            planes = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(noise, -1, 0)]
            enlarged = [np.asarray(p.resize(size[::-1], Image.Resampling.BICUBIC)) for p in planes]
            total += np.stack(enlarged, -1) * 40 / 1.7 ** (octave - 2)
        encoded.append(Image.fromarray((total + 128).clip(0, 255).astype(np.uint8)))
    rig = CameraRig({name: camera.resized(*size) for name, camera in camera_rig().items()})
    made = []
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(pictures):
        encoded[i].save(folder / f"picture{i}.jpg", quality=90)
    for index in range(frames):
        paths = {}
        for v, name in enumerate(rig):
            # Files of their own, as in a data set; what they show does not matter.
            paths[name] = folder / f"{index}-{name}.jpg"
            paths[name].write_bytes((folder / f"picture{(index * len(rig) + v) % pictures}.jpg").read_bytes())
        made.append(
            Frame(
                token=f"frame-{index}",
                scene="drive",
                timestamp_us=500_000 * index,
                cameras=rig,
                image_paths=paths,
                ego2global=ego_pose(index),
            )
        )
    return made
