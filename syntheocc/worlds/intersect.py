"""Exact intersection of rays with solids and with the ground: the definition that every fast path is tested against.

A ray is ``origin + t * direction``. Each solid is met in its own shape space, where it is a unit shape and the ray is
another ray with the same t. Only front faces count: a solid that holds the ray's origin is not seen (a camera in a
bumper looks out of it). float64, dense over rays x solids in chunks. Legend: R rays, P solids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from syntheocc.worlds.ground import Ground
    from syntheocc.worlds.primitives import Primitives

NOTHING, GROUND = -1, -2
# Pairs of ray and solid that are worked on at a time.
_CHUNK = 1 << 20
# Steps of the ground search. Each removes at least the share r / R of what is left to the surface (r: the ray's true
# rate of descent, R: the steepest possible); 96 reach the last bit but for rays that graze a crest.
_GROUND_STEPS = 96


def first_hit(
    primitives: Primitives,
    ground: Ground | None,
    origins: Tensor,
    directions: Tensor,
    max_distance: float = float("inf"),
) -> tuple[Tensor, Tensor, Tensor]:
    """The first surface that each ray meets.

    Args:
        primitives: solids in the rays' frame.
        ground: the ground in the same frame, or None.
        origins: [R, 3] metres.
        directions: [R, 3] of any length; NaN rays meet nothing.
        max_distance: metres; what is farther is not met.

    Returns:
        distance float64 [R] in metres (inf where nothing is met), index int64 [R] (a solid's, `GROUND` or `NOTHING`),
        outward unit normal float64 [R, 3] (zeros where nothing is met).
    """
    device = primitives.shape2frame.device
    origins = torch.as_tensor(origins, dtype=torch.float64, device=device)
    directions = torch.as_tensor(directions, dtype=torch.float64, device=device)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    rays, solids = len(origins), len(primitives)
    distance = torch.full((rays,), torch.inf, dtype=torch.float64, device=device)
    index = torch.full((rays,), NOTHING, dtype=torch.int64, device=device)
    if ground is not None:
        distance = ground_hit(ground, origins, directions, max_distance)
        index = torch.where(torch.isfinite(distance), GROUND, index)
    if solids:
        frame2shape = torch.linalg.inv(primitives.shape2frame)
        for part in torch.arange(rays, device=device).split(max(1, _CHUNK // solids)):
            t = solid_entries(primitives, frame2shape, origins[part], directions[part])
            nearest, which = t.min(dim=1)
            closer = (nearest < distance[part]) & (nearest <= max_distance)
            distance[part] = torch.where(closer, nearest, distance[part])
            index[part] = torch.where(closer, which, index[part])
    points = origins + torch.where(torch.isfinite(distance), distance, 0.0)[:, None] * directions
    normal = torch.zeros_like(origins)
    on_ground, on_solid = index == GROUND, index >= 0
    if ground is not None:
        normal[on_ground] = ground.normal(points[on_ground, :2])
    if bool(on_solid.any()):
        normal[on_solid] = solid_normals(primitives, index[on_solid], points[on_solid])
    return distance, index, normal


def solid_entries(primitives: Primitives, frame2shape: Tensor, origins: Tensor, directions: Tensor) -> Tensor:
    """Where each ray enters each solid.

    Args:
        primitives: P solids.
        frame2shape: float64 [P, 4, 4], the inverse of their shape2frame.
        origins: float64 [R, 3].
        directions: float64 [R, 3]; t is in units of their length.

    Returns:
        t float64 [R, P] > 0, inf where a ray misses or starts inside.
    """
    linear = frame2shape[:, :3, :3]
    o = torch.einsum("pij,rj->rpi", linear, origins) + frame2shape[:, :3, 3]
    d = torch.einsum("pij,rj->rpi", linear, directions)
    kind = primitives.kind
    t = torch.where(kind == 0, _box_entry(o, d), torch.where(kind == 1, _ball_entry(o, d), torch.inf))
    cones = (kind == 2).nonzero()[:, 0]
    if len(cones):
        t[:, cones] = _cone_entry(o[:, cones], d[:, cones], primitives.taper[cones])
    return torch.where(t > 0, t, torch.inf)


def _box_entry(o: Tensor, d: Tensor) -> Tensor:
    inverse = 1 / torch.where(d.abs() > 1e-300, d, 1e-300)
    low, high = (-1 - o) * inverse, (1 - o) * inverse
    enter, leave = torch.minimum(low, high).amax(-1), torch.maximum(low, high).amin(-1)
    return torch.where(enter <= leave, enter, torch.inf)


def _first_root(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The root of a t^2 + 2 b t + c where its value falls through zero; NaN where there is none.

    There the slope a t + b is -sqrt(b^2 - a c), whatever the sign of a; of two equivalent forms the one without
    cancellation is taken.
    """
    root = (b * b - a * c).sqrt()
    return torch.where(b <= 0, c / (root - b), -(b + root) / a)


def _ball_entry(o: Tensor, d: Tensor) -> Tensor:
    t = _first_root((d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1)
    return torch.where(t.isnan(), torch.inf, t)


def _cone_entry(o: Tensor, d: Tensor, taper: Tensor) -> Tensor:
    slope = taper / 2
    radius = 1 - slope - slope * o[..., 2]  # of the cone at the ray's origin
    a = d[..., 0] ** 2 + d[..., 1] ** 2 - (slope * d[..., 2]) ** 2
    b = o[..., 0] * d[..., 0] + o[..., 1] * d[..., 1] + slope * radius * d[..., 2]
    c = o[..., 0] ** 2 + o[..., 1] ** 2 - radius**2
    side = _first_root(a, b, c)
    height = o[..., 2] + side * d[..., 2]
    # The height test also drops the other half of the double cone, which begins at or above z = 1.
    side = torch.where(height.abs() <= 1, side, torch.inf)
    # The front cap is the upper one for a ray that goes down, else the lower one.
    front = torch.where(d[..., 2] < 0, 1.0, -1.0)
    cap = (front - o[..., 2]) / torch.where(d[..., 2].abs() > 1e-300, d[..., 2], 1e-300)
    limit = torch.where(front > 0, 1 - taper, torch.ones_like(taper))
    inside = (o[..., :2] + cap[..., None] * d[..., :2]).square().sum(-1) <= limit**2
    cap = torch.where(inside & (cap > 0), cap, torch.inf)
    side = torch.where(side > 0, side, torch.inf)
    return torch.minimum(side, cap)


def ground_hit(ground: Ground, origins: Tensor, directions: Tensor, max_distance: float = float("inf")) -> Tensor:
    """Distance at which each ray meets the ground, float64 [R]; inf where it does not, or starts below it.

    Along a unit ray the height above the ground cannot fall faster than R = slope * |d_xy| - d_z, so a step of
    height / R never crosses the surface; repeated, it comes to the first crossing from above.
    """
    steepest = ground.max_slope() * directions[:, :2].norm(dim=-1) - directions[:, 2]
    t = torch.zeros(len(origins), dtype=torch.float64, device=origins.device)
    above = origins[:, 2] - ground.height(origins[:, :2])
    started = above >= 0
    can = started & (steepest > 1e-9)
    limit = min(max_distance, 1e4)
    for _ in range(_GROUND_STEPS):
        falling = can & (t <= limit) & (above > 1e-12)
        if not bool(falling.any()):
            break
        t = torch.where(falling, t + above / steepest, t)
        points = origins + t[:, None] * directions
        above = (points[:, 2] - ground.height(points[:, :2])).clamp_min(0)
    return torch.where(can & (t <= limit) & (above < 1e-6), t, torch.inf)


def solid_normals(primitives: Primitives, index: Tensor, points: Tensor) -> Tensor:
    """Outward unit normals.

    Args:
        primitives: P solids.
        index: int64 [R], which solid each point lies on.
        points: float64 [R, 3] on the surfaces, in the solids' frame.

    Returns:
        float64 [R, 3] in the solids' frame.
    """
    frame2shape = torch.linalg.inv(primitives.shape2frame)[index]
    local = (frame2shape[:, :3, :3] @ points[:, :, None])[..., 0] + frame2shape[:, :3, 3]
    normal = (shape_normals(primitives.kind[index], primitives.taper[index], local)[:, None] @ frame2shape[:, :3, :3])[
        :, 0
    ]
    return normal / normal.norm(dim=-1, keepdim=True)


def shape_normals(kind: Tensor, taper: Tensor, local: Tensor) -> Tensor:
    """Gradients (not unit) of the unit shapes' surfaces at points [R, 3] in shape space; kind, taper [R]."""
    # A box shows the face whose coordinate is largest.
    axis = torch.nn.functional.one_hot(local.abs().argmax(-1), 3).to(local.dtype)
    box = axis * local.sign()
    x, y, z = local.unbind(-1)
    slope = taper / 2
    radius = 1 - slope - slope * z
    side = torch.stack([x, y, slope * radius], -1)
    cap = torch.stack([torch.zeros_like(x), torch.zeros_like(x), z.sign()], -1)
    # Which of the two surfaces is the point on? Compare how far it is from each.
    on_cap = (1 - z.abs()).abs() < (torch.hypot(x, y) - radius).abs()
    cone = torch.where(on_cap[:, None], cap, side)
    return torch.where((kind == 0)[:, None], box, torch.where((kind == 1)[:, None], local, cone))
