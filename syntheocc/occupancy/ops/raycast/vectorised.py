"""The traversal in vectorised torch: a column a quantity, a chunk of rays in step, finished ones dropped now and then.

Between the slow reference and the compiled kernels: what runs where only torch is installed.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from syntheocc.occupancy.ops.raycast import MAX_STEPS_OUTSIDE

_FAR = torch.finfo(torch.float64).max
# So many rays keep their fifteen columns in a core's caches, and are one piece to torch; a GPU takes all at once.
_CHUNK = {"cpu": 1 << 15}
_STEPS_BETWEEN_DROPS = 6


def traverse_torch(labels: Tensor, free: int, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `syntheocc.occupancy.ops.raycast.reference.traverse_reference`."""
    rays = origins.shape[:2]
    grids = torch.arange(rays[0], device=labels.device).repeat_interleave(rays[1])
    exit_t, flat, hit = walk_rays(labels, free, grids, origins.reshape(-1, 3), directions.reshape(-1, 3))
    return exit_t.view(rays), flat.view(rays), hit.view(rays)


def walk_rays(
    labels: Tensor, free: int, grids: Tensor, origins: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rays in any order, each through a grid of its own choice.

    Args:
        labels: uint8 [G, X, Y, Z], contiguous.
        free: the label that lets rays pass.
        grids: int64 [N], the grid of each ray.
        origins: float64 [N, 3] voxels.
        directions: float64 [N, 3], unit length in voxels.

    Returns:
        exit float64 [N]; the voxel's flat number int64 [N] in its grid; hit bool [N].
    """
    base = grids * (labels.shape[1] * labels.shape[2] * labels.shape[3])
    columns = (base, *origins.unbind(1), *directions.unbind(1))
    chunks = list(zip(*(column.split(_CHUNK.get(labels.device.type, 1 << 30)) for column in columns), strict=True))

    def walk(chunk: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        return _walk(labels.view(-1), labels.shape[1:], free, *map(Tensor.contiguous, chunk))

    # Operations on a chunk are too small for torch to share out; whole chunks are not, and it lets go of the GIL.
    with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), len(chunks)))) as pool:
        parts = list(pool.map(walk, chunks))
    exit_t, flat, hit = (torch.cat(part) for part in zip(*parts, strict=True))
    return exit_t, flat - base, hit


def _walk(labels: Tensor, shape: torch.Size, free: int, base: Tensor, *ray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of one chunk: exit ``t``, number in all grids' labels, hit; ``base`` [R] is where each ray's grid begins."""
    exit_all = torch.full_like(ray[0], -1.0)
    flat_all, hit_all = base.clone(), torch.zeros_like(base, dtype=torch.bool)
    t, t_step, left, stride = [], [], [], []
    at = base.clone()
    for axis, (origin, direction) in enumerate(zip(ray[:3], ray[3:], strict=True)):
        voxel, forward, still = origin.trunc().long(), direction >= 0, direction == 0
        t.append(torch.where(still, _FAR, (voxel + forward - origin) / direction))
        t_step.append(torch.where(still, _FAR, torch.where(forward, 1, -1) / direction))
        # Two coordinates that fit in no int32 are equally far out.
        left.append(torch.where(forward, shape[axis] - voxel, voxel + 1).clamp(-1, 2**31 - 1).int())
        unit = int(torch.Size(shape[axis + 1 :]).numel())
        stride.append(torch.where(forward, unit, -unit))
        at += voxel * unit
    # Rays that begin outside: the test for being in yet costs three comparisons a step, which most calls do without.
    outside = any(bool((faces > size).any()) for faces, size in zip(left, shape, strict=True))
    which = torch.arange(len(at), device=at.device)
    exit_t, flat, hit = exit_all.clone(), flat_all.clone(), hit_all.clone()
    steps = 0
    while len(which):
        remaining = torch.minimum(torch.minimum(left[0], left[1]), left[2])
        live = (remaining > 0) & ~hit
        inside = live
        if outside:
            inside = live & (left[0] <= shape[0]) & (left[1] <= shape[1]) & (left[2] <= shape[2])
            if steps >= MAX_STEPS_OUTSIDE:
                live = inside
        if steps % _STEPS_BETWEEN_DROPS == 0 or (outside and steps >= MAX_STEPS_OUTSIDE):
            done = which[~live]
            exit_all[done], flat_all[done], hit_all[done] = exit_t[~live], flat[~live], hit[~live]
            kept = live.nonzero()[:, 0]
            which, at, exit_t, flat, hit, inside = (c[kept] for c in (which, at, exit_t, flat, hit, inside))
            t, t_step = [c[kept] for c in t], [c[kept] for c in t_step]
            left, stride = [c[kept] for c in left], [c[kept] for c in stride]
        x_first = t[0] < t[1]
        nearer = torch.minimum(t[0], t[1])
        over_z = ~(nearer < t[2])
        exit_t = torch.where(inside, torch.minimum(nearer, t[2]), exit_t)
        flat = torch.where(inside, at, flat)
        hit |= (labels.take(flat) != free) & inside
        for axis, chosen in enumerate((x_first & ~over_z, ~(x_first | over_z), over_z)):
            t[axis] = torch.where(chosen, t[axis] + t_step[axis], t[axis])
            left[axis].sub_(chosen.to(torch.int32))
            at.add_(stride[axis] * chosen)
        steps += 1
    return exit_all, flat_all, hit_all
