"""Augmentation of images and grids, and the matrices that keep the projections right (specs/sparseocc.md 1.4-1.6).

A draw is a small frozen object with its 4x4 matrix: one for all cameras and frames of a sample, because points of the
grid are projected into all of them. With A an image's matrix and B the grid's,

    ego2img = A @ intrinsics @ ego2cam @ inv(B)

takes points of the augmented grid to (u*z, v*z, z, 1) of the network's input pixels.

Legend: H W network input, X Y Z voxels.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["GridTransform", "ImageAugmentation", "ImageTransform", "draw_grid_transform", "transform_labels"]


@dataclass(frozen=True)
class ImageTransform:
    """An image scaled, then cropped to a window (black where it reaches beyond the image), mirrored, and turned.

    Args:
        scale: of the original image.
        left, top: the window's corner in scaled pixels.
        height, width: the window's size, H and W.
        flip: mirror the window left to right.
        rotation: radians, counter-clockwise as one looks at the window, about its centre.
    """

    scale: float
    left: int
    top: int
    height: int
    width: int
    flip: bool = False
    rotation: float = 0.0

    def scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, whole pixels, of the scaled image."""
        # The small number: 0.44 * 1600 is 703.9999... or 704 depending on how 0.44 came about.
        return int(height * self.scale + 1e-6), int(width * self.scale + 1e-6)

    def matrix(self) -> Tensor:
        """A: (u*z, v*z, z, 1) of the original image to those of the window, float64 [4, 4]."""
        a = torch.eye(4, dtype=torch.float64)
        a[0, 0], a[1, 1] = self.scale, self.scale
        a[0, 2], a[1, 2] = -self.left, -self.top
        if self.flip:
            a[0, 0], a[0, 2] = -a[0, 0], self.width - a[0, 2]
        if self.rotation:
            cos, sin = math.cos(self.rotation), math.sin(self.rotation)
            turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)  # v points down
            center = torch.tensor([self.width, self.height], dtype=torch.float64) / 2
            a[:2, :3] = turn @ a[:2, :3]
            a[:2, 2] += center - turn @ center
        return a


@dataclass(frozen=True, kw_only=True)
class ImageAugmentation:
    """How image transforms are chosen.

    Args:
        height, width: H and W of the network's input.
        scales: range of the training scale, in units of the test scale (which makes the image cover the window). The
            published range is 0.38 to 0.55 with a test scale of 0.44.
        flip: mirror half of the training samples.
        max_rotation: largest turn in training, radians.
        per_camera: a draw of its own for each camera of a sample, instead of one for all of them; either way a
            camera's frames share theirs.

    Raises:
        ValueError: sizes or scales that are not positive, or a negative turn.
    """

    height: int
    width: int
    scales: tuple[float, float] = (0.38 / 0.44, 0.55 / 0.44)
    flip: bool = True
    max_rotation: float = 0.0
    per_camera: bool = False

    def __post_init__(self):
        if self.max_rotation < 0:
            raise ValueError(f"max_rotation must not be negative, got {self.max_rotation}")
        if self.height < 1 or self.width < 1 or not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(
                f"an input of {self.height} x {self.width} pixels at scales {self.scales}: all must be positive, in "
                "rising order"
            )

    def test_scale(self, height: int, width: int) -> float:
        """The smallest scale at which an image of this size covers the window."""
        return max(self.height / height, self.width / width)

    def for_test(self, height: int, width: int) -> ImageTransform:
        """The window at the bottom of the image, in its middle, at the test scale."""
        scale = self.test_scale(height, width)
        transform = ImageTransform(scale, 0, 0, self.height, self.width)
        scaled_height, scaled_width = transform.scaled_size(height, width)
        left = max(0, scaled_width - self.width) // 2
        return ImageTransform(scale, left, scaled_height - self.height, self.height, self.width)

    def draw(self, height: int, width: int, generator: torch.Generator) -> ImageTransform:
        """A training transform: random scale, the window at the bottom at a random place, mirrored or not, turned."""
        share, place, mirror = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        low, high = self.scales
        scale = self.test_scale(height, width) * (low + share * (high - low))
        transform = ImageTransform(scale, 0, 0, self.height, self.width)
        scaled_height, scaled_width = transform.scaled_size(height, width)
        left = int(place * max(0, scaled_width - self.width))
        flip = self.flip and mirror < 0.5
        turn = 0.0
        if self.max_rotation:  # drawn only where it is wanted: other recipes' draws stay what they were
            turn = self.max_rotation * (2 * float(torch.rand((), generator=generator, dtype=torch.float64)) - 1)
        return ImageTransform(scale, left, scaled_height - self.height, self.height, self.width, flip, turn)


@dataclass(frozen=True)
class GridTransform:
    """The grid turned about z, then mirrored (images stay as they are).

    Args:
        yaw: radians, counter-clockwise seen from above.
        flip_x, flip_y: mirror that axis.
        scale: of all lengths.
    """

    yaw: float = 0.0
    flip_x: bool = False
    flip_y: bool = False
    scale: float = 1.0

    def matrix(self) -> Tensor:
        """B: old coordinates to new ones, float64 [4, 4]; no rigid transform when one axis is mirrored."""
        b = torch.eye(4, dtype=torch.float64)
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        b[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
        signs = torch.tensor([-1.0 if self.flip_x else 1.0, -1.0 if self.flip_y else 1.0, 1.0], dtype=torch.float64)
        b[:3, :3] = self.scale * signs[:, None] * b[:3, :3]
        return b


def draw_grid_transform(
    generator: torch.Generator,
    max_yaw: float = math.radians(22.5),
    flip: bool = True,
    scales: tuple[float, float] = (1.0, 1.0),
) -> GridTransform:
    """A random turn, mirroring of each axis in half of the draws, and a scale."""
    turn, mirror_x, mirror_y, size = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    return GridTransform(
        yaw=(2 * turn - 1) * max_yaw,
        flip_x=flip and mirror_x < 0.5,
        flip_y=flip and mirror_y < 0.5,
        scale=scales[0] + size * (scales[1] - scales[0]),
    )


def transform_labels(labels: Tensor, spec: GridSpec, transform: GridTransform, fill: int = UNKNOWN) -> Tensor:
    """The voxel labels of the transformed grid: each voxel takes the label at its centre's old place.

    Args:
        labels: [X, Y, Z], any integer type.
        spec: where the voxels lie; the turn is about the frame's origin, as the projections assume.
        transform: what is done.
        fill: the label of voxels whose old place lies outside.

    Returns:
        A new tensor of the same shape and type.
    """
    if transform == GridTransform():
        return labels.clone()
    old_from_new = torch.linalg.inv(transform.matrix()).numpy()
    size, lower = np.asarray(spec.voxel_size), np.asarray(spec.lower)
    x, y, z = (low + (np.arange(n) + 0.5) * s for low, n, s in zip(lower, spec.shape, size, strict=True))
    # z keeps to itself, so a slice's voxels are looked up once for all slices.
    old_x = old_from_new[0, 0] * x[:, None] + old_from_new[0, 1] * y[None, :]
    old_y = old_from_new[1, 0] * x[:, None] + old_from_new[1, 1] * y[None, :]
    i, j = (_index(old, axis, spec) for axis, old in enumerate((old_x, old_y)))
    k = _index(old_from_new[2, 2] * z, 2, spec)
    inside = (i >= 0)[:, :, None] & (j >= 0)[:, :, None] & (k >= 0)[None, None, :]
    columns = np.maximum(i, 0) * spec.shape[1] + np.maximum(j, 0)
    to = lambda index: torch.from_numpy(index).to(labels.device, non_blocking=True)  # noqa: E731
    moved = labels.reshape(-1, spec.shape[2])[to(columns.reshape(-1))].view(spec.shape)[..., to(np.maximum(k, 0))]
    return moved.masked_fill(~to(inside), fill)


def _index(places: np.ndarray, axis: int, spec: GridSpec) -> np.ndarray:
    """Voxel index along an axis, -1 outside."""
    # Mirrored centres land on centres to within rounding; a millionth of a voxel keeps faces from being crossed.
    index = np.floor((places - spec.lower[axis]) / spec.voxel_size[axis] + 1e-6).astype(np.int64)
    return np.where((index >= 0) & (index < spec.shape[axis]), index, -1)
