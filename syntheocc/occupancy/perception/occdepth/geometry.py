"""Where voxels lie in images: the projections that lifting and losses share.

Legend: B samples, V views, N voxels (x slowest, z fastest), H W network input.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.occdepth.batch import StereoBatch

__all__ = ["Projection", "StereoCameras", "project_voxels"]


@dataclass(frozen=True, eq=False)
class StereoCameras:
    """The cameras of a batch and where its grids lie; see the fields of `StereoBatch`.

    Args:
        velo2img: [B, V, 4, 4] from the grid's frame to (u*z, v*z, z, 1) of the network's input; zeros where a sample
            has no such camera.
        intrinsics: [B, V, 3, 3] of the original pictures, pixels.
        origin: [B, 3] the grid's lower corner, metres.

    Raises:
        ValueError: shapes that do not belong together.
    """

    velo2img: Tensor
    intrinsics: Tensor
    origin: Tensor

    def __post_init__(self):
        if self.velo2img.ndim != 4 or self.velo2img.shape[-2:] != (4, 4):
            raise ValueError(f"velo2img must be [B, V, 4, 4], got {tuple(self.velo2img.shape)}")
        batch, views = self.velo2img.shape[:2]
        for name, shape in {"intrinsics": (batch, views, 3, 3), "origin": (batch, 3)}.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(getattr(self, name).shape)}")

    @classmethod
    def of_batch(cls, batch: StereoBatch) -> "StereoCameras":
        """The cameras of a batch."""
        return cls(batch.velo2img, batch.intrinsics, batch.origin)

    def to(self, device: torch.device | str) -> "StereoCameras":
        """On another device."""
        return StereoCameras(self.velo2img.to(device), self.intrinsics.to(device), self.origin.to(device))

    def first(self, views: int) -> "StereoCameras":
        """The first `views` cameras."""
        return StereoCameras(self.velo2img[:, :views], self.intrinsics[:, :views], self.origin)

    def mirrored(self, width: int) -> "StereoCameras":
        """The cameras of the same pictures mirrored left to right, `width` pixels wide; the grid stays as it is."""
        mirror = torch.eye(4, dtype=self.velo2img.dtype, device=self.velo2img.device)
        mirror[0, 0], mirror[0, 2] = -1, width - 1
        return StereoCameras(mirror @ self.velo2img, self.intrinsics, self.origin)

    def ray_shift(self) -> Tensor:
        """How far a point at 1 m depth moves from the second view to the first, pixels: float64 [B].

        At depth z it is 1 / z of it. The pair must be rectified. Mirrored pictures and crops are in the matrices, so
        that the sign is right for them too (fx * baseline, or minus that).
        """
        first, second = self.velo2img[:, 0].double(), self.velo2img[:, 1].double()
        return (first @ torch.linalg.inv(second))[:, 0, 3]


class Projection(NamedTuple):
    """Voxel centres as cameras see them; without a camera all are behind it."""

    pixels: Tensor
    """float64 [B, V, N, 2] u, v of the network's input; not to be read where `depth` is not positive."""
    depth: Tensor
    """float64 [B, V, N] metres along the optical axis; 0 without a camera."""

    def inside(self, image_size: tuple[int, int]) -> Tensor:
        """Which voxels each view shows, bool [B, V, N]: in front, and the rounded pixel in the image (published)."""
        u, v = self.pixels.round().unbind(-1)
        height, width = image_size
        return (self.depth > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)


def project_voxels(cameras: StereoCameras, spec: GridSpec) -> Projection:
    """Project the centres of a grid's voxels into every camera.

    Args:
        cameras: with the lower corners of the samples' grids.
        spec: size and number of the voxels.
    """
    # Axis by axis, in float64: a rounding error is another pixel, and autocast would round products of matrices.
    matrix = cameras.velo2img.double()
    corner = (matrix[..., :3, :3] * cameras.origin.double()[:, None, None]).sum(-1) + matrix[..., :3, 3]  # [B, V, 3]
    rows = []
    for row in range(3):
        total = corner[..., row, None, None, None]
        for axis, (size, number) in enumerate(zip(spec.voxel_size, spec.shape, strict=True)):
            places = size * (torch.arange(number, device=matrix.device, dtype=torch.float64) + 0.5)
            shape = [1, 1, 1]
            shape[axis] = number
            total = total + matrix[..., row, axis, None, None, None] * places.view(shape)
        rows.append(total.flatten(-3))
    x, y, depth = rows
    safe = torch.where(depth > 0, depth, 1.0)
    # What is far outside stays an integer that fits, wherever it is rounded to.
    return Projection(torch.stack([x / safe, y / safe], -1).clamp(-1e6, 1e6), depth)
