"""A hand-made nuScenes frame whose numbers can be checked by hand, and the files it names."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from syntheocc.occupancy.cameras import NUSCENES_CAMERAS, Camera, CameraRig
from syntheocc.occupancy.data.frames import Boxes, Frame
from syntheocc.occupancy.data.lidar import write_lidar


def pose(yaw: float, x: float, y: float, z: float) -> torch.Tensor:
    """A turn by `yaw` about z and a shift."""
    a2b = torch.eye(4, dtype=torch.float64)
    a2b[:2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    a2b[:3, 3] = torch.tensor([x, y, z])
    return a2b


@pytest.fixture
def data_root(tmp_path) -> Path:
    """A data root with six black pictures and a sweep of three points."""
    from PIL import Image

    root = tmp_path / "nuscenes"
    for name in NUSCENES_CAMERAS:
        (root / "samples" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((9, 16, 3), np.uint8)).save(root / "samples" / name / f"car__{name}__1.jpg")
    write_lidar(np.arange(15).reshape(3, 5), root / "samples" / "LIDAR_TOP" / "car__LIDAR_TOP__1.pcd.bin")
    return root


@pytest.fixture
def make_frame(data_root, six_cameras):
    """Frames of a car that drives 1 m a frame; its cameras fired 0.3 m earlier."""

    def make(index: int = 0, boxes: bool = True) -> Frame:
        lidar2ego = pose(-math.pi / 2, 0.9, 0.0, 1.8)
        ego2global = pose(0.5, 100.0 + index, 200.0, 0.0)
        earlier = ego2global @ pose(0.0, -0.3, 0.0, 0.0)
        cameras = {
            name: Camera(c.intrinsics, pose(0.0, -0.3, 0.0, 0.0) @ c.cam2ego, 900, 1600)
            for name, c in six_cameras.items()
        }
        lidar = data_root / "samples" / "LIDAR_TOP" / "car__LIDAR_TOP__1.pcd.bin"
        return Frame(
            token=f"sample{index}",
            scene="scene-0001",
            timestamp_us=1_500_000_000_000_000 + 500_000 * index,
            cameras=CameraRig(cameras),
            image_paths={name: data_root / "samples" / name / f"car__{name}__1.jpg" for name in six_cameras},
            lidar_path=lidar,
            lidar2ego=lidar2ego,
            ego2global=ego2global,
            boxes=Boxes(
                # The car in front keeps its distance, so it drives at 2 m/s too (1 m in half a second).
                box2ego=torch.stack([pose(0.25, 10.0, 2.0, 0.8), pose(-1.0, 5.0, -3.0, 0.9)]),
                sizes=torch.tensor([[4.0, 2.0, 1.6], [0.6, 0.7, 1.8]]),
                names=("car", "pedestrian"),
                velocities=torch.tensor([[2.0, 0.5], [torch.nan, torch.nan]]),
                num_lidar_points=torch.tensor([7, 1]),
                instance_tokens=("car1", "walker1"),
            )
            if boxes
            else None,
            caption="A street, sunny",
            extras={
                "lidar_token": f"lidar{index}",
                "scene_token": "scenetoken",
                "camera_ego2global": {name: earlier for name in six_cameras},
                "camera_timestamps_us": {
                    name: 1_500_000_000_000_000 + 500_000 * index - 40_000 for name in six_cameras
                },
                "camera_tokens": {name: f"{name}{index}" for name in six_cameras},
            },
        )

    return make
