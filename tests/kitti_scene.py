"""A KITTI sequence that can be computed by hand: ground, a car's back at 8 m and a wall at 24 m, all textured.

Frames are of the velodyne (x forward, y left, z up). Every frame of a sequence shows the same scene.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from syntheocc.occupancy.data import kitti
from syntheocc.occupancy.data.semantic_kitti import SemanticKittiVoxels, voxelize_scan, write_semantic_kitti
from syntheocc.occupancy.grids import SEMANTIC_KITTI, OccupancyGrid
from syntheocc.worlds.kitti_tree import nominal_calibration

# Axis, place, corners of the other two axes (low, high), edge of the texture's cells; metres.
WALL = (0, 24.05, (-30.0, -3.0), (30.0, 12.0), 0.5)
CAR = (0, 8.05, (-1.5, -1.7), (1.5, 0.3), 0.15)
GROUND = (2, -1.7, (2.0, -30.0), (24.05, 30.0), 0.2)
CLASSES = {"building": 13, "car": 1, "road": 9}


def render(camera) -> tuple[np.ndarray, np.ndarray]:
    """Picture uint8 [H, W, 3] and depth float64 [H, W] metres."""
    rows, columns = np.mgrid[: camera.height, : camera.width]
    rays = camera.pixel_rays(torch.from_numpy(np.stack([columns, rows], -1).reshape(-1, 2).astype(np.float64)))
    ways = (rays @ camera.cam2ego[:3, :3].T).numpy()
    eye = camera.cam2ego[:3, 3].numpy()
    depth, grey = np.full(len(ways), np.inf), np.zeros(len(ways))
    for number, (axis, place, low, high, cell) in enumerate((WALL, CAR, GROUND)):
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (place - eye[axis]) / ways[:, axis]  # rays have z = 1: this is depth
        points = eye + t[:, None] * ways
        across = np.delete(points, axis, 1)
        hit = (t > 0) & (t < depth) & ((across >= low) & (across <= high)).all(1)
        depth[hit], grey[hit] = t[hit], _texture(across[hit] / cell, number)
    image = np.rint(np.stack([grey, 0.8 * grey + 20, 0.9 * grey], -1)).clip(0, 255).astype(np.uint8)
    return image.reshape(*rows.shape, 3), np.where(np.isfinite(depth), depth, 0.0).reshape(rows.shape)


def _texture(places: np.ndarray, seed: int) -> np.ndarray:
    """Random greys at whole places, interpolated between; 20..235."""
    table = np.random.default_rng(seed).uniform(20, 235, (256, 256))
    low = np.floor(places).astype(int)
    u, v = (places - low).T
    a, b = low.T % 256
    c, d = (a + 1) % 256, (b + 1) % 256
    upper = (1 - u) * table[a, b] + u * table[c, b]
    return (1 - v) * upper + v * ((1 - u) * table[a, d] + u * table[c, d])


def scene_grid() -> OccupancyGrid:
    """Labels: the car is solid behind its back; behind the wall, and low down at the sides, nothing is known."""
    labels = np.zeros((256, 256, 32), np.uint8)
    labels[10:120, :, 1] = CLASSES["road"]
    labels[40:60, 120:136, 1:11] = CLASSES["car"]
    labels[120] = CLASSES["building"]
    labels[121:] = 255
    labels[:, :80, :3] = labels[:, 176:, :3] = 255
    return OccupancyGrid(labels, *SEMANTIC_KITTI, torch.eye(4, dtype=torch.float64))


def scene_scan() -> np.ndarray:
    """Points on the surfaces that stand upright, float32 [N, 4]."""
    parts = []
    for axis, place, low, high, _ in (WALL, CAR):
        steps = [np.arange(a + 0.05, b, 0.1) for a, b in zip(low, high, strict=True)]
        across = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 2)
        parts.append(np.insert(across, axis, place, 1))
    points = np.concatenate(parts)
    hidden = (points[:, 0] > 20) & (np.abs(points[:, 1]) < 4.6) & (points[:, 2] < 1.0)  # by the car
    return np.pad(points[~hidden], ((0, 0), (0, 1))).astype(np.float32)


def write_planes(root, sequence="00", names=("000000", "000005"), size=(94, 310), labels=True, depth=False) -> Path:
    """Write a sequence; gives its folder."""
    folder = Path(root) / "sequences" / sequence
    calibration = nominal_calibration(size)
    kitti.write_calib(calibration, folder / "calib.txt")
    rig = kitti.stereo_rig(calibration, size)
    pictures = {name: render(camera) for name, camera in rig.items()}
    scan, grid = scene_scan(), scene_grid()
    for name in names:
        for camera, (image, _) in pictures.items():
            (folder / camera).mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / camera / f"{name}.png")
        kitti.write_scan(scan, folder / "velodyne" / f"{name}.bin")
        if depth:
            kitti.write_depth(pictures["image_2"][1], folder / "depth" / f"{name}.png")
        if labels:
            seen = torch.from_numpy(voxelize_scan(scan))
            masks = SemanticKittiVoxels(grid, seen, grid.labels == 255, grid.labels == 255)
            write_semantic_kitti(masks, folder / "voxels" / f"{name}.label")
    return folder


def make_old(folder: Path) -> None:
    """Turn a sequence's voxels into those of before 2020-08-24: one element late."""
    for path in (folder / "voxels").iterdir():
        if path.suffix == ".label":
            raw = np.fromfile(path, "<u2")
            np.r_[np.uint16(0), raw[:-1]].astype("<u2").tofile(path)
        else:
            bits = np.unpackbits(np.fromfile(path, np.uint8))
            np.packbits(np.r_[np.uint8(0), bits[:-1]]).tofile(path)


def pixel_of(matrix: torch.Tensor, point) -> tuple[float, float, float]:
    """Column, row and depth of a point of the grid's frame by a `velo2img`."""
    u, v, z = (matrix @ torch.tensor([*point, 1.0], dtype=torch.float64))[:3].tolist()
    return u / z, v / z, z


def left_camera(size=(94, 310)):
    """The left camera, and its pose in the velodyne's frame."""
    return kitti.stereo_rig(nominal_calibration(size), size)["image_2"]
