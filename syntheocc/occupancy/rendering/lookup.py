"""Values of voxel volumes at points: trilinear, nearest, and where a point lies between the voxel centres.

Legend: X Y Z voxels, C channels. Specification: specs/occflownet_splattingocc.md 3.3 item 4, vector V6.
"""

from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.volume_render.vectorised import nearest_voxel, trilinear

__all__ = ["nearest_voxel", "trilinear", "voxel_coordinates"]


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
    lower = constant(spec.lower, points)
    if legacy:
        extent = constant(spec.upper, points) - lower
        return (points - lower) / extent * (constant(spec.shape, points) - 1)
    return (points - lower) / constant(spec.voxel_size, points) - 0.5
