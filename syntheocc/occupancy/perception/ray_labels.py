"""Labels of the images made of lidar points as they are needed: no files.

A point of a neighbouring frame goes lidar -> ego at its own time -> global -> camera at the camera's own time; the
ray to it, its class and its depth are then given in the key frame's coordinates (ego at the key frame's lidar time).
`ray_reference` has the same in plain loops. Specification: specs/occflownet_splattingocc.md 1.4, 3.2, 3.6, 4.0.

Legend: T frames, V views, P points, R rays.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.ray_boxes import match_boxes, through_boxes
from syntheocc.occupancy.perception.ray_config import RayConfig
from syntheocc.occupancy.perception.ray_filters import (
    draw_weights,
    first_view,
    last_of_pixel,
    per_class,
    still,
    unhidden,
)
from syntheocc.occupancy.perception.ray_frames import InputWindow, RayFrame
from syntheocc.occupancy.perception.ray_projection import RayCameras, project_points
from syntheocc.occupancy.rendering.ray_choice import choose_rays
from syntheocc.occupancy.rendering.rays import BoxMotion, FrameBoxes, RayLabels

__all__ = ["RaySample", "build_rays"]


class RaySample(NamedTuple):
    """Rays of one sample and what the boxes say; the last three are None unless `dynamics` is "motion"."""

    rays: RayLabels
    motion: BoxMotion | None = None
    appeared: FrameBoxes | None = None
    vanished: FrameBoxes | None = None


def build_rays(
    frames: Sequence[RayFrame | None],
    config: RayConfig,
    grid: GridSpec,
    window: InputWindow | None = None,
    generator: torch.Generator | None = None,
) -> RaySample:
    """The rays of one sample.

    Args:
        frames: one for each of `config.frame_offsets`; None beyond the scene's ends, but for the key frame.
        config: which rays.
        grid: of the key frame.
        window: what the network sees of the images; None: all of them.
        generator: of the draws, with `config.num_rays`.

    Returns:
        Rays and boxes on the points' device, in the key frame's coordinates, all of sample 0.

    Raises:
        ValueError: no key frame, another number of frames or views, a draw without a generator, motion without boxes,
            or labels without a weight.
    """
    key = frames[config.key] if len(frames) == len(config.frame_offsets) else None
    if key is None:
        raise ValueError(f"{len(frames)} frames for the offsets {config.frame_offsets}, the key frame among them")
    if config.num_rays is not None and generator is None:
        raise ValueError(f"num_rays={config.num_rays} draws rays: give a generator")
    if config.missing == "repeat":
        frames = [key if frame is None else frame for frame in frames]
    device = key.points.device
    boxes = match_boxes(frames, config, grid).to(device) if config.dynamics == "motion" else None
    cameras = RayCameras.of(frames, key, window, device)
    seen = project_points(frames, cameras, config, grid, device)
    if config.pixels == "whole_pixel":
        seen = seen._replace(labels=last_of_pixel(seen))
    keep = unhidden(seen, cameras) if config.occlusion else torch.ones_like(seen.frames, dtype=torch.bool)
    if config.ray_origin == "lidar":
        keep &= first_view(seen, keep)
    keep &= still(seen, config, None if boxes is None else boxes.motion)
    origins = cameras.origins(config).index_select(1, seen.frames * cameras.views + seen.cameras)  # [3, R]
    away = seen.points - origins
    distance = _length(away)
    if boxes is not None and config.drop_through_vanished:
        keep &= ~through_boxes(origins, seen.points, seen.frames, boxes.vanished)
    if config.max_distance is not None:
        keep &= distance < config.max_distance
    if config.num_rays is None:
        rows = keep.nonzero()[:, 0]
    else:
        assert generator is not None
        rows = choose_rays(draw_weights(seen, config) * keep, config.num_rays, generator)
    seen, distance = seen.select(rows), distance.index_select(0, rows)
    origins, away = origins.index_select(1, rows), away.index_select(1, rows)
    depth = seen.image[2].contiguous()
    pixels = seen.image[:2] / depth
    if config.pixels != "exact":
        pixels = pixels.trunc() if config.pixels == "whole_pixel" else pixels
        away = cameras.directions(seen.frames * cameras.views + seen.cameras, pixels + 0.5)
    length = distance if config.pixels == "exact" else _length(away)
    rays = RayLabels(
        origins=origins.T.contiguous(),
        directions=(away / length).T.contiguous(),
        distance=distance,
        depth=depth,
        labels=seen.labels,
        weights=per_class(config.loss_weights, "loss_weights", seen.labels),
        frames=seen.frames,
        cameras=seen.cameras,
        pixels=pixels.T.contiguous(),
        samples=torch.zeros_like(seen.frames),
        frame_offsets=config.frame_offsets,
    )
    return RaySample(rays) if boxes is None else RaySample(rays, *boxes)


def _length(columns: Tensor) -> Tensor:
    """Lengths [R] of vectors [3, R]; a norm over columns that are far apart in memory is slower."""
    x, y, z = columns
    return (x * x + y * y + z * z).sqrt_()
