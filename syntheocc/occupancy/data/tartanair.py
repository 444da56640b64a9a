"""SemanticTartanAir (office): poses, depth, segmentation, and the voxel pickles exported from them.

`<root>/office/{Easy,Hard}/P00x/` holds `image_left/NNNNNN_left.png`, `depth_left/NNNNNN_left_depth.npy` (metres),
`seg_left/NNNNNN_left_seg.npy` and `pose_left.txt` (a line a frame: x y z qx qy qz qw, north-east-down).

A voxel file is a pickle of a dict: `vox_origin` [3], `cam_k` [3, 3], `T_velo_2_cam` [4, 4] (grid to camera),
`target_1_1` uint8 [120, 48, 120], `target_1_4` [30, 12, 30], `fov_mask_1_1`, `fov_mask_1_4` [N, 1]. Its grid is
**centred on the camera with the yaw kept and pitch and roll removed**, in camera axes (x right, y down, z forward),
0.1 m from (-6, -3, 0). Labels are the visible surface of one depth map; no voxel is unknown. Here ego is the levelled
camera in ego axes (x forward, y left, z up). Source: specs/occdepth.md 1.8.
"""

import math
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import atomic_write_bytes, atomic_write_text, not_opened, read_npy
from syntheocc.engine.unpickling import safe_load
from syntheocc.occupancy.cameras import Camera
from syntheocc.occupancy.data.downsampling import downsample_labels
from syntheocc.occupancy.data.frames import about
from syntheocc.occupancy.grids import TARTANAIR, GridSpec, OccupancyGrid
from syntheocc.occupancy.transforms import (
    invert_rigid,
    pose_from_quaternion,
    quaternion_from_rotation,
    rotation_z,
    transform_points,
)

__all__ = [
    "CAM2BODY",
    "CAM2EGO_AXES",
    "INDEX_RULES",
    "INTRINSICS",
    "TartanAirVoxels",
    "classes_of_segments",
    "export_voxels",
    "grid2ego",
    "levelled",
    "read_depth",
    "read_poses",
    "read_segments",
    "read_tartanair",
    "write_poses",
    "write_tartanair",
]

INTRINSICS = ((320.0, 0.0, 320.0), (0.0, 320.0, 240.0), (0.0, 0.0, 1.0))
IMAGE_SIZE = (480, 640)

# How a point finds its voxel. The published files take the nearest integer, so their voxel i is centred on i and not
# on i + 0.5; "floor" is what a `GridSpec` says.
INDEX_RULES = ("rint", "floor")

# Camera axes to the body's north-east-down ones (x forward, y right, z down), and to ego's.
CAM2BODY = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
CAM2EGO_AXES = torch.tensor([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)

_SEGMENTS = {
    "ceiling": (22, 147),
    "floor": (139,),
    "wall": (90, 133, 160, 172, 190, 193, 200, 208, 223, 224, 234, 244, 239),
    "window": (101, 146, 231),
    "chair": (211,),
    "rug": (50, 207),
    "sofa": (120, 197),
    "screen": (125, 253),
    "tvs": (148, 158),
    "furn": (232, 173, 115, 144, 145, 152, 189, 185, 205),
    "clock": (28,),
    "bonsai": (137, 249),
}
_CLASS_OF_SEGMENT = np.full(256, TARTANAIR.taxonomy.id_of("objs"), np.uint8)
for _name, _ids in _SEGMENTS.items():
    _CLASS_OF_SEGMENT[list(_ids)] = TARTANAIR.taxonomy.id_of(_name)


@dataclass(frozen=True, eq=False)
class TartanAirVoxels:
    """One voxel file.

    Args:
        grid: the classes, [120, 48, 120] in camera axes, with grid2ego.
        camera: the left camera, its cam2ego included.
    """

    grid: OccupancyGrid
    camera: Camera


def classes_of_segments(segments: np.ndarray) -> np.ndarray:
    """The classes 1..13 of segmentation ids 0..255 (an id without a class is "objs"), uint8 of the same shape."""
    segments = np.asarray(segments)
    if segments.dtype.kind not in "iu" or (segments.size and not 0 <= segments.min() <= segments.max() <= 255):
        raise ValueError(f"TartanAir's segmentation ids are integers 0..255, got {segments.dtype}")
    return _CLASS_OF_SEGMENT[segments]


def read_poses(path: str | os.PathLike) -> Tensor:
    """Read a `pose_left.txt`: body (x forward, y right, z down) to the north-east-down world, float64 [N, 4, 4].

    Raises:
        ValueError: a line that is not seven finite numbers, or whose quaternion is none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise not_opened(path, error) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error}); it is damaged, copy it again") from error
    poses = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        with about(f"{path}: line {number}"):
            values = [float(word) for word in line.split()]
            if len(values) != 7:
                raise ValueError(f"{len(values)} numbers, want x y z qx qy qz qw")
            x, y, z, qx, qy, qz, qw = values
            poses.append(pose_from_quaternion([x, y, z], [qw, qx, qy, qz]))
    return torch.stack(poses) if poses else torch.zeros(0, 4, 4, dtype=torch.float64)


def write_poses(poses: Tensor, path: str | os.PathLike) -> None:
    """Write poses float64 [N, 4, 4] (body to the north-east-down world), a line each."""
    lines = []
    for pose in torch.as_tensor(poses, dtype=torch.float64):
        w, x, y, z = quaternion_from_rotation(pose[:3, :3]).tolist()
        lines.append(" ".join(f"{v:.12e}" for v in (*pose[:3, 3].tolist(), x, y, z, w)) + "\n")
    atomic_write_text(path, "".join(lines))


def read_depth(path: str | os.PathLike) -> np.ndarray:
    """Read a depth `.npy`: float32 [H, W] metres along the optical axis."""
    depth = read_npy(path)
    if depth.ndim != 2 or depth.dtype.kind != "f":
        raise ValueError(f"{path}: depth is float [H, W] metres, got {depth.dtype} {list(depth.shape)}")
    return depth.astype(np.float32)


def read_segments(path: str | os.PathLike) -> np.ndarray:
    """Read a segmentation `.npy`: uint8 [H, W] ids (`classes_of_segments`)."""
    segments = read_npy(path)
    if segments.ndim != 2 or segments.dtype.kind not in "iu" or segments.min() < 0 or segments.max() > 255:
        raise ValueError(f"{path}: segmentation ids are 0..255 [H, W], got {segments.dtype} {list(segments.shape)}")
    return segments.astype(np.uint8)


def levelled(body2world: Tensor) -> Tensor:
    """The camera to its voxel grid's axes: pitch and roll of a pose, without yaw and translation, float64 [4, 4].

    Args:
        body2world: [4, 4] of `read_poses`; R = Rz(yaw) Ry(pitch) Rx(roll).
    """
    yaw = math.atan2(float(body2world[1, 0]), float(body2world[0, 0]))
    level = rotation_z(-yaw) @ body2world
    level[:3, 3] = 0.0
    return CAM2BODY.T @ level @ CAM2BODY


def export_voxels(
    depth: np.ndarray, segments: np.ndarray, body2world: Tensor, intrinsics: Any = INTRINSICS, index_rule: str = "rint"
) -> TartanAirVoxels:
    """Vote the pixels of one depth map into the grid.

    Args:
        depth: [H, W] metres along the optical axis.
        segments: uint8 [H, W] ids.
        body2world: [4, 4], the left camera's pose of `read_poses`.
        intrinsics: [3, 3] pixels.
        index_rule: "rint" as in the published files (half a voxel off, which grid2ego then makes good) or "floor".

    Returns:
        A voxel holds the class of most of its pixels (ties: the smallest id), every other voxel is free.
    """
    if depth.shape != segments.shape or depth.ndim != 2:
        raise ValueError(f"depth {list(depth.shape)} and segments {list(segments.shape)} are both [H, W]")
    cam2grid = levelled(body2world)
    camera = Camera(intrinsics, CAM2EGO_AXES @ cam2grid, *depth.shape)
    rows, columns = np.nonzero(np.isfinite(depth) & (depth > 0))
    rays = camera.pixel_rays(torch.from_numpy(np.stack([columns, rows], 1).astype(np.float64)))
    metres = torch.from_numpy(depth[rows, columns].astype(np.float64))
    points = transform_points(cam2grid, rays * metres[:, None])
    index, inside = _indexing(index_rule).index_of(points)
    flat = np.ravel_multi_index(index[inside].numpy().T, TARTANAIR.spec.shape)
    classes = classes_of_segments(segments)[rows, columns][inside.numpy()].astype(np.int64)
    num_classes = TARTANAIR.taxonomy.num_classes
    hit, place = np.unique(flat, return_inverse=True)
    votes = np.bincount(place * num_classes + classes, minlength=len(hit) * num_classes)
    labels = np.zeros(TARTANAIR.spec.shape, np.uint8)
    labels.ravel()[hit] = votes.reshape(-1, num_classes).argmax(1)
    return TartanAirVoxels(OccupancyGrid(labels, *TARTANAIR, grid2ego(index_rule)), camera)


def read_tartanair(path: str | os.PathLike, index_rule: str = "rint") -> TartanAirVoxels:
    """Read a voxel pickle (`safe_load`).

    Args:
        path: `voxels_left/NNNNNN.pkl`.
        index_rule: how it was exported; the file does not say. Published ones are "rint": their voxels lie half an
            edge nearer the lower corner than `vox_origin` says, and grid2ego accounts for it.

    Raises:
        ValueError: no pickle of plain data, a missing key, another origin or shape, or matrices that are none.
    """
    content = safe_load(path)
    wanted = ("vox_origin", "cam_k", "T_velo_2_cam", "target_1_1")
    if not isinstance(content, dict) or any(key not in content for key in wanted):
        has = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: a voxel file is a dict with {', '.join(wanted)}; this has {has}")
    with about(str(path)):
        origin = np.asarray(content["vox_origin"], np.float64).ravel()
        if origin.shape != (3,) or not np.allclose(origin, TARTANAIR.spec.lower, atol=1e-4):
            raise ValueError(f"vox_origin {origin.tolist()}, want {list(TARTANAIR.spec.lower)}")
        labels = np.asarray(content["target_1_1"])
        grid = OccupancyGrid(labels.astype(np.uint8), *TARTANAIR, grid2ego(index_rule))
        cam2grid = invert_rigid(_matrix(content["T_velo_2_cam"]))
        camera = Camera(content["cam_k"], CAM2EGO_AXES @ cam2grid, *IMAGE_SIZE)
    return TartanAirVoxels(grid, camera)


def write_tartanair(voxels: TartanAirVoxels, path: str | os.PathLike) -> None:
    """Write a voxel pickle with both scales; ValueError for a grid of another geometry or class table."""
    grid, camera = voxels.grid, voxels.camera
    if grid.spec != TARTANAIR.spec or grid.taxonomy != TARTANAIR.taxonomy:
        raise ValueError(
            f"{path}: TartanAir's voxels are {TARTANAIR.spec} with the classes of 'tartanair'; the grid is "
            f"{grid.spec} with {grid.taxonomy.name!r}; resample or map it first"
        )
    grid2cam = camera.ego2cam @ CAM2EGO_AXES
    labels = grid.labels.cpu().numpy()
    lower, edge = TARTANAIR.spec.lower, TARTANAIR.spec.voxel_size[0]
    x, y, z = (n // 4 for n in TARTANAIR.spec.shape)
    coarse = GridSpec(lower, (4 * edge,) * 3, (x, y, z), "camera")
    content = {
        "vox_origin": np.array(lower),
        "cam_k": camera.intrinsics.numpy(),
        "T_velo_2_cam": grid2cam.numpy(),
        "fov_mask_1_1": _in_view(TARTANAIR.spec, grid2cam, camera),
        "target_1_1": labels,
        "target_1_4": downsample_labels(labels, 4, grid.taxonomy.free),
        "fov_mask_1_4": _in_view(coarse, grid2cam, camera),
    }
    atomic_write_bytes(path, pickle.dumps(content, protocol=4))


def _matrix(values: Any) -> Tensor:
    """A [4, 4] that can be inverted; Camera checks what comes of it."""
    try:
        matrix = torch.as_tensor(np.asarray(values, np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"T_velo_2_cam is no matrix of numbers: {values!r}") from error
    if tuple(matrix.shape) != (4, 4) or not bool(torch.isfinite(matrix).all()) or float(matrix.det()) == 0.0:
        raise ValueError(f"T_velo_2_cam must be an invertible [4, 4], got {matrix.tolist()}")
    return matrix


def _indexing(index_rule: str) -> GridSpec:
    """The grid whose floor is the rule's index."""
    if index_rule not in INDEX_RULES:
        raise ValueError(f"index_rule is one of {', '.join(INDEX_RULES)}; got {index_rule!r}")
    spec = TARTANAIR.spec
    shift = 0.5 if index_rule == "rint" else 0.0
    x, y, z = (low - shift * edge for low, edge in zip(spec.lower, spec.voxel_size, strict=True))
    return GridSpec((x, y, z), spec.voxel_size, spec.shape, spec.frame)


def grid2ego(index_rule: str) -> Tensor:
    """From the grid's camera axes to ego, the half voxel of a rule included: float64 [4, 4]."""
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.tensor(_indexing(index_rule).lower) - torch.tensor(TARTANAIR.spec.lower)
    return CAM2EGO_AXES @ shift


def _in_view(spec: GridSpec, grid2cam: Tensor, camera: Camera) -> np.ndarray:
    """Whether each voxel centre's nearest pixel is in the picture, bool [N, 1], x slowest."""
    pixels, depth = camera.project(transform_points(grid2cam, spec.centers().reshape(-1, 3)))
    pixels = torch.nan_to_num(pixels, nan=-1.0).round()
    size = pixels.new_tensor([camera.width, camera.height])
    return ((pixels >= 0) & (pixels < size)).all(-1).logical_and(depth > 0).numpy()[:, None]
