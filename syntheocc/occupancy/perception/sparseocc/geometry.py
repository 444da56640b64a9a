"""Where voxels lie and which pixel of which image shows a point.

Legend: B samples, T frames, V views (cameras), N points, K voxels.
Voxels are named by their corner: the integer indices of their lowest full-resolution voxel.
"""

import torch
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec

# Offsets of a voxel's eight children in half voxels, in the order of the learnt split (specs/sparseocc.md 2.6).
CHILD_OFFSETS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
# A point is in front of a camera when its depth exceeds this.
_NEAR = 1e-5
# Far enough beside an image of any size that not even its blurred border is sampled.
_BESIDE = ((0.0, 0.0, 0.0, -1e6), (0.0, 0.0, 0.0, -1e6), (0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1.0))


def level_corners(shape: tuple[int, int, int], cell: int, device: torch.device | str | None = None) -> Tensor:
    """Corners of all voxels of a level, x slowest and z fastest: int64 [X*Y*Z, 3], multiples of `cell`.

    Args:
        shape: number of voxels of the level.
        cell: edge of its voxels in full-resolution voxels.
        device: where to make them.
    """
    axes = [torch.arange(n, device=device) * cell for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)


def child_corners(corners: Tensor, cell: int) -> Tensor:
    """Corners of the eight children of each voxel: [..., K, 3] to [..., K*8, 3]; `cell` is the parents' edge."""
    offsets = constant(CHILD_OFFSETS, corners.device) * (cell // 2)
    return (corners[..., None, :] + offsets).flatten(-3, -2)


def inside(corners: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Whether each voxel begins inside the full-resolution grid: bool [...]."""
    return (corners < constant(shape, corners.device)).all(-1)


def voxel_points(corners: Tensor, spec: GridSpec, offset: Tensor | float = 0.0) -> Tensor:
    """Metres in the grid's frame of ``corner + offset``, both in full-resolution voxels: float32 [..., 3]."""
    return constant(spec.lower, corners.device) + (corners + offset) * constant(spec.voxel_size, corners.device)


def painted_voxels(corners: Tensor, cell: int) -> Tensor:
    """The full-resolution voxels that each voxel covers: [..., K, 3] to [..., K, cell**3, 3]."""
    return corners[..., None, :] + level_corners((cell, cell, cell), 1, corners.device)


def gather_labels(labels: Tensor, voxels: Tensor, outside: int) -> Tensor:
    """Labels of full-resolution voxels.

    Args:
        labels: [B, X, Y, Z].
        voxels: int64 [B, ..., 3]; may lie beyond the grid's upper faces.
        outside: the label given to those.

    Returns:
        [B, ...] of the labels' dtype.
    """
    batch, *shape = labels.shape
    within = inside(voxels, (shape[0], shape[1], shape[2]))
    x, y, z = torch.where(within[..., None], voxels, 0).unbind(-1)
    flat = ((x * shape[1] + y) * shape[2] + z).flatten(1)
    found = labels.flatten(1).gather(1, flat).view(within.shape)
    return found.masked_fill(~within, outside)


def hide_missing_views(ego2img: Tensor) -> Tensor:
    """Make the projection of a missing camera (an all-zero matrix) put every point beside its image."""
    missing = (ego2img == 0).all(-1).all(-1)
    return torch.where(missing[..., None, None], constant(_BESIDE, ego2img.device).to(ego2img.dtype), ego2img)


def project_points(
    points: Tensor,  # [B, N, 3]
    ego2img: Tensor,  # [B, T, V, 4, 4]
    image_size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """The image position of each point in each frame, in the first view that shows it (specs/sparseocc.md 2.4).

    A point that no view shows gets its position beside the first view's image, where sampling finds zeros.

    Args:
        points: metres in the grid's frame.
        ego2img: from the grid's frame to (u*z, v*z, z, 1) of the network's input pixels.
        image_size: height and width of that input.

    Returns:
        locations float32 [B, T, N, 3] (u and v in units of the image's width and height, and the view as
        index / (V - 1)), and seen bool [B, T, N].
    """
    height, width = image_size
    num_views = ego2img.shape[2]
    # Projections need all their digits: half precision has a spacing of half a pixel at pixel 704.
    with torch.autocast(points.device.type, enabled=False):
        rows, columns = ego2img.float()[..., None], points.float()[:, None, None]
        # Spelt out, because a matrix product may run in TF32.
        u, v, z = (
            rows[..., i, 0, :] * columns[..., 0]
            + rows[..., i, 1, :] * columns[..., 1]
            + rows[..., i, 2, :] * columns[..., 2]
            + rows[..., i, 3, :]
            for i in range(3)
        )  # [B, T, V, N]
        depth = z.clamp_min(_NEAR)
        u, v = u / depth / width, v / depth / height
        valid = (z > _NEAR) & (u > 0) & (u < 1) & (v > 0) & (v < 1)
        first = valid.to(torch.uint8).argmax(2, keepdim=True)  # 0 when none is valid
        view = first.squeeze(2).to(u.dtype) / max(1, num_views - 1)
        locations = torch.stack([u.gather(2, first).squeeze(2), v.gather(2, first).squeeze(2), view], -1)
    return locations, valid.any(2)
