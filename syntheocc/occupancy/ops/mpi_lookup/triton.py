"""The MPI lookup as one Triton launch for a whole batch of frames.

A program owns a small tile of cells of one view and walks the planes in blocks: it looks a [planes, cells] block up,
stores it and keeps the nearest hit in registers, so every output is written once and nothing else is. The tile's shape
weighs the gathers (z is the grid's fastest axis, so cells above each other share memory sectors) against the stores
(whose rows run along the image): measured on an H200, 4 x 8 takes 0.024 ms a frame, 8 x 4 0.032, 32 x 1 0.119 and
1 x 128 0.036 (benchmarks/mpi.py --tune). Blocks of planes on which the whole tile is outside the grid are filled
without looking. Positions are float64, which a kernel bound by its gathers has time for on a data-centre GPU.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from syntheocc.occupancy.ops.mpi_lookup import LookupPlanes

TILE_HEIGHT, TILE_WIDTH, BLOCK_LAYERS, NUM_WARPS = 4, 8, 16, 4


def mpi_lookup_triton(  # pragma: no cover (runs on a GPU)
    labels: Tensor,
    origins: Tensor,
    directions: Tensor,
    planes: LookupPlanes,
    free: int,
    table: Tensor | None = None,
    foreground: Tensor | None = None,
    config: tuple[int, int, int, int] = (TILE_HEIGHT, TILE_WIDTH, BLOCK_LAYERS, NUM_WARPS),
) -> tuple[Tensor, Tensor, Tensor]:
    """See `syntheocc.occupancy.ops.mpi_lookup.mpi_lookup`; ``config`` is for the tuner in benchmarks/mpi.py."""
    batch, views, samples, height, width, _ = directions.shape
    if labels[0].numel() >= 2**31:
        raise ValueError(f"a grid of {labels[0].numel()} voxels is beyond the 32-bit indices of the GPU kernel")
    tile_height, tile_width, block_layers, num_warps = config
    layers = labels.new_empty((batch, views, planes.num_layers, height, width))
    nearest = labels.new_empty((batch, views, height, width))
    nearest_plane = torch.empty((batch, views, height, width), dtype=torch.int16, device=labels.device)
    tiles = triton.cdiv(height, tile_height) * triton.cdiv(width, tile_width)
    _lookup_kernel[(tiles, batch * views)](
        labels.contiguous(),
        origins.contiguous(),
        directions.contiguous(),
        _depths(planes, labels.device),
        labels if table is None else table,
        labels if foreground is None else foreground.view(torch.uint8),
        layers,
        nearest,
        nearest_plane,
        planes.near,
        planes.step,
        labels.shape[1],
        labels.shape[2],
        labels.shape[3],
        views,
        height,
        width,
        planes.num_planes,
        planes.num_layers,
        free,
        HAS_TABLE=table is not None,
        SAMPLES=samples,
        MAX_GROUP=-(-planes.num_planes // planes.num_layers),
        TILE_HEIGHT=tile_height,
        TILE_WIDTH=tile_width,
        BLOCK_LAYERS=block_layers,
        num_warps=num_warps,
    )
    return layers, nearest, nearest_plane


@lru_cache(maxsize=32)  # pragma: no cover (runs on a GPU)
def _depths(planes: LookupPlanes, device: torch.device) -> Tensor:
    # A float argument of a Triton kernel is float32; depths have to arrive in float64.
    return planes.near + planes.step * torch.arange(planes.num_planes, dtype=torch.float64, device=device)


@triton.jit  # pragma: no cover (runs on a GPU)
def _clip(low, high, origin, ray, size):
    """Narrows the depth interval [low, high] to where one axis is inside the grid; a NaN ray gives an empty one."""
    a = -origin / ray
    b = (size - origin) / ray
    enter = tl.where(ray > 0, a, b)
    leave = tl.where(ray > 0, b, a)
    # A ray along the faces stays inside or outside; the test of every sample tells which.
    enter = tl.where(ray == 0, low, enter)
    leave = tl.where(ray == 0, high, leave)
    enter = tl.where(enter == enter, enter, float("inf"))
    return tl.maximum(low, enter), tl.minimum(high, leave)


@triton.jit  # pragma: no cover (runs on a GPU)
def _sample(grid, table, ox, oy, oz, rx, ry, rz, depth, live, size_x, size_y, size_z, free, HAS_TABLE: tl.constexpr):
    """Output labels (int32) of a block of samples."""
    x = ox + rx * depth
    y = oy + ry * depth
    z = oz + rz * depth
    # Conversion truncates and saturates, so beside the sign one integer comparison an axis is enough.
    ix, iy, iz = x.to(tl.int32), y.to(tl.int32), z.to(tl.int32)
    inside = live & (x >= 0) & (y >= 0) & (z >= 0) & (ix < size_x) & (iy < size_y) & (iz < size_z)
    found = tl.load(grid + ((ix * size_y + iy) * size_z + iz), mask=inside, other=255).to(tl.int32)
    if HAS_TABLE:
        found = tl.load(table + found, mask=inside, other=255).to(tl.int32)
    return tl.where(found == 255, free, found)


@triton.jit  # pragma: no cover (runs on a GPU)
def _lookup_kernel(
    labels,
    origins,
    directions,
    depths,
    table,
    foreground,
    layers,
    nearest,
    nearest_plane,
    near,
    step,
    size_x,
    size_y,
    size_z,
    views,
    height,
    width,
    num_planes,
    num_layers,
    free,
    HAS_TABLE: tl.constexpr,
    SAMPLES: tl.constexpr,
    MAX_GROUP: tl.constexpr,
    TILE_HEIGHT: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    BLOCK_LAYERS: tl.constexpr,
):
    tile, view = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles_across = tl.cdiv(width, TILE_WIDTH)
    k = tl.arange(0, TILE_HEIGHT * TILE_WIDTH)
    row = tile // tiles_across * TILE_HEIGHT + k // TILE_WIDTH
    column = tile % tiles_across * TILE_WIDTH + k % TILE_WIDTH
    in_image = (row < height) & (column < width)
    cell = row * width + column
    num_cells = height * width

    grid = labels + view // views * (size_x.to(tl.int64) * size_y * size_z)
    ox = tl.load(origins + view * 3)
    oy = tl.load(origins + view * 3 + 1)
    oz = tl.load(origins + view * 3 + 2)
    rays = directions + (view * SAMPLES * num_cells + cell) * 3
    rx = tl.load(rays, mask=in_image, other=float("nan"))
    ry = tl.load(rays + 1, mask=in_image, other=float("nan"))
    rz = tl.load(rays + 2, mask=in_image, other=float("nan"))

    # Depths between which any ray of the tile is inside the grid.
    enter = float("inf")
    leave = float("-inf")
    for s in tl.static_range(SAMPLES):
        low = tl.full([TILE_HEIGHT * TILE_WIDTH], 0.0, tl.float64)
        high = tl.full([TILE_HEIGHT * TILE_WIDTH], float("inf"), tl.float64)
        shift = s * num_cells * 3
        low, high = _clip(low, high, ox, tl.load(rays + shift, mask=in_image, other=float("nan")), size_x)
        low, high = _clip(low, high, oy, tl.load(rays + shift + 1, mask=in_image, other=float("nan")), size_y)
        low, high = _clip(low, high, oz, tl.load(rays + shift + 2, mask=in_image, other=float("nan")), size_z)
        enter = tl.minimum(enter, tl.min(tl.where(low <= high, low, float("inf")), 0))
        leave = tl.maximum(leave, tl.max(tl.where(low <= high, high, float("-inf")), 0))
    # One plane of slack on both sides for rounding.
    first_plane = tl.maximum(tl.minimum(tl.floor((enter - near) / step), num_planes), 0).to(tl.int32)
    last_plane = tl.minimum(tl.maximum(tl.ceil((leave - near) / step), -1), num_planes - 1).to(tl.int32)
    seen = last_plane >= first_plane
    first_plane = tl.where(seen, first_plane, 0)
    last_plane = tl.where(seen, last_plane, -1)
    first_layer = first_plane * num_layers // num_planes // BLOCK_LAYERS * BLOCK_LAYERS
    stop_layer = tl.cdiv((last_plane * num_layers + num_planes) // num_planes, BLOCK_LAYERS) * BLOCK_LAYERS

    out = layers + view * num_layers * num_cells
    block = tl.arange(0, BLOCK_LAYERS)[:, None]
    empty = tl.full([BLOCK_LAYERS, TILE_HEIGHT * TILE_WIDTH], 0, tl.int32) + free
    for start in range(0, first_layer, BLOCK_LAYERS):
        layer = start + block
        tl.store(out + layer * num_cells + cell[None, :], empty.to(tl.uint8), mask=in_image[None, :])
    for start in range(stop_layer, num_layers, BLOCK_LAYERS):
        layer = start + block
        live = (layer < num_layers) & in_image[None, :]
        tl.store(out + layer * num_cells + cell[None, :], empty.to(tl.uint8), mask=live)

    nobody = 32767 * 256 + 255
    best = tl.full([TILE_HEIGHT * TILE_WIDTH], nobody, tl.int32)
    for start in range(first_layer, stop_layer, BLOCK_LAYERS):
        layer = start + block
        chosen = empty
        chosen_plane = empty * 0
        for member in tl.static_range(MAX_GROUP):
            if MAX_GROUP == 1:
                plane = layer
                live = (layer < num_layers) & in_image[None, :]
            else:
                # The first plane of layer g is ceil(g * num_planes / num_layers).
                plane = (layer * num_planes + num_layers - 1) // num_layers + member
                live = (plane * num_layers // num_planes == layer) & (layer < num_layers) & in_image[None, :]
            depth = tl.load(depths + plane, mask=plane < num_planes, other=0.0)
            label = _sample(
                grid, table, ox, oy, oz, rx[None, :], ry[None, :], rz[None, :], depth, live,
                size_x, size_y, size_z, free, HAS_TABLE,
            )  # fmt: skip
            if SAMPLES > 1:
                preferred = tl.load(foreground + label) != 0
                for s in tl.static_range(1, SAMPLES):
                    shift = s * num_cells * 3
                    sx = tl.load(rays + shift, mask=in_image, other=float("nan"))
                    sy = tl.load(rays + shift + 1, mask=in_image, other=float("nan"))
                    sz = tl.load(rays + shift + 2, mask=in_image, other=float("nan"))
                    other = _sample(
                        grid, table, ox, oy, oz, sx[None, :], sy[None, :], sz[None, :], depth, live & ~preferred,
                        size_x, size_y, size_z, free, HAS_TABLE,
                    )  # fmt: skip
                    take = ~preferred & (tl.load(foreground + other) != 0)
                    label = tl.where(take, other, label)
                    preferred = preferred | take
            take = (chosen == free) & (label != free)
            chosen = tl.where(take, label, chosen)
            chosen_plane = tl.where(take, plane, chosen_plane)
        live = (layer < num_layers) & in_image[None, :]
        tl.store(out + layer * num_cells + cell[None, :], chosen.to(tl.uint8), mask=live)
        best = tl.minimum(best, tl.min(tl.where(chosen != free, chosen_plane * 256 + chosen, nobody), 0))

    found = best != nobody
    at = view * num_cells + cell
    tl.store(nearest + at, tl.where(found, best % 256, free).to(tl.uint8), mask=in_image)
    tl.store(nearest_plane + at, tl.where(found, best // 256, 0).to(tl.int16), mask=in_image)
