"""Values of voxel volumes at points: trilinear, nearest, and where a point lies between the voxel centres.

Legend: X Y Z voxels, C channels. Specification: specs/occflownet_splattingocc.md 3.3 item 4, vector V6.
"""

import torch
from torch import Tensor
from torch.nn import functional

from syntheocc.occupancy.grids import GridSpec

__all__ = ["nearest", "trilinear", "voxel_coordinates"]


def voxel_coordinates(
    points: Tensor,  # [..., 3]
    spec: GridSpec,
    legacy: bool = False,
) -> Tensor:
    """Points in units of voxels, whole numbers being voxel centres.

    Args:
        points: metres, in the grid's frame.
        spec: where the voxels lie.
        legacy: as the published renderers look volumes up: the grid's faces are taken for the centres of its outer
            voxels (``align_corners``), so the scene is shifted by up to half a voxel towards the borders.

    Returns:
        [..., 3]; 0 is the centre of the first voxel.
    """
    lower = points.new_tensor(spec.lower)
    if legacy:
        extent = points.new_tensor(spec.upper) - lower
        return (points - lower) / extent * (points.new_tensor(spec.shape) - 1)
    return (points - lower) / points.new_tensor(spec.voxel_size) - 0.5


def trilinear(
    volume: Tensor,  # [X, Y, Z] or [X, Y, Z, C]
    coordinates: Tensor,  # [..., 3]
) -> Tensor:
    """Trilinear interpolation between voxel centres; beyond the outer ones values fade to 0 over one voxel.

    Args:
        volume: values; gradients go to it and to the coordinates.
        coordinates: see `voxel_coordinates`, of the volume's dtype; points that are not finite lie outside.

    Returns:
        [...] or [..., C].
    """
    size = coordinates.new_tensor(volume.shape[:3])
    # Far points would overflow grid_sample's integers.
    at = torch.maximum(torch.minimum(coordinates.nan_to_num(-2.0), size + 1), -2 * torch.ones_like(size))
    # grid_sample's own convention with align_corners=False, whose axes are in reverse: depth X, height Y, width Z.
    unit = ((2 * at + 1) / size - 1).flip(-1).reshape(1, 1, 1, -1, 3)
    channels = volume[None] if volume.ndim == 3 else volume.permute(3, 0, 1, 2)
    found = functional.grid_sample(channels[None], unit, mode="bilinear", padding_mode="zeros", align_corners=False)
    if volume.ndim == 3:
        return found.view(coordinates.shape[:-1])
    return found[0, :, 0, 0].transpose(0, 1).reshape(*coordinates.shape[:-1], volume.shape[3])


def nearest(
    volume: Tensor,  # [X, Y, Z] or [X, Y, Z, C]
    coordinates: Tensor,  # [..., 3]
    outside: float = 0,
) -> Tensor:
    """The value of the voxel that each point lies in; `outside` beyond the grid.

    Args:
        volume: values of any dtype.
        coordinates: see `voxel_coordinates`.
        outside: the value of points in no voxel (not finite ones, too).

    Returns:
        [...] or [..., C] of the volume's dtype.
    """
    size = torch.tensor(volume.shape[:3], device=volume.device)
    cell = (coordinates + 0.5).floor()
    inside = ((cell >= 0) & (cell < size)).all(-1)
    x, y, z = torch.where(inside[..., None], cell, 0.0).long().unbind(-1)
    flat = (x * volume.shape[1] + y) * volume.shape[2] + z
    # index_select adds its gradients up directly, where indexing sorts them first.
    found = volume.flatten(0, 2).index_select(0, flat.flatten()).view(*flat.shape, *volume.shape[3:])
    return torch.where(inside if volume.ndim == 3 else inside[..., None], found, outside)
