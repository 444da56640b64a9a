"""Where voxels appear in pictures: their nearest pixels ("vox2pix"), and the tiles of the picture they fall into.

All of it is float64 and vectorised on the device of the matrices. A grid is axis-aligned, so the homogeneous pixels of
its centres are sums of one vector along each axis: no list of centres is made. Source: specs/occdepth.md 1.2, 1.3.

Legend: B samples, V views, P points of the pattern, X Y Z voxels, H W pictures.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.occdepth.batch import NO_TILE

__all__ = ["PATTERNS", "ProjectionCache", "VoxelPixels", "coarse_grid", "frustum_tiles", "homogeneous", "voxel_pixels"]

_CROSS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
_DIAGONALS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
_SPREAD = ((0, 0), (0, 2), (0, -2), *_DIAGONALS, (2, 0), (-2, 0))
_CORNERS = ((2, 2), (2, -2), (-2, 2), (-2, -2))
_KNIGHTS = tuple((du, dv) for du in (-3, 3) for dv in (-1, 1)) + tuple((du, dv) for du in (-1, 1) for dv in (-3, 3))

# Offsets (du, dv) around a voxel's pixel that are looked up and averaged; all published configurations use 0.
PATTERNS: dict[int, tuple[tuple[int, int], ...]] = {
    0: ((0, 0),),
    1: _CROSS,
    2: ((0, 0), *_DIAGONALS),
    3: (*_CROSS, *_DIAGONALS),  # the published list has (-1, 0) twice and lacks (0, -1)
    4: _SPREAD,
    5: (*_SPREAD, *_CORNERS),
    6: tuple((du, dv) for du in range(-2, 3) for dv in range(-2, 3)),
    7: tuple(offset for offset in _SPREAD if offset != (1, 1)),
    8: (*_SPREAD, *_CORNERS, *_KNIGHTS),
}


class VoxelPixels(NamedTuple):
    """The pixels of voxel centres; pictures' names are those of `pixels[..., p, :]` with the pattern's offset p."""

    pixels: Tensor
    """int64 [..., X, Y, Z, P, 2] (column, row); meaningful where in view."""
    in_view: Tensor
    """bool [..., X, Y, Z, P]: in front of the camera and in the picture."""
    depth: Tensor
    """float64 [..., X, Y, Z] metres along the optical axis; not positive behind the camera."""


def coarse_grid(spec: GridSpec, scale: int) -> GridSpec:
    """The grid of the same space with voxels `scale` times as large; ValueError where that leaves a part over."""
    if scale < 1 or any(n % scale for n in spec.shape):
        raise ValueError(f"voxels {scale} times as large do not divide a grid of {spec.shape}")
    x, y, z = (n // scale for n in spec.shape)
    sx, sy, sz = (size * scale for size in spec.voxel_size)
    return GridSpec(spec.lower, (sx, sy, sz), (x, y, z), spec.frame)


def homogeneous(velo2img: Tensor, spec: GridSpec, origin: Tensor | None = None) -> Tensor:
    """(u*z, v*z, z) of the centres of a grid's voxels.

    Args:
        velo2img: float64 [..., 4, 4] from the grid's frame to (u*z, v*z, z, 1).
        spec: the grid.
        origin: float64 [..., 3] its lower corner; the spec's own unless given.

    Returns:
        float64 [..., X, Y, Z, 3].
    """
    matrix = velo2img.to(torch.float64)
    lower = matrix.new_tensor(spec.lower) if origin is None else origin.to(matrix)
    size = matrix.new_tensor(spec.voxel_size)
    first = (matrix[..., :3, :3] @ (lower + 0.5 * size)[..., None])[..., 0] + matrix[..., :3, 3]
    out = first[..., None, None, None, :]
    for axis, number in enumerate(spec.shape):
        steps = torch.arange(number, dtype=torch.float64, device=matrix.device) * size[axis]
        along = steps[:, None] * matrix[..., None, :3, axis]  # [..., n, 3]
        for _ in range(axis):
            along = along.unsqueeze(-3)
        for _ in range(2 - axis):
            along = along.unsqueeze(-2)
        out = out + along
    return out


def voxel_pixels(
    velo2img: Tensor,  # [..., 4, 4]
    spec: GridSpec,
    image_size: tuple[int, int],
    origin: Tensor | None = None,  # [..., 3]
    pattern: Sequence[tuple[int, int]] = PATTERNS[0],
) -> VoxelPixels:
    """The nearest pixel of each voxel's centre (halves to even), and its neighbours of a pattern.

    Args:
        velo2img: see `homogeneous`; views and samples are leading dimensions.
        spec: the grid, e.g. `coarse_grid(SEMANTIC_KITTI.spec, 2)`, where the published model lifts features.
        image_size: H, W of the network's input.
        origin: see `homogeneous`; for views [B, V, 4, 4] give ``batch.origin[:, None]``.
        pattern: offsets in pixels, of `PATTERNS`.
    """
    uz, vz, depth = homogeneous(velo2img, spec, origin).unbind(-1)
    ahead = depth > 0
    z = torch.where(ahead, depth, 1.0)
    # A point close to the camera's plane is far outside of any picture, and of what an integer holds.
    column, row = (torch.where(ahead, p / z, -9.0).round().clamp(-(2.0**30), 2.0**30).long() for p in (uz, vz))
    offsets = torch.tensor(list(pattern), device=column.device)
    pixels = torch.stack([column, row], -1)[..., None, :] + offsets
    size = pixels.new_tensor([image_size[1], image_size[0]])
    in_view = ((pixels >= 0) & (pixels < size)).all(-1) & ahead[..., None]
    return VoxelPixels(pixels, in_view, depth)


def frustum_tiles(pixels: Tensor, in_view: Tensor, image_size: tuple[int, int], tiles: int = 8) -> Tensor:
    """The tile of the picture that each voxel is seen in: `StereoBatch.frustums`.

    The published loader keeps one mask a tile and frame, 134 MB; a voxel is in at most one tile of a view.

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
