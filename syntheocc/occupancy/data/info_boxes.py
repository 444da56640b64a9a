"""Boxes as info pickles hold them: rows in the lidar frame, in one of three layouts.

`lwh_yaw` (mmdetection3d 1.0 and later): x y z l w h yaw. `wlh_rot` (before): x y z w l h and -yaw - pi/2. Ten columns
(OccFlowNet): x y z w l h and a quaternion w x y z. The centre is the box's middle; yaw turns about the lidar's z.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.data.frames import Boxes, Frame
from syntheocc.occupancy.transforms import invert_rigid, numbers, pose_from_quaternion

__all__ = [
    "BEVDET_CLASSES",
    "bevdet_annotations",
    "box_layout_of",
    "boxes_from_rows",
    "ground_velocities",
    "quaternion_yaws",
    "rows_from_boxes",
]

# The order of `ann_infos` labels, that of CenterPoint's and BEVDet's configurations.
BEVDET_CLASSES = (
    "car truck construction_vehicle bus trailer barrier motorcycle bicycle pedestrian traffic_cone"
).split()


def boxes_from_rows(
    boxes: np.ndarray,
    names: Sequence[str],
    lidar2ego: Tensor,
    layout: str,
    velocities: np.ndarray | None,
    num_lidar_points: Any,
    instance_tokens: Sequence[str] | None = None,
    num_radar_points: Any = None,
    ego2global: Any = None,
) -> Boxes:
    """Boxes in ego from an info's rows.

    Args:
        boxes: float64 [N, 7 | 9 | 10] in the lidar frame; columns 8 and 9 of nine are the velocity.
        names: N class names.
        lidar2ego: [4, 4].
        layout: "lwh_yaw" or "wlh_rot"; rows of ten columns need none.
        velocities: [N, 2] m/s along lidar x and y, None unknown.
        num_lidar_points: N counts, None unknown.
        instance_tokens: N tokens, None unknown.
        num_radar_points: N counts, None unknown.
        ego2global: [4, 4], which says what is level: velocities are horizontal in global. None: in the lidar frame.
    """
    num = len(boxes)
    box2lidar = torch.eye(4, dtype=torch.float64).repeat(num, 1, 1)
    sizes = boxes[:, 3:6].copy()
    if boxes.shape[1] == 10:
        sizes = sizes[:, [1, 0, 2]]
        for i, row in enumerate(boxes):
            box2lidar[i] = pose_from_quaternion(row[:3], row[6:10])
    else:
        yaw = boxes[:, 6]
        if layout == "wlh_rot":
            sizes, yaw = sizes[:, [1, 0, 2]], -boxes[:, 6] - np.pi / 2
        cos, sin = torch.from_numpy(np.cos(yaw)), torch.from_numpy(np.sin(yaw))
        box2lidar[:, 0, 0], box2lidar[:, 0, 1], box2lidar[:, 1, 0], box2lidar[:, 1, 1] = cos, -sin, sin, cos
        box2lidar[:, :3, 3] = torch.from_numpy(boxes[:, :3].copy())
    if velocities is None and boxes.shape[1] == 9:
        velocities = boxes[:, 7:9]
    if velocities is not None:
        lidar2global = None if ego2global is None else numbers(ego2global, "ego2global") @ lidar2ego
        level = ground_velocities(velocities.reshape(-1, 2), lidar2global)
        velocities = (level @ lidar2ego[:3, :3].numpy().T)[:, :2]
    tokens = None if instance_tokens is None else tuple(str(token) for token in instance_tokens)
    points, returns = (
        None if counts is None else torch.as_tensor(np.asarray(counts, dtype=np.int64))
        for counts in (num_lidar_points, num_radar_points)
    )
    return Boxes(lidar2ego @ box2lidar, torch.from_numpy(sizes), tuple(names), velocities, points, tokens, returns)


def box_layout_of(infos: Sequence[Mapping], layout: str, path: str | os.PathLike) -> str:
    """The layout of an info list's boxes: "lwh_yaw" or "wlh_rot".

    The two generations of infos do not say which they are; a vehicle is longer than wide, and that tells them apart.

    Args:
        infos: info dicts with `gt_boxes` and `gt_names`.
        layout: "auto", or what the caller knows.
        path: named in errors.

    Raises:
        ValueError: an unknown layout, or "auto" where there are boxes but no vehicle among them.
    """
    if layout != "auto":
        if layout not in ("lwh_yaw", "wlh_rot"):
            raise ValueError(f"box_layout {layout!r}: choose 'auto', 'lwh_yaw' or 'wlh_rot'")
        return layout
    first_longer = second_longer = others = 0
    for info in infos:
        boxes, names = info.get("gt_boxes"), info.get("gt_names")
        if boxes is None or names is None or np.ndim(boxes) != 2 or np.shape(boxes)[1] == 10:
            continue
        for name, row in zip(names, boxes, strict=False):
            if name in ("car", "truck", "bus", "trailer"):
                first_longer += row[3] > row[4]
                second_longer += row[3] < row[4]
            else:
                others += 1
        if first_longer + second_longer >= 50:
            break
    if others and first_longer == second_longer:
        raise ValueError(
            f"{path}: its boxes hold no vehicle that would tell length from width; pass box_layout='lwh_yaw' "
            "(mmdetection3d 1.0 and later) or 'wlh_rot' (before)"
        )
    return "lwh_yaw" if first_longer >= second_longer else "wlh_rot"


def rows_from_boxes(
    boxes: Boxes, lidar2ego: Tensor, ego2global: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as rows of another frame, the lidar's in all info styles.

    Args:
        boxes: in ego.
        lidar2ego: [4, 4]; any frame's, e.g. the one of ego at a camera's time.
        ego2global: [4, 4], which says what is level: velocities are horizontal in global. Left out: in ego.

    Returns:
        x y z l w h yaw [N, 7] and velocities [N, 2] m/s along that frame's x and y, float64.
    """
    box2lidar = invert_rigid(lidar2ego) @ boxes.box2ego
    velocities = ground_velocities(boxes.velocities.numpy(), ego2global) @ lidar2ego[:3, :3].numpy()
    rows = [box2lidar[:, :3, 3].numpy(), boxes.sizes.numpy(), quaternion_yaws(box2lidar.numpy())[:, None]]
    return np.concatenate(rows, axis=1), velocities[:, :2]


def quaternion_yaws(box2any: np.ndarray) -> np.ndarray:
    """Yaw angles [N] of poses [N, 4, 4] as info files have them, radians.

    Not the direction of the box's x axis on the ground but the first of the Tait-Bryan angles of x, then y', then z''
    (what pyquaternion calls yaw): for the small tilt between lidar and ego they differ by up to a thousandth. Checked
    against a real info file, whose two descriptions of a box agree to 3e-15 this way only.
    """
    return np.arctan2(-box2any[:, 0, 1], box2any[:, 0, 0])


def ground_velocities(velocities: np.ndarray, ego2global: Tensor | None) -> np.ndarray:
    """Velocities [N, 3] in ego from their ego x and y [N, 2], such that they are level in global."""
    up = np.array([0.0, 0.0, 1.0]) if ego2global is None else ego2global[2, :3].numpy()
    return np.concatenate([velocities, -(velocities @ up[:2])[:, None] / up[2]], axis=1)


def bevdet_annotations(frame: Frame, valid: np.ndarray) -> tuple[list[list[float]], list[int]]:
    """`ann_infos` of BEVDet's infos: boxes of the detection classes that count, in ego at the front camera's time.

    Args:
        frame: with boxes and `ego2global`.
        valid: bool [N], its `valid_flag`.

    Returns:
        Rows x y z l w h yaw vx vy (the centre; zero where the velocity is unknown) and indices into
        `BEVDET_CLASSES`.
    """
    boxes, lidar_time = frame.boxes, frame.ego2global
    assert boxes is not None and lidar_time is not None
    own = frame.extras.get("camera_ego2global", {}).get("CAM_FRONT", lidar_time)
    rows, velocities = rows_from_boxes(boxes, invert_rigid(lidar_time) @ own, lidar_time)
    kept = [i for i, name in enumerate(boxes.names) if name in BEVDET_CLASSES and valid[i]]
    rows = np.concatenate([rows, np.nan_to_num(velocities, nan=0.0)], axis=1)
    return rows[kept].tolist(), [BEVDET_CLASSES.index(boxes.names[i]) for i in kept]
