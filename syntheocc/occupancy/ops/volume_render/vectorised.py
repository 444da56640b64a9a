"""Values of volumes at points in plain torch, on any device, and their sums along rays.

Legend: X Y Z voxels, C channels.
"""

import torch
from torch import Tensor
from torch.nn import functional

from syntheocc.occupancy.constants import constant

__all__ = ["composite_volume_torch", "nearest_voxel", "trilinear"]


def trilinear(
    volume: Tensor,  # [X, Y, Z] or [X, Y, Z, C]
    coordinates: Tensor,  # [..., 3]
) -> Tensor:
    """Trilinear interpolation between voxel centres; beyond the outer ones values fade to 0 over one voxel.

    Args:
        volume: values; gradients go to it and to the coordinates.
        coordinates: in voxels, whole numbers being centres (`rendering.lookup`), of the volume's dtype; points that
            are not finite lie outside.

    Returns:
        [...] or [..., C].
    """
    size = constant(volume.shape[:3], coordinates)
    # Far points would overflow grid_sample's integers.
    at = torch.maximum(torch.minimum(coordinates.nan_to_num(-2.0), size + 1), -2 * torch.ones_like(size))
    # grid_sample's own convention with align_corners=False, whose axes are in reverse: depth X, height Y, width Z.
    unit = ((2 * at + 1) / size - 1).flip(-1).reshape(1, 1, 1, -1, 3)
    channels = volume[None] if volume.ndim == 3 else volume.permute(3, 0, 1, 2)
    found = functional.grid_sample(channels[None], unit, mode="bilinear", padding_mode="zeros", align_corners=False)
    if volume.ndim == 3:
        return found.view(coordinates.shape[:-1])
    return found[0, :, 0, 0].transpose(0, 1).reshape(*coordinates.shape[:-1], volume.shape[3])


def nearest_voxel(
    volume: Tensor,  # [X, Y, Z] or [X, Y, Z, C]
    coordinates: Tensor,  # [..., 3]
    outside: float = 0,
) -> Tensor:
    """The value of the voxel that each point lies in; `outside` beyond the grid.

    Args:
        volume: values of any dtype.
        coordinates: in voxels, whole numbers being centres.
        outside: the value of points in no voxel (not finite ones, too).

    Returns:
        [...] or [..., C] of the volume's dtype.
    """
    size = constant(volume.shape[:3], volume.device)
    cell = (coordinates + 0.5).floor()
    inside = ((cell >= 0) & (cell < size)).all(-1)
    x, y, z = torch.where(inside[..., None], cell, 0.0).long().unbind(-1)
    flat = (x * volume.shape[1] + y) * volume.shape[2] + z
    # index_select adds its gradients up directly, where indexing sorts them first.
    found = volume.flatten(0, 2).index_select(0, flat.flatten()).view(*flat.shape, *volume.shape[3:])
    return torch.where(inside if volume.ndim == 3 else inside[..., None], found, outside)


def composite_volume_torch(volume: Tensor, coordinates: Tensor, weights: Tensor, nearest: bool) -> Tensor:
    """See `syntheocc.occupancy.ops.volume_render.composite_volume`."""
    values = nearest_voxel(volume, coordinates) if nearest else trilinear(volume, coordinates)
    return torch.einsum("rs,rsc->rc", weights, values)
