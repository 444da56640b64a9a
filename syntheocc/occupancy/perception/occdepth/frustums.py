"""Which tile of the picture each voxel is seen in: the compact form of the frustum masks (specs/occdepth.md 1.3).

The published loader keeps one mask a tile and frame, 134 MB, and makes them anew in every epoch; a voxel is in at most
one tile of a view, and for KITTI they are the same for all frames of a recording.

Legend: V views, X Y Z voxels, H W pictures.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.occdepth.batch import NO_TILE
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras, project_voxels

__all__ = ["ProjectionCache", "frustum_tiles", "tiles_of_pixels"]


def frustum_tiles(
    velo2img: Tensor,  # [V, 4, 4]
    origin: Tensor,  # [3]
    spec: GridSpec,
    image_size: tuple[int, int],
    tiles: int = 8,
) -> Tensor:
    """`StereoBatch.frustums` of one sample: uint8 [V, X, Y, Z].

    Args:
        velo2img: from the grid's frame to (u*z, v*z, z, 1) of the network's input.
        origin: the grid's lower corner, metres.
        spec: size and number of the voxels.
        image_size: H, W of the network's input.
        tiles: along a side of the picture.
    """
    eye = torch.eye(3, dtype=torch.float64).expand(1, len(velo2img), 3, 3)  # nothing here asks for intrinsics
    projection = project_voxels(StereoCameras(velo2img[None], eye, origin[None]), spec)
    found = tiles_of_pixels(projection.pixels[0].round().long(), projection.inside(image_size)[0], image_size, tiles)
    return found.unflatten(-1, spec.shape)


def tiles_of_pixels(pixels: Tensor, in_view: Tensor, image_size: tuple[int, int], tiles: int = 8) -> Tensor:
    """The tile of the picture that each voxel is seen in.

    Args:
        pixels: integer [..., V, N, 2] (column, row).
        in_view: bool [..., V, N].
        image_size: H, W.
        tiles: tiles along a side; at most 15, ids must stay below `NO_TILE`.

    Returns:
        uint8 [..., V, N]: row * tiles + column, `NO_TILE` where not in view or where an earlier view has the voxel in
        the same tile.
    """
    if not 1 <= tiles <= 15:
        raise ValueError(f"a picture is cut into 1..15 tiles a side, got frustum_size={tiles}")
    height, width = image_size
    column, row = pixels[..., 0] * tiles // width, pixels[..., 1] * tiles // height
    tile = torch.where(in_view, row * tiles + column, NO_TILE).to(torch.uint8)
    counted = tile.clone()
    for view in range(1, tile.shape[-2]):
        again = (tile[..., :view, :] == tile[..., view : view + 1, :]).any(-2)
        counted[..., view, :] = torch.where(again, NO_TILE, tile[..., view, :])
    return counted


class ProjectionCache:
    """Remembers what was computed of a calibration: it is the same for all frames of a sequence.

    Args:
        compute: (velo2img [V, 4, 4], origin [3]) -> any tensor.
        size: how many results are kept; KITTI's recordings have three calibrations.
    """

    def __init__(self, compute: Callable[[Tensor, Tensor], Tensor], size: int = 4):
        self.compute, self.size = compute, size
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, velo2img: Tensor, origin: Tensor) -> Tensor:
        """The result, shared by all callers: not to be written into."""
        key = velo2img.numpy().tobytes() + origin.numpy().tobytes()
        if key not in self._kept:
            self._kept[key] = self.compute(velo2img, origin)
            if len(self._kept) > self.size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
