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

from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.transforms import invert_rigid, pose_from_quaternion

__all__ = ["box_layout_of", "boxes_from_rows", "rows_from_boxes"]


def boxes_from_rows(
    boxes: np.ndarray,
    names: Sequence[str],
    lidar2ego: Tensor,
    layout: str,
    velocities: np.ndarray | None,
    num_lidar_points: Any,
    instance_tokens: Sequence[str] | None = None,
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
        # Only the ground components are stored; z is taken as zero in the lidar frame.
        rotation = lidar2ego[:2, :2].numpy()
        velocities = velocities.reshape(-1, 2) @ rotation.T
    tokens = None if instance_tokens is None else tuple(str(token) for token in instance_tokens)
    points = None if num_lidar_points is None else torch.as_tensor(np.asarray(num_lidar_points, dtype=np.int64))
    return Boxes(lidar2ego @ box2lidar, torch.from_numpy(sizes), tuple(names), velocities, points, tokens)


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


def rows_from_boxes(boxes: Boxes, lidar2ego: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Rows x y z l w h yaw [N, 7] and velocities [N, 2] m/s, both in the lidar frame, float64."""
    box2lidar = invert_rigid(lidar2ego) @ boxes.box2ego
    yaw = np.arctan2(box2lidar[:, 1, 0].numpy(), box2lidar[:, 0, 0].numpy())
    rows = np.concatenate([box2lidar[:, :3, 3].numpy(), boxes.sizes.numpy(), yaw[:, None]], axis=1)
    velocities = np.linalg.solve(lidar2ego[:2, :2].numpy(), boxes.velocities.numpy().T).T
    return rows, velocities
