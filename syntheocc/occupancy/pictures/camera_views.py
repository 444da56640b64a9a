"""A grid as the cameras see it: the first voxel along every pixel's ray, over the photographs. Legend: H W pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.pictures.basics import BACKGROUND, overlay, resized, shaded
from syntheocc.occupancy.pictures.colors import VoxelColors, class_colors
from syntheocc.occupancy.pictures.tracing import trace

if TYPE_CHECKING:
    from syntheocc.occupancy.grids import OccupancyGrid

__all__ = ["camera_overlays"]

# Nothing nearer to a camera than this is drawn, metres: the car's own body, or a wrong voxel before the lens.
_NEAR = 0.5
# Shade of faces that look down, aside and up, and of what is farther away than `_FAR` metres.
_FACES = (0.70, 0.82, 1.0)
_FAR, _FARTHEST = 50.0, 0.45


def camera_overlays(
    grid: OccupancyGrid,
    rig: CameraRig,
    photos: Mapping[str, Any] | None = None,
    *,
    size: tuple[int, int] | None = None,
    stride: int = 2,
    alpha: float = 0.55,
    shade: bool = True,
    colors: VoxelColors | None = None,
) -> dict[str, np.ndarray]:
    """Project a grid into every camera, distortion included, and blend it over the photographs.

    Args:
        grid: any grid; its `grid2ego` and the cameras' `cam2ego` meet in ego.
        rig: the cameras, of any model.
        photos: camera name -> photograph; a camera without one is drawn on a dark ground. None: all of them.
        size: (height, width) of the pictures; None: each camera's own.
        stride: pixels of a picture along each side that share a ray.
        alpha: weight of the labels over a photograph.
        shade: darken what is far away and what does not look up.
        colors: what to draw instead of the classes (`panoptic_colors`, ...).

    Returns:
        camera name -> uint8 [H, W, 3], in the rig's order.

    Raises:
        ValueError: a stride below one, or photographs of cameras that the rig lacks.
    """
    if stride < 1:
        raise ValueError(f"stride is a number of pixels, 1 or more, got {stride}")
    unknown = [name for name in photos or {} if name not in rig.names]
    if unknown:
        raise ValueError(f"photographs of {', '.join(unknown)}, but the rig has {', '.join(rig.names)}")
    shown = class_colors(grid) if colors is None else colors
    grid2ego = grid.grid2ego.numpy()
    pictures = {}
    for name, camera in rig.items():
        height, width = size or (camera.height, camera.width)
        cells = max(1, height // stride), max(1, width // stride)
        rays = CameraRig({name: camera}).cell_rays(*cells)[0, 0].numpy()
        pose = camera.cam2ego.numpy()
        hits = trace(shown.drawn, grid.spec, grid2ego, pose[:3, 3], rays @ pose[:3, :3].T, _NEAR)
        x, y, z = np.moveaxis(hits.voxel, -1, 0)
        painted = shown.colors[x, y, z]
        if shade:
            ups = [sign * grid2ego[2, axis] for axis in range(3) for sign in (-1, 1)]
            nearness = np.interp(hits.distance, (0, _FAR), (1, _FARTHEST))
            painted = shaded(painted, nearness * np.interp(ups, (-1, 0, 1), _FACES)[hits.side], darkest=0)
        photo = None if photos is None else photos.get(name)
        if photo is None:
            ground, weight = np.full((height, width, 3), BACKGROUND, np.uint8), 1.0
        else:
            ground, weight = resized(photo, height, width), alpha
        pictures[name] = overlay(ground, painted, weight, mask=hits.side >= 0)
    return pictures
