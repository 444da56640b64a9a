"""How much of each object the cameras see: its visible pixels over the pixels it would fill alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.cameras import Camera
from syntheocc.occupancy.data.frames import Boxes
from syntheocc.occupancy.transforms import invert_rigid

__all__ = ["count_pixels", "visible_shares"]

# Pixels of an object that are looked at in one picture; more are thinned out evenly.
MAX_PIXELS = 300


def visible_shares(scene: Any, seen: Mapping[str, tuple[Tensor, float]]) -> np.ndarray:
    """Visible share of every actor, float64 [A] in 0..1; 0 where it is in no picture.

    Args:
        scene: a `Scene`.
        seen: camera name -> its exact instance map int [H, W] and the time it fired (seconds).
    """
    visible, whole = np.zeros(len(scene.actors)), np.zeros(len(scene.actors))
    shown = torch.cat([torch.as_tensor(instances).flatten() for instances, _ in seen.values()]).unique()
    wanted = (shown[shown > 0] - 1).tolist()
    for name, (instances, t) in seen.items():
        counts = count_pixels(scene, scene.rig[name], instances, t, wanted)
        visible, whole = visible + counts[0], whole + counts[1]
    return visible / np.maximum(whole, 1)


def count_pixels(
    scene: Any, camera: Camera, instances: Tensor, t: float, wanted: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Visible and possible pixels of actors in one picture, both float64 [A] (0 for those not asked for).

    Args:
        scene: a `Scene`.
        camera: as mounted.
        instances: int [H, W] of the camera's size, actor index + 1.
        t: the time it fired, seconds.
        wanted: which actors.
    """
    from syntheocc.worlds.intersect import first_hit

    cam2world = scene.ego.pose_at(t) @ camera.cam2ego
    actor2cam = invert_rigid(cam2world) @ torch.from_numpy(scene.actor_poses([t])[0])
    visible, whole = np.zeros(len(scene.actors)), np.zeros(len(scene.actors))
    if not wanted:
        return visible, whole
    sizes = torch.tensor([scene.actors[a].size for a in wanted], dtype=torch.float64)
    boxes = Boxes(actor2cam[wanted], sizes, tuple("" for _ in wanted))  # in the camera's frame
    instances = torch.as_tensor(instances).cpu()
    eye = torch.zeros(3, dtype=torch.float64)
    for a, (left, top, right, bottom) in zip(wanted, _rectangles(camera, boxes), strict=True):
        if right <= left or bottom <= top:
            continue
        stride = max(1, int(np.ceil(np.sqrt((right - left) * (bottom - top) / MAX_PIXELS))))
        rows, columns = torch.arange(top, bottom, stride), torch.arange(left, right, stride)
        pixels = torch.cartesian_prod(columns, rows)
        rays = camera.pixel_rays(pixels)
        own = scene.actors[a].primitives.transformed(actor2cam[a])
        distance, _, _ = first_hit(own, None, eye.expand(len(rays), 3), rays)
        alone = torch.isfinite(distance)
        there = instances[pixels[:, 1], pixels[:, 0]] == a + 1
        whole[a] = stride**2 * int(alone.sum())
        visible[a] = stride**2 * int((alone & there).sum())
    return visible, whole


def _rectangles(camera: Camera, boxes: Boxes) -> list[tuple[int, int, int, int]]:
    """Columns and rows (left, top, right, bottom; the last two exclusive) that hold each box, empty where none."""
    if not len(boxes):
        return []
    corners = boxes.corners()
    pixels, _ = camera.project(corners)
    behind = (corners[..., 2] < 0.1) & (camera.model == "pinhole")
    out = []
    for corner, hidden, middle in zip(pixels, behind, boxes.centers, strict=True):
        if bool(hidden.all()) or float(middle.norm()) > 200:
            out.append((0, 0, 0, 0))
            continue
        if bool(hidden.any()) or not bool(torch.isfinite(corner).all()):
            out.append((0, 0, camera.width, camera.height))
            continue
        low, high = corner.amin(0).floor(), corner.amax(0).ceil() + 1
        size = torch.tensor([camera.width, camera.height], dtype=torch.float64)
        low, high = low.clamp_min(0), torch.minimum(high, size)
        out.append((int(low[0]), int(low[1]), int(high[0]), int(high[1])))
    return out
