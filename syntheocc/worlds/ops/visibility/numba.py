"""Visibility on the CPU, compiled by numba: threads take coarse tiles, inner loops run over a tile's pixels.

The inner loops have no branches, so that the compiler makes vector instructions of them; everything is float32 (a
bare literal would be float64 and halve the width).
"""

import numba
import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.ops.threads import run_in_threads
from syntheocc.worlds.ops.visibility import COARSE, GROUND, KIND, NEAR, NOTHING, TAPER, TILE, RayTiles, SolidTable
from syntheocc.worlds.ops.visibility.tables import tile_counts

_ZERO, _ONE, _HALF, _INF = np.float32(0), np.float32(1), np.float32(0.5), np.float32(np.inf)
_TINY = np.float32(1e-30)
_STEPS = 64
_PIXELS = TILE * TILE


def visible_numba(
    rays: RayTiles, solids: SolidTable, ground: Tensor | None, max_distance: float
) -> tuple[Tensor, Tensor]:
    """See `syntheocc.worlds.ops.visibility.visible`."""
    images, height, width, _ = rays.field.shape
    distance = torch.empty((images, height, width))
    row = torch.empty((images, height, width), dtype=torch.int32)
    down, across, coarse_down, coarse_across = tile_counts(height, width)
    floor = torch.zeros((images, 0)) if ground is None else ground
    run_in_threads(
        _coarse_tiles,
        images * coarse_down * coarse_across,
        rays.field.contiguous().numpy(),
        rays.direction.contiguous().numpy(),
        rays.planes.contiguous().numpy(),
        rays.coarse.contiguous().numpy(),
        rays.parallel,
        solids.rows.numpy(),
        solids.bounds.numpy(),
        floor.contiguous().numpy(),
        np.float32(max_distance),
        (down, across, coarse_down, coarse_across),
        distance.numpy(),
        row.numpy(),
    )
    return distance, row


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _outside(planes, rows, bounds):
    """Is the solid wholly on the outer side of one of the tile's planes?"""
    reach = _ZERO
    for j in range(9):
        reach += bounds[3 + j] * bounds[3 + j]
    away = bounds[0] * bounds[0] + bounds[1] * bounds[1] + bounds[2] * bounds[2]
    slack = planes[4, 0] * (np.sqrt(away) + np.sqrt(reach))
    kind = int(rows[KIND])
    for k in range(4):
        nx, ny, nz = planes[k, 0], planes[k, 1], planes[k, 2]
        edge = nx * bounds[0] + ny * bounds[1] + nz * bounds[2] + planes[k, 3]
        a = nx * bounds[3] + ny * bounds[6] + nz * bounds[9]
        b = nx * bounds[4] + ny * bounds[7] + nz * bounds[10]
        c = nx * bounds[5] + ny * bounds[8] + nz * bounds[11]
        if kind == 0:
            edge += abs(a) + abs(b) + abs(c)
        elif kind == 1:
            edge += np.sqrt(a * a + b * b + c * c)
        else:
            edge += np.sqrt(a * a + b * b) + abs(c)
        if edge < -slack:
            return True
    return False


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _ground_distance(ox, oy, oz, dx, dy, dz, ground, max_distance):
    steepest = ground[3] * np.sqrt(dx * dx + dy * dy) - dz
    waves = (len(ground) - 4) // 4
    t = _ZERO
    height = _INF
    for step in range(_STEPS + 1):
        x, y = ox + t * dx, oy + t * dy
        height = oz + t * dz - ground[0] - ground[1] * x - ground[2] * y
        for k in range(waves):
            angle = ground[5 + 4 * k] * x + ground[6 + 4 * k] * y + ground[7 + 4 * k]
            height -= ground[4 + 4 * k] * np.sin(angle)
        if step == 0 and not (steepest > np.float32(1e-6) and height >= _ZERO):
            return _INF
        # Closer than float32 resolves at this distance: done.
        if height <= np.float32(3e-7) * (_ONE + t) or t > max_distance:
            break
        if step < _STEPS:
            t += height / steepest
    if t <= max_distance and height < np.float32(1e-4) + np.float32(2e-6) * t:
        return t
    return _INF


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _meet_box(r, w, par, per, px, py, pz, number, best, which):
    for k in range(_PIXELS):
        vx = r[0] * px[k] + r[1] * py[k] + r[2] * pz[k]
        vy = r[3] * px[k] + r[4] * py[k] + r[5] * pz[k]
        vz = r[6] * px[k] + r[7] * py[k] + r[8] * pz[k]
        ix, iy, iz = _ONE / (w[0] + per * vx), _ONE / (w[1] + per * vy), _ONE / (w[2] + per * vz)
        ox, oy, oz = r[9] + par * vx, r[10] + par * vy, r[11] + par * vz
        ax, bx = (-_ONE - ox) * ix, (_ONE - ox) * ix
        ay, by = (-_ONE - oy) * iy, (_ONE - oy) * iy
        az, bz = (-_ONE - oz) * iz, (_ONE - oz) * iz
        enter = ax if ax < bx else bx
        leave = bx if ax < bx else ax
        e = ay if ay < by else by
        f = by if ay < by else ay
        enter = e if e > enter else enter
        leave = f if f < leave else leave
        e = az if az < bz else bz
        f = bz if az < bz else az
        enter = e if e > enter else enter
        leave = f if f < leave else leave
        hit = (enter <= leave) & (enter > _ZERO) & (enter < best[k])
        best[k] = enter if hit else best[k]
        which[k] = number if hit else which[k]


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _meet_ball(r, w, par, per, px, py, pz, number, best, which):
    for k in range(_PIXELS):
        vx = r[0] * px[k] + r[1] * py[k] + r[2] * pz[k]
        vy = r[3] * px[k] + r[4] * py[k] + r[5] * pz[k]
        vz = r[6] * px[k] + r[7] * py[k] + r[8] * pz[k]
        dx, dy, dz = w[0] + per * vx, w[1] + per * vy, w[2] + per * vz
        ox, oy, oz = r[9] + par * vx, r[10] + par * vy, r[11] + par * vz
        inverse = _ONE / (dx * dx + dy * dy + dz * dz)
        start = -(ox * dx + oy * dy + oz * dz) * inverse
        ox, oy, oz = ox + start * dx, oy + start * dy, oz + start * dz
        depth = _ONE - ox * ox - oy * oy - oz * oz
        t = start - np.sqrt((depth if depth > _ZERO else _ZERO) * inverse)
        hit = (depth > _ZERO) & (t > _ZERO) & (t < best[k])
        best[k] = t if hit else best[k]
        which[k] = number if hit else which[k]


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _meet_cone(r, w, par, per, px, py, pz, number, best, which):
    slope = r[TAPER] * _HALF
    top = (_ONE - r[TAPER]) * (_ONE - r[TAPER])
    for k in range(_PIXELS):
        vx = r[0] * px[k] + r[1] * py[k] + r[2] * pz[k]
        vy = r[3] * px[k] + r[4] * py[k] + r[5] * pz[k]
        vz = r[6] * px[k] + r[7] * py[k] + r[8] * pz[k]
        dx, dy, dz = w[0] + per * vx, w[1] + per * vy, w[2] + per * vz
        ox, oy, oz = r[9] + par * vx, r[10] + par * vy, r[11] + par * vz
        start = -(ox * dx + oy * dy + oz * dz) / (dx * dx + dy * dy + dz * dz)
        ox, oy, oz = ox + start * dx, oy + start * dy, oz + start * dz
        radius = _ONE - slope - slope * oz
        a = dx * dx + dy * dy - slope * slope * dz * dz
        b = ox * dx + oy * dy + slope * radius * dz
        c = ox * ox + oy * oy - radius * radius
        under = b * b - a * c
        root = np.sqrt(under if under > _ZERO else _ZERO)
        side = c / (root - b) if b <= _ZERO else -(b + root) / a
        z = oz + side * dz
        side_ok = (under > _ZERO) & (abs(z) <= _ONE) & (start + side > _ZERO)
        front = _ONE if dz < _ZERO else -_ONE
        limit = top if dz < _ZERO else _ONE
        cap = (front - oz) / (dz if abs(dz) > _TINY else _TINY)
        x, y = ox + cap * dx, oy + cap * dy
        cap_ok = (x * x + y * y <= limit) & (start + cap > _ZERO)
        cap = cap if cap_ok else _INF
        t = side if side_ok else _INF
        t = start + (cap if cap < t else t)
        hit = t < best[k]
        best[k] = t if hit else best[k]
        which[k] = number if hit else which[k]


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _coarse_tiles(
    first, last, field, direction, planes, coarse, parallel, rows, bounds, ground, far, counts, distance, row
):
    down, across, coarse_down, coarse_across = counts
    height, width = distance.shape[1], distance.shape[2]
    solids = rows.shape[1]
    rough, fine = np.empty(solids, np.int32), np.empty(solids, np.int32)
    px, py, pz = np.zeros(_PIXELS, np.float32), np.zeros(_PIXELS, np.float32), np.zeros(_PIXELS, np.float32)
    best, which = np.empty(_PIXELS, np.float32), np.empty(_PIXELS, np.int32)
    w = np.zeros(3, np.float32)
    par = _ONE if parallel else _ZERO
    per = _ZERO if parallel else _ONE
    for item in range(first, last):
        n = item // (coarse_down * coarse_across)
        ci = (item // coarse_across) % coarse_down
        cj = item % coarse_across
        many = 0
        for p in range(solids):
            if not _outside(coarse[n, ci * coarse_across + cj], rows[n, p], bounds[n, p]):
                rough[many] = p
                many += 1
        for ti in range(ci * COARSE, min(down, (ci + 1) * COARSE)):
            for tj in range(cj * COARSE, min(across, (cj + 1) * COARSE)):
                few = 0
                for m in range(many):
                    p = rough[m]
                    if not _outside(planes[n, ti * across + tj], rows[n, p], bounds[n, p]):
                        fine[few] = p
                        few += 1
                for k in range(_PIXELS):
                    i, j = ti * TILE + k // TILE, tj * TILE + k % TILE
                    px[k] = np.nan
                    best[k], which[k] = _INF, NOTHING
                    if i < height and j < width:
                        px[k], py[k], pz[k] = field[n, i, j, 0], field[n, i, j, 1], field[n, i, j, 2]
                        if ground.shape[1] and px[k] == px[k]:
                            if parallel:
                                best[k] = _ground_distance(
                                    px[k], py[k], pz[k], direction[n, 0], direction[n, 1], direction[n, 2],
                                    ground[n], far,
                                )  # fmt: skip
                            else:
                                best[k] = _ground_distance(_ZERO, _ZERO, _ZERO, px[k], py[k], pz[k], ground[n], far)
                            if best[k] < _INF:
                                which[k] = GROUND
                farthest = _INF
                for m in range(few):
                    r = rows[n, fine[m]]
                    if m % 4 == 0:
                        farthest = _ZERO
                        for k in range(_PIXELS):
                            value = best[k] if px[k] == px[k] else _ZERO
                            farthest = value if value > farthest else farthest
                    # Sorted by their least distance: all that follow begin behind what the tile has seen.
                    if r[NEAR] > farthest:
                        break
                    if parallel:
                        for axis in range(3):
                            w[axis] = (
                                r[3 * axis] * direction[n, 0]
                                + r[3 * axis + 1] * direction[n, 1]
                                + r[3 * axis + 2] * direction[n, 2]
                            )
                    kind = int(r[KIND])
                    if kind == 0:
                        _meet_box(r, w, par, per, px, py, pz, fine[m], best, which)
                    elif kind == 1:
                        _meet_ball(r, w, par, per, px, py, pz, fine[m], best, which)
                    else:
                        _meet_cone(r, w, par, per, px, py, pz, fine[m], best, which)
                for k in range(_PIXELS):
                    i, j = ti * TILE + k // TILE, tj * TILE + k % TILE
                    if i < height and j < width:
                        distance[n, i, j] = best[k]
                        row[n, i, j] = which[k]
