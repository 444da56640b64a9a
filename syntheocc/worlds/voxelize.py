"""Analytic solids painted into a voxel grid: the last solid that holds a voxel gives it its number.

Every solid is tested only at the voxels of its own bounding box, at the voxel's centre, or, where the solid is thinner
than a voxel, at a few points spread over the voxel (`samples_for`). Two implementations of one rule: torch (any
device, pairs of solids and voxels in flat pieces) and numba (CPU). Legend: P solids, X Y Z voxels.
"""

import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.worlds.primitives import CONE, ELLIPSOID, Primitives

__all__ = ["paint", "samples_for"]

MAX_SAMPLES = 6
# Pairs of a solid and a sample point that the torch path holds at once (about 100 bytes each).
_PIECE = 4_000_000


def samples_for(solids: Primitives, spec: GridSpec) -> Tensor:
    """Sample points along each edge of a voxel, int64 [P].

    1 (the centre) for a solid at least as thick as a voxel; else so many that their spacing is no larger than the
    solid's thickness, up to `MAX_SAMPLES`, so that poles, sign boards and railings survive.
    """
    axes = solids.shape2frame[:, :3, :3]
    thickness = 2 * axes.norm(dim=1).amin(1)
    return (max(spec.voxel_size) / thickness.clamp_min(1e-3) - 1e-6).ceil().clamp(1, MAX_SAMPLES).long()


def paint(solids: Primitives, spec: GridSpec, backend: str | None = None) -> Tensor:
    """Which solid holds each voxel.

    Args:
        solids: P solids in the grid's frame; where several hold a voxel the last of them counts.
        spec: where the voxels lie.
        backend: "torch" or "numba"; None takes numba on a CPU where it is installed.

    Returns:
        int32 [X, Y, Z] on the solids' device: index of the solid, -1 where there is none.

    Raises:
        ValueError: the backend is unknown or cannot run on the solids' device.
    """
    device = solids.shape2frame.device
    name = backend or ("numba" if device.type == "cpu" and has_module("numba") else "torch")
    if name not in ("torch", "numba") or (name == "numba" and not (device.type == "cpu" and has_module("numba"))):
        raise ValueError(f"backend {name!r} cannot run on {device}: choose torch, or numba on the CPU")
    lower, upper = solids.bounds()
    corner, size = (torch.tensor(v, dtype=torch.float64, device=device) for v in (spec.lower, spec.voxel_size))
    shape = torch.tensor(spec.shape, device=device)
    first = ((lower - corner) / size).floor().long().clamp_min(0)
    last = torch.minimum(((upper - corner) / size).floor().long() + 1, shape)
    kept = (last > first).all(1).nonzero()[:, 0]
    # Shape space from voxel coordinates: p_shape = linear @ voxel + offset.
    inverse = torch.linalg.inv(solids.shape2frame[kept])[:, :3]
    linear = inverse[:, :, :3] * size
    offset = inverse[:, :, :3] @ corner + inverse[:, :, 3]
    parts = (kept, first[kept], last[kept], linear, offset, solids.kind[kept], solids.taper[kept])
    samples = samples_for(solids, spec)[kept]
    if name == "torch":
        return _paint_torch(*parts, samples, spec)
    owner = torch.full(spec.shape, -1, dtype=torch.int32)
    numbers = [part.contiguous().numpy() for part in (*parts, samples)]
    _kernel()(*numbers, owner.numpy())
    return owner


def _paint_torch(kept, first, last, linear, offset, kind, taper, samples, spec: GridSpec) -> Tensor:
    device = kept.device
    owner = torch.full((spec.shape[0] * spec.shape[1] * spec.shape[2],), -1, dtype=torch.int32, device=device)
    extent = last - first
    for per_edge in samples.unique().tolist():
        chosen = (samples == per_edge).nonzero()[:, 0]
        steps = (torch.arange(per_edge, dtype=torch.float64, device=device) + 0.5) / per_edge
        points = torch.cartesian_prod(steps, steps, steps).reshape(-1, 3)
        room = max(1, _PIECE // len(points))
        for piece in _pieces(chosen, extent[chosen].prod(1), room):
            counts = extent[piece].prod(1)
            which = piece.repeat_interleave(counts)
            start = (counts.cumsum(0) - counts).repeat_interleave(counts)
            rest = torch.arange(len(which), device=device) - start
            size = extent[which]
            voxel = torch.stack(
                [rest // (size[:, 1] * size[:, 2]), rest // size[:, 2] % size[:, 1], rest % size[:, 2]], 1
            )
            voxel = voxel + first[which]
            inside = _holds(voxel, points, linear[which], offset[which], kind[which], taper[which])
            flat = (voxel[inside, 0] * spec.shape[1] + voxel[inside, 1]) * spec.shape[2] + voxel[inside, 2]
            owner.scatter_reduce_(0, flat, kept[which[inside]].int(), "amax")
    return owner.reshape(spec.shape)


def _pieces(chosen: Tensor, counts: Tensor, room: int) -> list[Tensor]:
    """Runs of solids that hold at most `room` voxels together (one solid may hold more)."""
    total = counts.cumsum(0)
    return [chosen[total.div(room, rounding_mode="floor") == i] for i in range(int(total[-1]) // room + 1)]


def _holds(
    voxel: Tensor,  # int64 [N, 3]
    points: Tensor,  # float64 [S, 3] in 0..1, over the voxel
    linear: Tensor,  # float64 [N, 3, 3] from voxel coordinates to shape space
    offset: Tensor,  # float64 [N, 3]
    kind: Tensor,  # [N]
    taper: Tensor,  # [N]
) -> Tensor:
    """Bool [N]: whether any of the voxel's points lies in the unit shape of its solid.

    All points at once and axis by axis: on a GPU a loop over the points, or millions of 3 x 3 products, is mostly
    launches.
    """
    u, v, w = (voxel[:, i, None] + points[None, :, i] for i in range(3))  # [N, S]
    x, y, z = (
        linear[:, i, 0, None] * u + linear[:, i, 1, None] * v + linear[:, i, 2, None] * w + offset[:, i, None]
        for i in range(3)
    )
    kind, radius = kind[:, None], 1 - taper[:, None] * (z + 1) / 2
    disc, level = x * x + y * y, z.abs() <= 1
    in_cone = level & (disc <= radius * radius)
    in_ball = disc + z * z <= 1
    in_box = (x.abs() <= 1) & (y.abs() <= 1) & level
    return torch.where(kind == CONE, in_cone, torch.where(kind == ELLIPSOID, in_ball, in_box)).any(1)


def _paint_loops(kept, first, last, linear, offset, kind, taper, samples, owner):
    for p in range(len(kept)):
        n = samples[p]
        for i in range(first[p, 0], last[p, 0]):
            for j in range(first[p, 1], last[p, 1]):
                for k in range(first[p, 2], last[p, 2]):
                    inside = False
                    for s in range(n * n * n):
                        u = i + (s // (n * n) + 0.5) / n
                        v = j + (s // n % n + 0.5) / n
                        w = k + (s % n + 0.5) / n
                        x = linear[p, 0, 0] * u + linear[p, 0, 1] * v + linear[p, 0, 2] * w + offset[p, 0]
                        y = linear[p, 1, 0] * u + linear[p, 1, 1] * v + linear[p, 1, 2] * w + offset[p, 1]
                        z = linear[p, 2, 0] * u + linear[p, 2, 1] * v + linear[p, 2, 2] * w + offset[p, 2]
                        if kind[p] == ELLIPSOID:
                            inside = x * x + y * y + z * z <= 1.0
                        elif abs(z) <= 1.0:
                            if kind[p] == CONE:
                                r = 1.0 - taper[p] * (z + 1.0) / 2.0
                                inside = x * x + y * y <= r * r
                            else:
                                inside = abs(x) <= 1.0 and abs(y) <= 1.0
                        if inside:
                            break
                    if inside:
                        owner[i, j, k] = kept[p]


_COMPILED: list = []


def _kernel():
    """The loops compiled by numba, at their first use."""
    if not _COMPILED:
        import numba

        _COMPILED.append(numba.njit(nogil=True, cache=True, error_model="numpy")(_paint_loops))
    return _COMPILED[0]
