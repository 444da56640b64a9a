"""Visibility on a GPU in two Triton launches for all images: solids are listed for every tile, then tiles are drawn.

The first kernel tests all solids against one tile's planes, a block at a time, and keeps those that may be seen, in
order. The second has a tile's pixels in registers, finds the ground and then walks its list, nearest bound first; the
kind of solid is the same for all lanes, so branches on it cost nothing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from syntheocc.worlds.ops.visibility import KIND, TILE, RayTiles, SolidTable
from syntheocc.worlds.ops.visibility.tables import tile_counts

BLOCK_SOLIDS = 128
GROUND_STEPS = 64
# Lists of the tiles of this many images are held at a time.
_LIST_BYTES = 1 << 29


def visible_triton(  # pragma: no cover (runs on a GPU)
    rays: RayTiles, solids: SolidTable, ground: Tensor | None, max_distance: float
) -> tuple[Tensor, Tensor]:
    """See `syntheocc.worlds.ops.visibility.visible`."""
    images, height, width, _ = rays.field.shape
    down, across, _, _ = tile_counts(height, width)
    tiles, count = down * across, solids.rows.shape[1]
    distance = torch.empty((images, height, width), device=rays.field.device)
    row = torch.empty((images, height, width), dtype=torch.int32, device=rays.field.device)
    floor = distance if ground is None else ground.contiguous()
    step = max(1, min(images, _LIST_BYTES // max(1, 4 * tiles * count)))
    lists = torch.empty((step, tiles, max(count, 1)), dtype=torch.int32, device=row.device)
    lengths = torch.empty((step, tiles), dtype=torch.int32, device=row.device)
    # One number of all solids side by side: neighbouring lanes then read neighbouring addresses.
    columns = torch.cat([solids.bounds, solids.rows[..., KIND : KIND + 1]], -1).transpose(1, 2).contiguous()
    for first in range(0, images, step):
        grid = (tiles, min(step, images - first))
        _list_kernel[grid](
            rays.planes, columns, lists, lengths, first, tiles, count,
            *(rays.planes.stride()[:2]), BLOCK=BLOCK_SOLIDS, num_warps=4,
        )  # fmt: skip
        _draw_kernel[grid](
            rays.field, rays.direction, solids.rows, floor, lists, lengths, distance, row, first, tiles, count,
            height, width, across, rays.field.stride(0), rays.direction.stride(0), float(max_distance),
            WAVES=0 if ground is None else (ground.shape[1] - 4) // 4, HAS_GROUND=ground is not None,
            PARALLEL=rays.parallel, TILE=TILE, STEPS=GROUND_STEPS, num_warps=4,
        )  # fmt: skip
    return distance, row


@triton.jit  # pragma: no cover (runs on a GPU)
def _list_kernel(planes, columns, lists, lengths, first, tiles, count, stride_image, stride_tile, BLOCK: tl.constexpr):
    tile = tl.program_id(0)
    slot = tl.program_id(1)
    image = (slot + first).to(tl.int64)
    plane = planes + image * stride_image + tile * stride_tile
    slack = tl.load(plane + 16)
    kept = 0
    out = lists + (slot.to(tl.int64) * tiles + tile) * count
    for start in range(0, count, BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = p < count
        bound = columns + image * 13 * count + p
        cx = tl.load(bound, mask=inside, other=0.0)
        cy = tl.load(bound + 1 * count, mask=inside, other=0.0)
        cz = tl.load(bound + 2 * count, mask=inside, other=0.0)
        a0 = tl.load(bound + 3 * count, mask=inside, other=0.0)
        b0 = tl.load(bound + 4 * count, mask=inside, other=0.0)
        c0 = tl.load(bound + 5 * count, mask=inside, other=0.0)
        a1 = tl.load(bound + 6 * count, mask=inside, other=0.0)
        b1 = tl.load(bound + 7 * count, mask=inside, other=0.0)
        c1 = tl.load(bound + 8 * count, mask=inside, other=0.0)
        a2 = tl.load(bound + 9 * count, mask=inside, other=0.0)
        b2 = tl.load(bound + 10 * count, mask=inside, other=0.0)
        c2 = tl.load(bound + 11 * count, mask=inside, other=0.0)
        kind = tl.load(bound + 12 * count, mask=inside, other=0.0)
        reach = tl.sqrt(a0 * a0 + a1 * a1 + a2 * a2 + b0 * b0 + b1 * b1 + b2 * b2 + c0 * c0 + c1 * c1 + c2 * c2)
        limit = -slack * (tl.sqrt(cx * cx + cy * cy + cz * cz) + reach)
        keep = inside
        for k in tl.static_range(4):
            nx = tl.load(plane + 4 * k)
            ny = tl.load(plane + 4 * k + 1)
            nz = tl.load(plane + 4 * k + 2)
            offset = tl.load(plane + 4 * k + 3)
            a = nx * a0 + ny * a1 + nz * a2
            b = nx * b0 + ny * b1 + nz * b2
            c = nx * c0 + ny * c1 + nz * c2
            box = tl.abs(a) + tl.abs(b) + tl.abs(c)
            ball = tl.sqrt(a * a + b * b + c * c)
            tube = tl.sqrt(a * a + b * b) + tl.abs(c)
            support = tl.where(kind == 0.0, box, tl.where(kind == 1.0, ball, tube))
            keep = keep & (nx * cx + ny * cy + nz * cz + offset + support >= limit)
        taken = keep.to(tl.int32)
        place = kept + tl.cumsum(taken, 0) - taken
        tl.store(out + place, p, mask=keep)
        kept += tl.sum(taken, 0)
    tl.store(lengths + slot * tiles + tile, kept)


@triton.jit  # pragma: no cover (runs on a GPU)
def _above(ox, oy, oz, dx, dy, dz, t, ground, WAVES: tl.constexpr):
    x = ox + t * dx
    y = oy + t * dy
    height = oz + t * dz - tl.load(ground) - tl.load(ground + 1) * x - tl.load(ground + 2) * y
    for k in tl.static_range(WAVES):
        angle = tl.load(ground + 5 + 4 * k) * x + tl.load(ground + 6 + 4 * k) * y + tl.load(ground + 7 + 4 * k)
        height -= tl.load(ground + 4 + 4 * k) * tl.sin(angle)
    return height


@triton.jit  # pragma: no cover (runs on a GPU)
def _draw_kernel(
    field, direction, rows, floor, lists, lengths, distance, row, first, tiles, count,
    height, width, across, stride_field, stride_direction, far,
    WAVES: tl.constexpr, HAS_GROUND: tl.constexpr, PARALLEL: tl.constexpr, TILE: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    slot = tl.program_id(1)
    image = (slot + first).to(tl.int64)
    lane = tl.arange(0, TILE * TILE)
    i = (tile // across) * TILE + lane // TILE
    j = (tile % across) * TILE + lane % TILE
    inside = (i < height) & (j < width)
    pixel = i * width + j
    nan = float("nan")
    px = tl.load(field + image * stride_field + pixel * 3, mask=inside, other=nan)
    py = tl.load(field + image * stride_field + pixel * 3 + 1, mask=inside, other=nan)
    pz = tl.load(field + image * stride_field + pixel * 3 + 2, mask=inside, other=nan)
    real = px == px
    best = tl.full((TILE * TILE,), float("inf"), tl.float32)
    which = tl.full((TILE * TILE,), -1, tl.int32)
    zero = px * 0.0
    qx = tl.load(direction + image * stride_direction)
    qy = tl.load(direction + image * stride_direction + 1)
    qz = tl.load(direction + image * stride_direction + 2)
    if HAS_GROUND:
        ground = floor + image * (4 + 4 * WAVES)
        if PARALLEL:
            ox, oy, oz, dx, dy, dz = px, py, pz, zero + qx, zero + qy, zero + qz
        else:
            ox, oy, oz, dx, dy, dz = zero, zero, zero, px, py, pz
        steepest = tl.load(ground + 3) * tl.sqrt(dx * dx + dy * dy) - dz
        t = zero
        above = _above(ox, oy, oz, dx, dy, dz, t, ground, WAVES)
        can = (steepest > 1e-6) & (above >= 0.0)
        step = 0
        active = tl.max((can & (t <= far) & (above > 3e-7)).to(tl.int32), 0)
        while (step < STEPS) & (active > 0):
            falling = can & (t <= far) & (above > 3e-7 * (1.0 + t))
            t = tl.where(falling, t + above / steepest, t)
            above = _above(ox, oy, oz, dx, dy, dz, t, ground, WAVES)
            active = tl.max((can & (t <= far) & (above > 3e-7 * (1.0 + t))).to(tl.int32), 0)
            step += 1
        met = can & (t <= far) & (above < 1e-4 + 2e-6 * t)
        best = tl.where(met, t, best)
        which = tl.where(met, -2, which)
    many = tl.load(lengths + slot * tiles + tile)
    list_ = lists + (slot.to(tl.int64) * tiles + tile) * count
    m = 0
    farthest = float("inf")
    while m < many:
        if m % 4 == 0:
            farthest = tl.max(tl.where(real, best, 0.0), 0)
        p = tl.load(list_ + m)
        r = rows + (image * count + p) * 16
        if tl.load(r + 13) > farthest:
            # Sorted by their least distance: all that follow begin behind what the tile has seen.
            m = many
        else:
            m += 1
            r0, r1, r2 = tl.load(r), tl.load(r + 1), tl.load(r + 2)
            r3, r4, r5 = tl.load(r + 3), tl.load(r + 4), tl.load(r + 5)
            r6, r7, r8 = tl.load(r + 6), tl.load(r + 7), tl.load(r + 8)
            bx, by, bz = tl.load(r + 9), tl.load(r + 10), tl.load(r + 11)
            vx = r0 * px + r1 * py + r2 * pz
            vy = r3 * px + r4 * py + r5 * pz
            vz = r6 * px + r7 * py + r8 * pz
            if PARALLEL:
                sx, sy, sz = bx + vx, by + vy, bz + vz
                ux = zero + (r0 * qx + r1 * qy + r2 * qz)
                uy = zero + (r3 * qx + r4 * qy + r5 * qz)
                uz = zero + (r6 * qx + r7 * qy + r8 * qz)
            else:
                sx, sy, sz = zero + bx, zero + by, zero + bz
                ux, uy, uz = vx, vy, vz
            kind = tl.load(r + 14)
            t = best
            if kind == 0.0:
                ix, iy, iz = 1.0 / ux, 1.0 / uy, 1.0 / uz
                ax, cx = (-1.0 - sx) * ix, (1.0 - sx) * ix
                ay, cy = (-1.0 - sy) * iy, (1.0 - sy) * iy
                az, cz = (-1.0 - sz) * iz, (1.0 - sz) * iz
                enter = tl.maximum(tl.maximum(tl.minimum(ax, cx), tl.minimum(ay, cy)), tl.minimum(az, cz))
                leave = tl.minimum(tl.minimum(tl.maximum(ax, cx), tl.maximum(ay, cy)), tl.maximum(az, cz))
                t = tl.where((enter <= leave) & (enter > 0.0), enter, float("inf"))
            else:
                square = ux * ux + uy * uy + uz * uz
                start = -(sx * ux + sy * uy + sz * uz) / square
                sx, sy, sz = sx + start * ux, sy + start * uy, sz + start * uz
                if kind == 1.0:
                    depth = 1.0 - sx * sx - sy * sy - sz * sz
                    near = start - tl.sqrt(tl.maximum(depth, 0.0) / square)
                    t = tl.where((depth > 0.0) & (near > 0.0), near, float("inf"))
                else:
                    taper = tl.load(r + 12)
                    slope = taper * 0.5
                    radius = 1.0 - slope - slope * sz
                    a = ux * ux + uy * uy - slope * slope * uz * uz
                    b = sx * ux + sy * uy + slope * radius * uz
                    c = sx * sx + sy * sy - radius * radius
                    under = b * b - a * c
                    root = tl.sqrt(tl.maximum(under, 0.0))
                    side = tl.where(b <= 0.0, c / (root - b), -(b + root) / a)
                    ok = (under > 0.0) & (tl.abs(sz + side * uz) <= 1.0) & (start + side > 0.0)
                    side = tl.where(ok, side, float("inf"))
                    front = tl.where(uz < 0.0, 1.0, -1.0)
                    limit = tl.where(uz < 0.0, (1.0 - taper) * (1.0 - taper), 1.0)
                    cap = (front - sz) / uz
                    x = sx + cap * ux
                    y = sy + cap * uy
                    ok = (x * x + y * y <= limit) & (start + cap > 0.0)
                    t = start + tl.minimum(side, tl.where(ok, cap, float("inf")))
            closer = t < best
            best = tl.where(closer, t, best)
            which = tl.where(closer, p, which)
    tl.store(distance + image * height * width + pixel, best, mask=inside)
    tl.store(row + image * height * width + pixel, which, mask=inside)
