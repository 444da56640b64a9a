"""The visibility operator: which solid, or the ground, does each pixel's ray meet first, and how far away?

Images are cut into square tiles. Solids whose bounds lie outside a tile's four side planes are dropped for it; the
others are met one by one, nearest bound first, until they begin behind all that the tile has seen. Intersections are
those of `syntheocc.worlds.intersect`, in float32, in axes parallel to the world's but with the origin at the eye, so
that rounding is relative to the distance.

Implementations of one signature: `torch` (vectorised, any device: the slow reference), `numba` (CPU), `triton` (GPU).
They agree up to float32 rounding: pixels on the very edge of a solid may fall to either side.

Legend: N images, H W pixels, P solids, T tiles of an image, K waves of the ground.
"""

import importlib.util
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

BACKENDS = ("torch", "numba", "triton")
NOTHING, GROUND = -1, -2
TILE = 16
# Tiles of a coarse tile, along each edge: what the CPU culls first.
COARSE = 8
# Columns of `SolidTable.rows` behind the nine of the linear part and the three of the offset.
TAPER, NEAR, KIND = 12, 13, 14


@dataclass(frozen=True, eq=False)
class SolidTable:
    """Solids as each image's rays see them, sorted by how near they can be.

    Args:
        rows: float32 [N, P, 16]: shape coordinates of an eye-centred point p are ``linear @ p + offset``: linear
            (row major, 9), offset (3), taper, least distance, kind, 0.
        bounds: float32 [N, P, 12]: centre relative to the eye (3), linear part of shape2world (row major, 9).
        order: int64 [N, P], which primitive each row is.
    """

    rows: Tensor
    bounds: Tensor
    order: Tensor


@dataclass(frozen=True, eq=False)
class RayTiles:
    """The rays of N images of one size, and their tiles.

    Args:
        field: float32 [N, H, W, 3]. Perspective: unit directions from the eye. Parallel: origins, from the eye.
            NaN where a pixel has no ray.
        direction: float32 [N, 3], the common unit direction of parallel rays; zeros for perspective.
        planes: float32 [N, T, 5, 4], the tiles' sides as inward normals and offsets (four rows), and in the fifth
            row [0] the slack: a point p seen by the tile has n . p + d >= -slack |p|.
        coarse: float32 [N, Tc, 5, 4], the same for tiles of COARSE x COARSE tiles.
        parallel: whether rays are parallel (sun and overhead maps) or meet in the eye.
    """

    field: Tensor
    direction: Tensor
    planes: Tensor
    coarse: Tensor
    parallel: bool


def visible(
    rays: RayTiles,
    solids: SolidTable,
    ground: Tensor | None,
    max_distance: float = 2000.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The first hit of every ray.

    Args:
        rays: N images' rays.
        solids: N images' solids.
        ground: float32 [N, 4 + 4 K] relative to the eye: base, ramp x, ramp y, steepest slope, then (amplitude, kx,
            ky, phase) a wave; None for no ground.
        max_distance: how far the ground is searched, metres.
        backend: one of `BACKENDS`; None takes the fastest that is installed for the device.

    Returns:
        distance float32 [N, H, W] along the ray in metres (inf where there is nothing), row int32 [N, H, W]: a row of
        the image's `SolidTable`, `GROUND` or `NOTHING`.

    Raises:
        ValueError: an unknown backend, or one that cannot run here.
    """
    name = backend or choose_backend(rays.field.device)
    on_gpu = rays.field.device.type != "cpu"
    if name == "torch":
        from syntheocc.worlds.ops.visibility.vectorised import visible_torch as implementation
    elif name == "numba" and not on_gpu and _has_module("numba"):
        from syntheocc.worlds.ops.visibility.numba import visible_numba as implementation
    elif name == "triton" and _has_module("triton"):
        from syntheocc.worlds.ops.visibility.triton import visible_triton as implementation
    else:
        raise ValueError(
            f"backend {name!r} cannot run on {rays.field.device}: choose from {', '.join(BACKENDS)}; numba works on "
            "the CPU (pip install 'syntheocc[fast]'), triton on a GPU (it comes with the GPU builds of torch)"
        )
    return implementation(rays, solids, ground, max_distance)


def choose_backend(device: torch.device) -> str:
    """The fastest installed implementation for tensors on ``device``."""
    if device.type == "cuda" and _has_module("triton"):
        return "triton"
    if device.type == "cpu" and _has_module("numba"):
        return "numba"
    return "torch"


@cache
def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
