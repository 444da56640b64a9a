"""Depth and classes as a model renders them, beside what the lidar says. Legend: V views, h w cells, R rays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from syntheocc.occupancy.pictures.basics import (
    BACKGROUND,
    as_picture,
    palette_picture,
    resized,
    shaded,
    to_array,
)
from syntheocc.occupancy.pictures.sheets import labelled, tiled

if TYPE_CHECKING:
    from syntheocc.occupancy.cameras import CameraRig
    from syntheocc.occupancy.rendering.camera_images import CameraImages
    from syntheocc.occupancy.rendering.rays import RayLabels
    from syntheocc.occupancy.taxonomy import Taxonomy

__all__ = ["depth_picture", "rendered_views"]

# Blue is near, red far: anchors of the colours between the near and the far end, evenly spaced in the logarithm.
_DEPTH_COLORS = np.array([(48, 40, 160), (40, 140, 200), (70, 190, 110), (235, 200, 60), (215, 70, 45)], float)


def depth_picture(depth: Any, near: float = 2.0, far: float = 50.0) -> np.ndarray:
    """Colours of depths [...] in metres, uint8 [..., 3]: blue is near, red far; 0 and less is the background."""
    metres = to_array(depth).astype(np.float64)
    share = np.log(np.clip(metres, near, far) / near) / np.log(far / near) * (len(_DEPTH_COLORS) - 1)
    below = np.minimum(share.astype(int), len(_DEPTH_COLORS) - 2)
    part = (share - below)[..., None]
    colors = (1 - part) * _DEPTH_COLORS[below] + part * _DEPTH_COLORS[below + 1]
    return np.where((metres > 0)[..., None], np.rint(colors), BACKGROUND).astype(np.uint8)


def rendered_views(
    images: CameraImages,
    rig: CameraRig,
    taxonomy: Taxonomy,
    rays: RayLabels | None = None,
    photos: Mapping[str, Any] | None = None,
    views: Sequence[str] | None = None,
    least: float = 0.5,
) -> dict[str, np.ndarray]:
    """A sheet a camera: photograph and classes above, depth below; the lidar's labels on the left, ours on the right.

    Args:
        images: from `render_cameras`; their raster is a panel's size.
        rig: the cameras that they are of, in the same order.
        taxonomy: of the classes.
        rays: label rays of one sample, of which those of the key frame are drawn; None: no labels.
        photos: camera name -> photograph, shown darkened under the labels.
        views: names of the cameras that the rays' indices stand for; None: the rig's.
        least: share of a ray that must be stopped for a class to be shown.

    Returns:
        camera name -> uint8 [H, W, 3].
    """
    height, width = images.depth.shape[1:]
    stopped = to_array(images.weight_sum >= least)
    classes = palette_picture(images.labels(taxonomy.free, least), taxonomy)
    classes = np.where(stopped[..., None], classes, BACKGROUND).astype(np.uint8)
    depth = depth_picture(np.where(stopped, to_array(images.depth), 0.0))
    names = list(rig.names if views is None else views)
    sheets = {}
    for v, (name, camera) in enumerate(rig.items()):
        photo = (photos or {}).get(name)
        ground = np.empty((height, width, 3), np.uint8)
        ground[:] = BACKGROUND
        if photo is not None:
            ground = shaded(resized(as_picture(photo), height, width), np.zeros((height, width)))
        seen, far = ground.copy(), ground.copy()
        if rays is not None and name in names:
            own = rays.select(rays.is_key & (rays.cameras == names.index(name)))
            # Far points first, so that near ones are on top.
            order = np.argsort(-to_array(own.distance), kind="stable")
            pixels = (to_array(own.pixels)[order] + 0.5) * (width / camera.width, height / camera.height)
            column = np.clip(pixels[:, 0].astype(int), 0, width - 1)
            row = np.clip(pixels[:, 1].astype(int), 0, height - 1)
            seen[row, column] = palette_picture(to_array(own.labels)[order], taxonomy)
            far[row, column] = depth_picture(to_array(own.distance)[order])
        sheets[name] = labelled(tiled([[seen, classes[v]], [far, depth[v]]]), f"{name}: lidar, rendered")
    return sheets
