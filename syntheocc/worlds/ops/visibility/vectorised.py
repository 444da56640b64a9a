"""Visibility in plain torch: solids one after another, each on the rectangle of tiles that it can reach."""

import torch
from torch import Tensor

from syntheocc.worlds.ops.visibility import GROUND, KIND, NOTHING, TAPER, TILE, RayTiles, SolidTable
from syntheocc.worlds.ops.visibility.tables import tile_counts

_GROUND_STEPS = 64


def visible_torch(
    rays: RayTiles, solids: SolidTable, ground: Tensor | None, max_distance: float
) -> tuple[Tensor, Tensor]:
    """See `syntheocc.worlds.ops.visibility.visible`."""
    images, height, width, _ = rays.field.shape
    distance = torch.full((images, height, width), torch.inf, device=rays.field.device)
    row = torch.full((images, height, width), NOTHING, dtype=torch.int32, device=rays.field.device)
    for n in range(images):
        if ground is not None:
            distance[n] = ground_distance(rays, n, ground[n], max_distance)
            row[n] = torch.where(torch.isfinite(distance[n]), GROUND, row[n])
        for p, (top, bottom, left, right) in _rectangles(rays, solids, n, height, width):
            window = (n, slice(top, bottom), slice(left, right))
            t = _entry(rays, solids.rows[n, p], window)
            closer = t < distance[window]
            distance[window] = torch.where(closer, t, distance[window])
            row[window] = torch.where(closer, p, row[window])
    return distance, row


def tile_overlaps(planes: Tensor, rows: Tensor, bounds: Tensor) -> Tensor:
    """Which tiles [T, 5, 4] may see which solids (rows [P, 16], bounds [P, 12]): bool [T, P]."""
    center, axes = bounds[:, :3], bounds[:, 3:].reshape(-1, 3, 3)
    normals = planes[:, :4, :3]
    along = torch.einsum("tkc,pcj->tkpj", normals, axes)
    box = along.abs().sum(-1)
    ball = along.norm(dim=-1)
    tube = along[..., :2].norm(dim=-1) + along[..., 2].abs()
    kind = rows[:, KIND]
    support = torch.where(kind == 0, box, torch.where(kind == 1, ball, tube))
    reach = center.norm(dim=-1) + axes.flatten(1).norm(dim=-1)
    edge = torch.einsum("tkc,pc->tkp", normals, center) + support + planes[:, :4, 3, None]
    return (edge >= -planes[:, 4, 0, None, None] * reach).all(1)


def _rectangles(rays: RayTiles, solids: SolidTable, n: int, height: int, width: int):
    down, across, _, _ = tile_counts(height, width)
    seen = tile_overlaps(rays.planes[n], solids.rows[n], solids.bounds[n]).reshape(down, across, -1)
    in_rows, in_columns = seen.any(1).T.tolist(), seen.any(0).T.tolist()
    for p in seen.flatten(0, 1).any(0).nonzero()[:, 0].tolist():
        top, bottom = in_rows[p].index(True), down - in_rows[p][::-1].index(True)
        left, right = in_columns[p].index(True), across - in_columns[p][::-1].index(True)
        yield p, (top * TILE, bottom * TILE, left * TILE, right * TILE)


def _entry(rays: RayTiles, row: Tensor, window: tuple) -> Tensor:
    linear, offset = row[:9].reshape(3, 3), row[9:12]
    turned = rays.field[window] @ linear.T
    if rays.parallel:
        o, d = turned + offset, (linear @ rays.direction[window[0]]).expand_as(turned)
    else:
        o, d = offset.expand_as(turned), turned
    kind = int(row[KIND])
    if kind == 0:
        low, high = (-1 - o) / d, (1 - o) / d
        t = torch.minimum(low, high).amax(-1)
        t = torch.where(t <= torch.maximum(low, high).amin(-1), t, torch.inf)
        return torch.where(t > 0, t, torch.inf)
    # About the point nearest to the shape's middle: far away, the quadratic would cancel in float32.
    square = (d * d).sum(-1)
    start = -(o * d).sum(-1) / square
    o = o + start[..., None] * d
    if kind == 1:
        t = start - ((1 - (o * o).sum(-1)) / square).sqrt()
        return torch.where(t > 0, t, torch.inf)
    slope = row[TAPER] / 2
    radius = 1 - slope - slope * o[..., 2]
    a = d[..., 0] ** 2 + d[..., 1] ** 2 - (slope * d[..., 2]) ** 2
    b = o[..., 0] * d[..., 0] + o[..., 1] * d[..., 1] + slope * radius * d[..., 2]
    c = o[..., 0] ** 2 + o[..., 1] ** 2 - radius**2
    root = (b * b - a * c).sqrt()
    side = torch.where(b <= 0, c / (root - b), -(b + root) / a)
    side = torch.where((o[..., 2] + side * d[..., 2]).abs() <= 1, side, torch.inf)
    front = torch.where(d[..., 2] < 0, 1.0, -1.0)
    cap = (front - o[..., 2]) / d[..., 2]
    limit = torch.where(front > 0, 1 - row[TAPER], 1.0)
    inside = (o[..., 0] + cap * d[..., 0]) ** 2 + (o[..., 1] + cap * d[..., 1]) ** 2 <= limit**2
    cap = torch.where(inside & (start + cap > 0), cap, torch.inf)
    side = torch.where(start + side > 0, side, torch.inf)
    return start + torch.minimum(side, cap)


def ground_distance(rays: RayTiles, n: int, ground: Tensor, max_distance: float) -> Tensor:
    """Distance to the ground of every ray of image n, float32 [H, W], inf where there is none; see `ground_hit`."""
    field = rays.field[n]
    zero = torch.zeros_like(field)
    origin, ray = (field, zero + rays.direction[n]) if rays.parallel else (zero, field)
    base, ramp, slope, waves = ground[0], ground[1:3], ground[3], ground[4:].reshape(-1, 4)

    def above(t: Tensor) -> Tensor:
        point = origin + t[..., None] * ray
        angle = point[..., :2] @ waves[:, 1:3].T + waves[:, 3]
        return point[..., 2] - base - point[..., :2] @ ramp - (waves[:, 0] * angle.sin()).sum(-1)

    steepest = slope * ray[..., :2].norm(dim=-1) - ray[..., 2]
    t = torch.zeros_like(field[..., 0])
    height = above(t)
    can = (steepest > 1e-6) & (height >= 0)
    for _ in range(_GROUND_STEPS):
        t = torch.where(can & (t <= max_distance), t + height.clamp_min(0) / steepest, t)
        height = above(t)
    return torch.where(can & (t <= max_distance) & (height < 1e-4 + 2e-6 * t), t, torch.inf)
