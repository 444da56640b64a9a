"""`build_rays` as one would write it down: a loop over frames and cameras, float64, every point against every box.

The definition that the fast path is tested and timed against. Draws are left out (`num_rays` must be None).
Legend: P points of a frame.
"""

from collections.abc import Sequence

import numpy as np
import torch

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.ray_boxes import MatchedBoxes, match_boxes
from syntheocc.occupancy.perception.ray_config import RayConfig
from syntheocc.occupancy.perception.ray_frames import InputWindow, RayFrame
from syntheocc.occupancy.rendering.rays import BoxMotion, FrameBoxes, RayLabels

__all__ = ["reference_rays"]


def reference_rays(
    frames: Sequence[RayFrame | None], config: RayConfig, grid: GridSpec, window: InputWindow | None = None
) -> RayLabels:
    """The rays of one sample, float64, on the CPU; arguments as those of `build_rays`.

    Raises:
        ValueError: `config.num_rays` is set.
    """
    if config.num_rays is not None:
        raise ValueError("the reference draws nothing: set num_rays to None")
    key = frames[config.key]
    assert key is not None
    if config.missing == "repeat":
        frames = [key if frame is None else frame for frame in frames]
    none = MatchedBoxes(BoxMotion.empty(), FrameBoxes.empty(), FrameBoxes.empty())
    matched = match_boxes(frames, config, grid) if config.dynamics == "motion" else none
    global2key = np.linalg.inv(key.frame2global.numpy())
    parts = [RayLabels.empty(config.frame_offsets, dtype=torch.float64)]
    for t, frame in enumerate(frames):
        if frame is None or not len(frame.points):
            continue
        points = _moved(global2key @ frame.frame2global.numpy(), frame.points.numpy().astype(np.float64))
        labelled = frame.labels.numpy() != 255
        if config.crop_to_grid:
            labelled &= (points >= grid.lower).all(1) & (points < grid.upper).all(1)
        in_box = _in_boxes(points, matched.motion.select(matched.motion.frames == t))
        taken = np.zeros(len(points), bool)
        for v in range(len(frame.intrinsics)):
            if not frame.exists[v]:
                continue
            cam2key = global2key @ frame.cam2global[v].numpy()
            k, (height, width) = frame.intrinsics[v].numpy(), frame.sizes[v].tolist()
            in_camera = _moved(np.linalg.inv(cam2key), points)
            depth = in_camera[:, 2]
            with np.errstate(divide="ignore", invalid="ignore"):
                pixels = (in_camera @ k.T)[:, :2] / depth[:, None]
            seen = labelled & (depth > 0) & (depth >= config.depth_range[0]) & (depth < config.depth_range[1])
            seen &= (pixels > config.border).all(1) & (pixels < np.array([width, height]) - config.border).all(1)
            if window is not None and config.crop_to_input:
                a = window.matrices[v].numpy()
                moved = pixels @ a[:2, :2].T + a[:2, 2]
                seen &= (moved >= -0.5).all(1) & (moved < np.array([window.width, window.height]) - 0.5).all(1)
            labels = frame.labels.numpy().astype(np.int64)
            if config.pixels == "whole_pixel":
                labels[seen] = _class_map(pixels[seen].astype(int), labels[seen], int(height), int(width))
            if config.occlusion:
                seen[seen] = ~_hidden(pixels[seen] * 200 / width, depth[seen])
            if config.ray_origin == "lidar":
                seen, taken = seen & ~taken, taken | seen
            if t != config.key and config.dynamics == "filter":
                seen &= ~np.isin(labels, config.filter_classes)
            if t != config.key and config.dynamics == "motion" and config.drop_unmatched:
                seen &= in_box | ~np.isin(labels, config.flow_classes)
            origin = cam2key[:3, 3]
            if config.ray_origin == "lidar":
                origin = _moved(global2key @ frame.frame2global.numpy(), frame.lidar_origin.numpy()[None])[0]
            if config.dynamics == "motion" and config.drop_through_vanished:
                seen[seen] = ~_through(origin, points[seen], matched.vanished.select(matched.vanished.frames == t))
            distance = np.linalg.norm(points - origin, axis=1)
            if config.max_distance is not None:
                seen &= distance < config.max_distance
            pixels = np.trunc(pixels) if config.pixels == "whole_pixel" else pixels
            away = points - origin
            if config.pixels != "exact":
                through = np.concatenate([pixels + 0.5, np.ones((len(pixels), 1))], 1)
                away = through @ np.linalg.inv(k).T @ cam2key[:3, :3].T
            away = away / np.linalg.norm(away, axis=1, keepdims=True)
            table = np.ones(256) if config.loss_weights is None else np.array(config.loss_weights)
            count = int(seen.sum())
            parts.append(
                RayLabels(
                    origins=torch.from_numpy(np.tile(origin, (count, 1))),
                    directions=torch.from_numpy(away[seen]),
                    distance=torch.from_numpy(distance[seen]),
                    depth=torch.from_numpy(depth[seen]),
                    labels=torch.from_numpy(labels[seen]),
                    weights=torch.from_numpy(table[labels[seen]]),
                    frames=torch.full((count,), t),
                    cameras=torch.full((count,), v),
                    pixels=torch.from_numpy(pixels[seen]),
                    samples=torch.zeros(count, dtype=torch.int64),
                    frame_offsets=config.frame_offsets,
                )
            )
    return RayLabels.cat(parts)


def _moved(a2b: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ a2b[:3, :3].T + a2b[:3, 3]


def _in_boxes(points: np.ndarray, boxes: BoxMotion) -> np.ndarray:
    """Which points lie in one of the padded boxes where they stand in their frame: bool [P]."""
    inside = np.zeros(len(points), bool)
    for pose, size in zip(boxes.target2ego.double().numpy(), boxes.padded_sizes.numpy(), strict=True):
        inside |= (np.abs(_moved(np.linalg.inv(pose), points)) <= size / 2).all(1)
    return inside


def _through(origin: np.ndarray, points: np.ndarray, boxes: FrameBoxes) -> np.ndarray:
    """Which ways from the origin to a point meet one of the boxes: where they are between all pairs of faces."""
    through = np.zeros(len(points), bool)
    for pose, size in zip(boxes.box2ego.double().numpy(), boxes.sizes.double().numpy(), strict=True):
        start, ends = _moved(np.linalg.inv(pose), origin[None])[0], _moved(np.linalg.inv(pose), points)
        first, last = np.zeros(len(points)), np.ones(len(points))
        for axis in range(3):
            with np.errstate(divide="ignore", invalid="ignore"):
                faces = (np.array([[-size[axis], size[axis]]]) / 2 - start[axis]) / (ends[:, axis, None] - start[axis])
            first, last = np.maximum(first, faces.min(1)), np.minimum(last, faces.max(1))
        through |= first <= last
    return through


def _class_map(pixels: np.ndarray, labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Labels read back from an image that they were written into one after the other."""
    image = np.zeros((height, width), np.int64)
    image[pixels[:, 1], pixels[:, 0]] = labels
    return image[pixels[:, 1], pixels[:, 0]]


def _hidden(cells: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Which points have one well in front of them in the same cell."""
    column, row = cells.astype(int).T
    nearest = np.full((row.max(initial=0) + 1, column.max(initial=0) + 1), np.inf)
    np.minimum.at(nearest, (row, column), depth)
    return depth - nearest[row, column] > np.maximum(1.0, 0.05 * depth)
