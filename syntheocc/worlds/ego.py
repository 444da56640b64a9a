"""The ego car: its poses, its body, and its sensors' calibration."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.worlds.actors import Parked, Travel, on_ground
from syntheocc.worlds.ground import Ground
from syntheocc.worlds.palette import Palette
from syntheocc.worlds.primitives import Primitives
from syntheocc.worlds.solids import Solids
from syntheocc.worlds.street import LIDAR2EGO, nominal_rig

__all__ = ["EGO_BOX", "Ego", "ego_body", "jittered_lidar", "jittered_rig", "sway"]

# Corners of the ego car's box in its own frame, metres (a Renault Zoe: 4.08 x 1.73 x 1.56).
EGO_BOX = ((-0.75, -0.87, 0.0), (3.33, 0.87, 1.56))
MAX_SWAY = 0.012  # radians of pitch and of roll beyond the ground's


@dataclass(frozen=True, eq=False)
class Ego:
    """The ego car; its frame is nuScenes': below the middle of the rear axle, on the ground, x forward, z up.

    Args:
        motion: where it drives.
        ground: what it drives on; the body is tilted as the ground is.
        sway: float64 [K, 4] of small rocking of the body: axis (0 pitch, 1 roll), amplitude (radians), rate (radians a
            second), phase.
    """

    motion: Parked | Travel
    ground: Ground
    sway: np.ndarray  # [K, 4]

    def poses_at(self, times: np.ndarray | list[float]) -> np.ndarray:
        """float64 [T, 4, 4] ego2global at times [T] (seconds)."""
        times = np.asarray(times, dtype=np.float64)
        poses = on_ground(self.ground, self.motion.planar(times))
        rocking = np.zeros((*times.shape, 2))
        for axis, amplitude, rate, phase in self.sway:
            rocking[..., int(axis)] += amplitude * np.sin(rate * times + phase)
        pitch, roll = rocking[..., 0], rocking[..., 1]
        zero, one = np.zeros_like(pitch), np.ones_like(pitch)
        about_y = np.stack([np.cos(pitch), zero, np.sin(pitch), zero, one, zero, -np.sin(pitch), zero, np.cos(pitch)])
        about_x = np.stack([one, zero, zero, zero, np.cos(roll), -np.sin(roll), zero, np.sin(roll), np.cos(roll)])
        turn = [np.moveaxis(m, 0, -1).reshape(*times.shape, 3, 3) for m in (about_y, about_x)]
        poses[..., :3, :3] = poses[..., :3, :3] @ turn[0] @ turn[1]
        return poses

    def pose_at(self, t: float) -> Tensor:
        """float64 [4, 4] ego2global at time t (seconds)."""
        return torch.from_numpy(self.poses_at([t])[0])

    def velocity_at(self, t: float) -> Tensor:
        """float64 [3] m/s along the world's axes at time t, a central difference over 2 ms."""
        before, after = self.poses_at([t - 1e-3, t + 1e-3])[:, :3, 3]
        return torch.from_numpy((after - before) / 2e-3)


def sway(random: np.random.Generator) -> np.ndarray:
    """Rocking for `Ego`: a slow and a quick part of pitch and of roll, below MAX_SWAY each."""
    rows = []
    for axis in (0, 1):
        rows.append((axis, random.uniform(0.001, 0.007), random.uniform(1.0, 2.2), random.uniform(0, 2 * np.pi)))
        rows.append((axis, random.uniform(0.0005, 0.004), random.uniform(6.0, 10.0), random.uniform(0, 2 * np.pi)))
    return np.array(rows)


def ego_body(random: np.random.Generator, paint: Palette) -> Primitives:
    """The car's own solids in the ego frame; the rear of its roof shows at the bottom of CAM_BACK."""
    lacquer, glass = paint.pick("lacquer", random), paint.pick("glass", random)
    body = Solids("vehicle.ego")
    body.box((-0.75, -0.87, 0.2), (3.33, 0.87, 0.82), lacquer)
    body.box((-0.6, -0.66, 0.82), (2.2, 0.66, 1.26), glass)
    body.box((-0.54, -0.62, 1.24), (1.75, 0.62, 1.32), lacquer)
    for x in (0.0, 2.59):
        body.cylinder((x, 0, 0.31), 0.31, 1.72, paint.pick("tyre"), axis="y")
    return body.primitives()


def _turn(angles: np.ndarray) -> Tensor:
    """Rotation matrix [3, 3] of small angles about x, y, z (radians)."""
    x, y, z = angles
    skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(skew)


def jittered_rig(random: np.random.Generator, height: int, width: int) -> CameraRig:
    """The nominal nuScenes cameras, each a little off: another car, another calibration.

    Args:
        random: draws 2 cm, 0.6 degrees, 0.8 % of focal length and 8 pixels (of 1600x900) of standard deviation.
        height: of the images, pixels.
        width: of the images, pixels.
    """
    cameras = {}
    nominal = nominal_rig()
    for name in nominal.names:
        camera = nominal[name]
        cam2ego = camera.cam2ego.clone()
        cam2ego[:3, :3] = cam2ego[:3, :3] @ _turn(random.normal(0, math.radians(0.6), 3))
        cam2ego[:3, 3] += torch.from_numpy(random.normal(0, 0.02, 3))
        intrinsics = camera.intrinsics.clone()
        intrinsics[:2, :2] *= 1 + 0.008 * float(random.normal())
        intrinsics[:2, 2] += torch.from_numpy(random.normal(0, 8.0, 2))
        cameras[name] = Camera(intrinsics, cam2ego, camera.height, camera.width)
    return CameraRig(cameras).resized(height, width)


def jittered_lidar(random: np.random.Generator) -> Tensor:
    """lidar2ego float64 [4, 4]: nominal, off by about 1 cm and 0.3 degrees."""
    pose = torch.from_numpy(LIDAR2EGO.copy())
    pose[:3, :3] = pose[:3, :3] @ _turn(random.normal(0, math.radians(0.3), 3))
    pose[:3, 3] += torch.from_numpy(random.normal(0, 0.01, 3))
    return pose
