"""The traversal in plain torch, for reading: every ray takes one step at a time, finished rays drop out."""

import torch
from torch import Tensor

from syntheocc.occupancy.ops.raycast import MAX_STEPS_OUTSIDE

_FAR = torch.finfo(torch.float64).max


def traverse_reference(
    labels: Tensor,  # [G, X, Y, Z] uint8
    free: int,
    origins: Tensor,  # [G, R, 3] float64
    directions: Tensor,  # [G, R, 3] float64
) -> tuple[Tensor, Tensor, Tensor]:
    """The traversal of `syntheocc.occupancy.ops.raycast.traverse`.

    Returns:
        exit float64 [G, R]; the reported voxel's flat number int64 [G, R] in its grid; hit bool [G, R].
    """
    results = [_one_grid(*arguments) for arguments in zip(labels != free, origins, directions, strict=True)]
    if not results:
        rays = origins.shape[:2]
        return origins.new_zeros(rays), origins.new_zeros(rays).long(), origins.new_zeros(rays).bool()
    exit_t, flat, hit = zip(*results, strict=True)
    return torch.stack(exit_t), torch.stack(flat), torch.stack(hit)


def _one_grid(occupied: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    device = origins.device
    shape = torch.tensor(occupied.shape, device=device)
    strides = torch.tensor([occupied.shape[1] * occupied.shape[2], occupied.shape[2], 1], device=device)
    stops = occupied.reshape(-1)
    count = origins.shape[0]
    exit_t = torch.full((count,), -1.0, dtype=torch.float64, device=device)
    flat = torch.zeros(count, dtype=torch.int64, device=device)
    hit = torch.zeros(count, dtype=torch.bool, device=device)

    ray = torch.arange(count, device=device)
    voxel = origins.trunc().long()
    moving = directions != 0
    step = torch.where(directions >= 0, 1, -1)
    t_next = torch.where(moving, (voxel + (step > 0) - origins) / directions, _FAR)
    t_step = torch.where(moving, step / directions, _FAR)
    entered = torch.zeros(count, dtype=torch.bool, device=device)
    steps = 0
    while ray.numel():
        inside = ((voxel >= 0) & (voxel < shape)).all(1)
        # Outside and not coming back on some axis: the ray has left, or it will never enter.
        gone = (((voxel < 0) & ((step < 0) | ~moving)) | ((voxel >= shape) & ((step > 0) | ~moving))).any(1)
        keep = inside | ~(entered | gone | (steps > MAX_STEPS_OUTSIDE - 1))
        axis = _next_axis(t_next)[:, None]
        t = t_next.gather(1, axis)[:, 0]
        exit_t[ray[inside]] = t[inside]
        flat[ray[inside]] = (voxel[inside] * strides).sum(1)
        stopped = torch.zeros_like(inside)
        stopped[inside] = stops[flat[ray[inside]]]
        hit[ray[stopped]] = True
        entered |= inside
        voxel.scatter_add_(1, axis, step.gather(1, axis))
        t_next.scatter_add_(1, axis, t_step.gather(1, axis))
        keep &= ~stopped
        ray, voxel, moving, step = ray[keep], voxel[keep], moving[keep], step[keep]
        t_next, t_step, entered = t_next[keep], t_step[keep], entered[keep]
        steps += 1
    return exit_t, flat, hit


def _next_axis(t_next: Tensor) -> Tensor:
    """The axis [R] whose face comes first; of equal ones z before y before x."""
    x, y, z = t_next.unbind(1)
    return torch.where(x < y, torch.where(x < z, 0, 2), torch.where(y < z, 1, 2))
