"""Lidar points of several frames in the images that saw them, all frames and cameras in one go.

Legend: T frames, V views, K images of a camera (the original, the network's input), P points, R points seen.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.ray_config import RayConfig
from syntheocc.occupancy.perception.ray_frames import InputWindow, RayFrame
from syntheocc.occupancy.taxonomy import UNKNOWN
from syntheocc.occupancy.transforms import invert_rigid

__all__ = ["OCCLUSION_COLUMNS", "RayCameras", "Seen", "project_points"]

# Cells of the occlusion filter: 8 pixels of 1600, whatever the image's size.
OCCLUSION_COLUMNS = 200


class Seen(NamedTuple):
    """Points in images, ordered by frame, view and point."""

    frames: Tensor  # int64 [R]
    cameras: Tensor  # int64 [R]
    number: Tensor  # int64 [R] which of the frame's points
    points: Tensor  # [3, R] key frame's coordinates
    image: Tensor  # [3, R] u*z, v*z, z
    labels: Tensor  # int64 [R]

    def select(self, keep: Tensor) -> "Seen":
        """Those of a bool mask or of indices."""
        rows = keep.nonzero()[:, 0] if keep.dtype == torch.bool else keep
        return Seen(*(value.index_select(value.ndim - 1, rows) for value in self))


class RayCameras(NamedTuple):
    """Matrices of all frames' cameras, float32 on the points' device; zeros where a camera is missing."""

    frame2key: Tensor  # [T, 3, 4]
    key2image: Tensor  # [T, V, K, 3, 4]: to (u*z, v*z, z) of the original image, then of the network's input
    cam2key: Tensor  # [T, V, 3, 4]
    pixel2key: Tensor  # [T, V, 3, 3]: the direction of a pixel (u, v, 1)
    lidars: Tensor  # [T, 3]
    sizes: Tensor  # [T, V, 2] height and width
    window: tuple[int, int] | None  # height and width of the network's input
    cells: int  # rows of cells of the occlusion filter in the highest image

    @staticmethod
    def of(
        frames: Sequence[RayFrame | None], key: RayFrame, window: InputWindow | None, device: torch.device
    ) -> "RayCameras":
        """The cameras of all frames, where the key frame's network input is `window`."""
        # Absent frames have the key frame's; nothing looks at them.
        whole = [key if frame is None else frame for frame in frames]
        views = key.intrinsics.shape[0]
        if any(frame.intrinsics.shape[0] != views for frame in whole) or (window and len(window.matrices) != views):
            raise ValueError(f"the key frame has {views} views, other frames or the input window have other numbers")
        exists = torch.stack([frame.exists for frame in whole])
        k = torch.stack([frame.intrinsics for frame in whole])
        global2key = invert_rigid(key.frame2global)
        frame2key = global2key @ torch.stack([frame.frame2global for frame in whole])
        cam2key = global2key @ torch.stack([frame.cam2global for frame in whole])
        image = k @ invert_rigid(cam2key)[..., :3, :]
        images = image[:, :, None]
        if window is not None:
            images = torch.stack([image, window.matrices[:, :3, :3].to(image) @ image], 2)
        inverse = torch.linalg.inv(torch.where(exists[..., None, None], k, torch.eye(3, dtype=k.dtype)))
        origin = torch.stack([frame.lidar_origin for frame in whole])
        lidars = (frame2key[:, :3, :3] @ origin[..., None])[..., 0] + frame2key[:, :3, 3]
        to = lambda tensor: tensor.to(device, torch.float32)  # noqa: E731
        return RayCameras(
            to(frame2key[:, :3]),
            to(images * exists[..., None, None, None]),
            to(cam2key[..., :3, :]),
            to(cam2key[..., :3, :3] @ inverse),
            to(lidars),
            to(torch.stack([frame.sizes for frame in whole])),
            None if window is None else (window.height, window.width),
            max(math.ceil(OCCLUSION_COLUMNS * height / width) for f in whole for height, width in f.sizes.tolist()),
        )

    @property
    def views(self) -> int:
        """V."""
        return self.cam2key.shape[1]

    def origins(self, config: RayConfig) -> Tensor:
        """Where rays of each camera start, [3, T * V]."""
        if config.ray_origin == "lidar":
            return self.lidars.repeat_interleave(self.views, 0).T.contiguous()
        return self.cam2key[..., 3].flatten(0, 1).T.contiguous()

    def directions(self, cameras: Tensor, pixels: Tensor) -> Tensor:
        """[3, R], of any length, of the rays through pixels [2, R] of cameras [R], numbered frame by frame."""
        u, v = pixels
        matrix = self.pixel2key.flatten(0, 1).index_select(0, cameras)  # [R, 3, 3]
        return (matrix[:, :, 0].T * u).add_(matrix[:, :, 1].T * v).add_(matrix[:, :, 2].T)


def _parts(frames: Sequence[RayFrame | None], present: list[int]) -> list[list[int]]:
    """Frames that are projected in one go: each alone on a CPU, whose caches hold one; all on a GPU if they can."""
    points = [frame.points for frame in frames if frame is not None and len(frame.points)]
    if present and points[0].device.type != "cpu" and len({len(p) for p in points}) == 1:
        return [present]
    return [[t] for t in present]


def project_points(
    frames: Sequence[RayFrame | None], cameras: RayCameras, config: RayConfig, grid: GridSpec, device: torch.device
) -> Seen:
    """All classified points that lie in the grid, in the depth range and in an image.

    Args:
        frames: None where there is none.
        cameras: of these frames.
        config: says which of these bounds hold.
        grid: of the key frame.
        device: of the points.
    """
    present = [t for t, frame in enumerate(frames) if frame is not None and len(frame.points)]
    return _concatenated([_project(frames, part, cameras, config, grid) for part in _parts(frames, present)], device)


def _project(
    frames: Sequence[RayFrame | None], part: list[int], cameras: RayCameras, config: RayConfig, grid: GridSpec
) -> Seen:
    """The points of some frames, of equally many points, that their cameras see."""
    whole = [frame for frame in (frames[t] for t in part) if frame is not None]
    points, labels = torch.stack([f.points for f in whole]), torch.stack([f.labels for f in whole])
    to_key, projection = cameras.frame2key[part], cameras.key2image[part]
    points = _placed(to_key, points.transpose(1, 2))  # [T, 3, P]
    wanted = labels != UNKNOWN
    if config.crop_to_grid:
        for axis in range(3):
            wanted &= (points[:, axis] >= grid.lower[axis]) & (points[:, axis] < grid.upper[axis])
    number = None
    if len(part) == 1 and points.device.type == "cpu":
        # A GPU looks at all points rather than wait for their number.
        number = wanted[0].nonzero()[:, 0]
        points, labels = points.index_select(2, number), labels.index_select(1, number)
        wanted = torch.ones_like(labels, dtype=torch.bool)
    count, views, kinds = projection.shape[:3]
    flat = projection.reshape(count, -1, 4)
    image = _placed(flat, points).view(count, views, kinds, 3, points.shape[-1])
    visible = _visible(image, cameras.sizes[part], cameras.window, config)
    visible &= wanted[:, None]
    # Flat places and index_select: indexing with brackets is slower.
    place = visible.view(-1).nonzero()[:, 0]
    size = image.shape[-1]
    row = place // size  # frame by frame, view by view
    point = place - row * size
    t = row // views
    first = (row * (3 * kinds)) * size + point
    at = t * size + point
    return Seen(
        frames=torch.tensor(part, device=t.device).index_select(0, t),
        cameras=row - t * views,
        number=point if number is None else number.index_select(0, point),
        points=_columns(points, t * (3 * size) + point, size),
        image=_columns(image, first, size),
        labels=labels.view(-1).index_select(0, at).long(),
    )


def _placed(matrices: Tensor, points: Tensor) -> Tensor:
    """Matrices [T, n, 4] times points [T, 3, P] and a 1: [T, n, P]."""
    if points.device.type == "cpu":
        return torch.baddbmm(matrices[:, :, 3:], matrices[:, :, :3], points)
    return _written_out(matrices, points)


def _written_out(matrices: Tensor, points: Tensor) -> Tensor:
    """`_placed` without a matrix product: with TF32 (`--allow_tf32`) one would keep three digits of each number."""
    out = matrices[:, :, 3:] + matrices[:, :, :1] * points[:, :1]
    return out.addcmul_(matrices[:, :, 1:2], points[:, 1:2]).addcmul_(matrices[:, :, 2:3], points[:, 2:])


def _columns(values: Tensor, first: Tensor, step: int) -> Tensor:
    """Three numbers of each row, [3, R]: `values` laid out flat, at `first` and one and two `step`s further."""
    flat = values.view(-1)
    return torch.stack([flat.index_select(0, first + i * step) for i in range(3)])


def _visible(image: Tensor, sizes: Tensor, window: tuple[int, int] | None, config: RayConfig) -> Tensor:
    """Which points [T, V, K, 3, P] lie in the depth range and in the images: bool [T, V, P]."""
    u, v, z = image[:, :, 0].unbind(2)
    near, far = config.depth_range
    bottom, right = (sizes[..., i, None] - config.border for i in (0, 1))
    # Compared with the border times z, not divided by z: half the time, and nothing to say about z = 0.
    visible = (z >= near) & (z < far)
    visible &= (u > config.border * z) & (u < right * z)
    visible &= (v > config.border * z) & (v < bottom * z)
    if config.crop_to_input and window is not None:
        u, v, _ = image[:, :, 1].unbind(2)
        height, width = window
        # An integer is a pixel's centre: the input begins half a pixel before its first one.
        visible &= (u >= -0.5 * z) & (u < (width - 0.5) * z)
        visible &= (v >= -0.5 * z) & (v < (height - 0.5) * z)
    return visible


def _concatenated(parts: list[Seen], device: torch.device) -> Seen:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none, nothing = torch.zeros(0, dtype=torch.int64, device=device), torch.zeros(3, 0, device=device)
        return Seen(none, none, none, nothing, nothing, none)
    return Seen(*(torch.cat(values, -1) for values in zip(*parts, strict=True)))
