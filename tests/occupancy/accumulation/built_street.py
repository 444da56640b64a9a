"""A street by hand, written as a nuScenes data root: what the sensors must make of it is known to the centimetre.

Flat road at z = 0, a wall at y = 8, a car parked at the right and one that drives past at 8 m/s. The own car drives
2 m from key frame to key frame, half a second each; between two key frames the lidar turns `BETWEEN` times more.
"""

import json
from pathlib import Path

import numpy as np
import torch

from syntheocc.occupancy.cameras import NUSCENES_CAMERAS, Camera, CameraRig
from syntheocc.occupancy.data.frames import Boxes, Frame
from syntheocc.occupancy.data.lidar import write_lidar
from syntheocc.occupancy.data.lidarseg import LIDARSEG_NAMES
from syntheocc.occupancy.data.nuscenes_frames import write_nuscenes

VERSION = "v1.0-street"
BETWEEN = 2
WALL, SPEED, OWN_SPEED = 8.0, 8.0, 4.0
SIZE = torch.tensor([4.0, 2.0, 1.6])
ROAD, MANMADE, CAR = (LIDARSEG_NAMES.index(n) for n in ("flat.driveable_surface", "static.manmade", "vehicle.car"))
START_US = 1_600_000_000_000_000
LIDAR2EGO = torch.tensor([[0.0, 1, 0, 0.9], [-1, 0, 0, 0], [0, 0, 1, 1.8], [0, 0, 0, 1]], dtype=torch.float64)


def pose(x, y, z=0.0):
    at = torch.eye(4, dtype=torch.float64)
    at[:3, 3] = torch.tensor([x, y, z])
    return at


def ego_at(t):
    return pose(OWN_SPEED * t, 0.0)


def cars_at(t):
    """Global poses of the parked and the driving car."""
    return torch.stack([pose(12.0, -5.0, 0.8), pose(-6.0 + SPEED * t, -3.0 + 6.0, 0.8)])


def scan(t, rings=32, columns=360):
    """A sweep at an instant: points float32 [N, 5] in the lidar frame, raw categories uint8 [N]."""
    elevation = np.radians(np.linspace(-30, 10, rings))[:, None]
    azimuth = (np.arange(columns) * 2 * np.pi / columns)[None]
    rays = np.stack(
        np.broadcast_arrays(
            np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
        ),
        -1,
    ).reshape(-1, 3)
    ring = np.repeat(np.arange(rings), columns)
    lidar2global = (ego_at(t) @ LIDAR2EGO).numpy()
    origin, way = lidar2global[:3, 3], rays @ lidar2global[:3, :3].T
    best, kind = np.full(len(way), np.inf), np.zeros(len(way), np.uint8)
    with np.errstate(divide="ignore", invalid="ignore"):
        road = -origin[2] / way[:, 2]
        hit = (road > 0) & (road < 60)
        best[hit], kind[hit] = road[hit], ROAD
        wall = (WALL - origin[1]) / way[:, 1]
        height = origin[2] + wall * way[:, 2]
        hit = (wall > 0) & (wall < best) & (wall < 60) & (height > 0) & (height < 3)
        best[hit], kind[hit] = wall[hit], MANMADE
        for car in cars_at(t).numpy():
            low, high = car[:3, 3] - SIZE.numpy() / 2, car[:3, 3] + SIZE.numpy() / 2
            near, far = (low - origin) / way, (high - origin) / way
            enter, leave = np.minimum(near, far).max(1), np.maximum(near, far).min(1)
            hit = (enter > 0) & (enter < leave) & (enter < best)
            best[hit], kind[hit] = enter[hit], CAR
    back = np.isfinite(best)
    rows = np.concatenate([rays[back] * best[back, None], np.full((back.sum(), 1), 20.0), ring[back, None]], 1)
    return rows.astype(np.float32), kind[back]


def rig():
    """Six cameras of 60 degrees each, all round, 1.6 m up."""
    cameras = {}
    for i, name in enumerate(NUSCENES_CAMERAS):
        yaw = np.radians(60.0 - 60.0 * i)
        forward, left = np.array([np.cos(yaw), np.sin(yaw), 0]), np.array([-np.sin(yaw), np.cos(yaw), 0])
        cam2ego = np.eye(4)
        cam2ego[:3, :3] = np.stack([-left, [0, 0, -1], forward], 1)
        cam2ego[:3, 3] = [1.0, 0, 1.6]
        cameras[name] = Camera([[80.0, 0, 49.5], [0, 80.0, 31.5], [0, 0, 1]], cam2ego, 64, 100)
    return CameraRig(cameras)


def write_street(root: Path, key_frames=3, lidarseg=True):
    """Write the data root; returns the key frames as they were written."""
    frames = []
    for k in range(key_frames):
        t = 0.5 * k
        token = f"sample{k}"
        cars = torch.linalg.inv(ego_at(t)) @ cars_at(t)
        boxes = Boxes(
            cars, SIZE.expand(2, 3), ("car", "car"), num_lidar_points=[9, 9], instance_tokens=("parked", "driving")
        )
        path = root / f"samples/LIDAR_TOP/sweep{k}.pcd.bin"
        points, kinds = scan(t)
        write_lidar(points, path)
        if lidarseg:
            label = root / f"lidarseg/{VERSION}/lidar{k}_lidarseg.bin"
            label.parent.mkdir(parents=True, exist_ok=True)
            kinds.tofile(label)
        frames.append(
            Frame(
                token, "street", START_US + 500_000 * k, rig(),
                {name: root / f"samples/{name}/{k}.jpg" for name in NUSCENES_CAMERAS}, path, LIDAR2EGO, ego_at(t),
                boxes, extras={"lidar_token": f"lidar{k}"},
            )
        )  # fmt: skip
    write_nuscenes(root, VERSION, frames)
    _add_sweeps(root, key_frames)
    return frames


def _add_sweeps(root, key_frames):
    """Rows and files of the sweeps between key frames."""
    folder = root / VERSION
    data, poses = (json.loads((folder / f"{name}.json").read_text()) for name in ("sample_data", "ego_pose"))
    mount = next(row["calibrated_sensor_token"] for row in data if row["token"] == "lidar0")
    for k in range(1, key_frames):
        for i in range(1, BETWEEN + 1):
            t = 0.5 * (k - 1) + 0.5 * i / (BETWEEN + 1)
            name, stamp = f"between{k}-{i}", START_US + round(1e6 * t)
            write_lidar(scan(t)[0], root / f"sweeps/LIDAR_TOP/{name}.pcd.bin")
            at = ego_at(t)[:3, 3].tolist()
            poses.append({"token": name, "timestamp": stamp, "translation": at, "rotation": [1, 0, 0, 0]})
            data.append(
                {"token": name, "sample_token": f"sample{k}", "ego_pose_token": name, "calibrated_sensor_token": mount,
                 "timestamp": stamp, "fileformat": "pcd", "is_key_frame": False, "height": 0, "width": 0,
                 "filename": f"sweeps/LIDAR_TOP/{name}.pcd.bin", "prev": "", "next": ""}
            )  # fmt: skip
    chain = sorted((row for row in data if row["calibrated_sensor_token"] == mount), key=lambda row: row["timestamp"])
    for before, after in zip(chain[:-1], chain[1:], strict=True):
        before["next"], after["prev"] = after["token"], before["token"]
    for name, rows in (("sample_data", data), ("ego_pose", poses)):
        (folder / f"{name}.json").write_text(json.dumps(rows))
