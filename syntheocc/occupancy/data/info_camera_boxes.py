"""`cam_instances` of mmdetection3d 1.1: what monocular detectors learn from, every box as each camera sees it.

A box belongs to a camera when its centre lies in front of it and the convex hull of its projected corners (of those in
front of the camera) meets the picture. Its `bbox` is the exterior rectangle of that meeting, in pixels with the
picture's corner at 0. Source: mmdetection3d's documentation of its nuScenes infos; checked against a real info file.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from syntheocc.occupancy.cameras import Camera
from syntheocc.occupancy.data.frames import DETECTION_CLASSES, Frame
from syntheocc.occupancy.data.info_boxes import ground_velocities, quaternion_yaws

__all__ = ["ATTRIBUTE_LABELS", "camera_instances", "visible_rectangle"]

# `attr_label` is the index here; 8 stands for none.
ATTRIBUTE_LABELS = (
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.standing",
    "pedestrian.sitting_lying_down",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)


def camera_instances(frame: Frame, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Camera name -> the instances that it sees, in the boxes' order; only detection classes.

    Args:
        frame: with boxes, `ego2global` and plain pinholes.
        names: cameras, in the order in which they are listed.
    """
    boxes = frame.boxes
    assert boxes is not None
    wanted = [i for i, name in enumerate(boxes.names) if name in DETECTION_CLASSES]
    labels = [DETECTION_CLASSES.index(boxes.names[i]) for i in wanted]
    attributes = [
        ATTRIBUTE_LABELS.index(boxes.attributes[i])
        if boxes.attributes[i] in ATTRIBUTE_LABELS
        else len(ATTRIBUTE_LABELS)
        for i in wanted
    ]
    box2ego, sizes = boxes.box2ego.numpy()[wanted], boxes.sizes.numpy()[wanted]
    velocities = ground_velocities(boxes.velocities.numpy()[wanted], frame.ego2global)
    corners = boxes.corners().numpy()[wanted]
    return {
        name: _seen_by(frame.cameras[name], (box2ego, sizes, velocities, corners), labels, attributes)
        for name in names
    }


def _seen_by(
    camera: Camera,
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    labels: Sequence[int],
    attributes: Sequence[int],
) -> list[dict[str, Any]]:
    box2ego, sizes, velocities, corners = arrays
    ego2cam, matrix = camera.ego2cam.numpy(), camera.intrinsics.numpy()
    box2cam = ego2cam @ box2ego
    centers, yaws = box2cam[:, :3, 3], -quaternion_yaws(box2cam)
    velocities = velocities @ ego2cam[:3, :3].T
    corners = corners @ ego2cam[:3, :3].T + ego2cam[:3, 3]
    in_front = corners[..., 2] > 0
    depths = np.where(in_front, corners[..., 2], np.nan)
    pixels = (corners @ matrix.T)[..., :2] / depths[..., None]
    entries = []
    for i in np.flatnonzero((centers[:, 2] > 0) & in_front.any(1)).tolist():
        rectangle = visible_rectangle(pixels[i, in_front[i]], camera.width, camera.height)
        if rectangle is None:
            continue
        x, y, z = centers[i].tolist()
        u, v, _ = (matrix @ centers[i] / z).tolist()
        length, width, height = sizes[i].tolist()
        entries.append(
            {
                "bbox_label": labels[i],
                "bbox_label_3d": labels[i],
                "bbox": rectangle,
                # Of every box, also of one that no lidar point and no radar return met: as mmdetection3d writes it.
                "bbox_3d_isvalid": True,
                # Sizes go with the camera's axes: length, height, width.
                "bbox_3d": [x, y, z, length, height, width, float(yaws[i])],
                "velocity": velocities[i, [0, 2]].tolist(),
                "center_2d": [u, v],
                "depth": z,
                "attr_label": attributes[i],
            }
        )
    return entries


def visible_rectangle(points: np.ndarray, width: int, height: int) -> list[float] | None:
    """The exterior rectangle x1, y1, x2, y2 of where the convex hull of `points` [N, 2] meets the picture, or None."""
    low, high = points.min(0), points.max(0)
    limit = np.array([width, height], dtype=np.float64)
    if (high < 0).any() or (low > limit).any():
        return None
    if (low >= 0).all() and (high <= limit).all():
        return [*low.tolist(), *high.tolist()]
    polygon = _convex_hull(points)
    for axis in (0, 1):
        polygon = _clipped(polygon, axis, 0.0, 1)
        polygon = _clipped(polygon, axis, float(limit[axis]), -1)
    if not polygon:
        return None
    return [*np.min(polygon, axis=0).tolist(), *np.max(polygon, axis=0).tolist()]


def _convex_hull(points: np.ndarray) -> list[tuple[float, float]]:
    """Corners of the hull in turn (Andrew's monotone chain)."""
    ordered = sorted(set(map(tuple, points.tolist())))
    if len(ordered) < 3:
        return ordered

    def half(sequence: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        chain: list[tuple[float, float]] = []
        for p in sequence:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], p) <= 0:
                chain.pop()
            chain.append(p)
        return chain[:-1]

    return half(ordered) + half(ordered[::-1])


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _clipped(polygon: list[tuple[float, float]], axis: int, bound: float, sign: int) -> list[tuple[float, float]]:
    """The part of a convex polygon with sign * coordinate >= sign * bound (Sutherland and Hodgman)."""
    out: list[tuple[float, float]] = []
    for i, b in enumerate(polygon):
        a = polygon[i - 1]
        inside_a, inside_b = sign * a[axis] >= sign * bound, sign * b[axis] >= sign * bound
        if inside_a != inside_b:
            t = (bound - a[axis]) / (b[axis] - a[axis])
            crossing = [a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])]
            crossing[axis] = bound
            out.append((crossing[0], crossing[1]))
        if inside_b:
            out.append(b)
    return out
