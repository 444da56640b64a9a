"""The counts of rays on a GPU: one launch for all frames and origins, a warp of neighbouring rays a program.

A program sets its rays up from metres, walks them through the ground truth and those that count through the
prediction, and adds to the counts where they are: nothing is stored per ray and the host waits for nothing. Counts are
kept in `COPIES` copies that are summed afterwards, because most rays meet one of three classes and additions to one
address take turns.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from syntheocc.occupancy.ops.ray_confusion import RayRules
from syntheocc.occupancy.ops.raycast import MAX_STEPS_OUTSIDE
from syntheocc.occupancy.ops.raycast.triton import UNROLL, WARP, walk

COPIES = 64


def ray_confusion_triton(  # pragma: no cover (runs on a GPU)
    pred: Tensor, gt: Tensor, origins: Tensor, frames: Tensor, directions: Tensor, rules: RayRules
) -> Tensor:
    """See `syntheocc.occupancy.ops.ray_confusion.ray_confusion`."""
    voxels = gt.shape[1] * gt.shape[2] * gt.shape[3]
    if voxels >= 2**31:
        raise ValueError(f"a grid of {voxels} voxels is beyond the 32-bit indices of the GPU kernel")
    bins = rules.shape[0] * rules.shape[1] * rules.shape[2]
    counts = torch.zeros((COPIES, bins), dtype=torch.int32, device=gt.device)
    geometry, thresholds = _constants(rules, gt.device)
    _confusion_kernel[(triton.cdiv(len(directions), WARP), len(origins))](
        pred, gt, origins, frames, directions, geometry, thresholds, counts, len(directions), rules.free,
        rules.num_classes, bins, *gt.shape[1:], THRESHOLDS=len(rules.thresholds), COPIES=COPIES,
        MAX_STEPS=MAX_STEPS_OUTSIDE, UNROLL=UNROLL, WARP=WARP, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return counts.sum(0).view(rules.shape)


@lru_cache(maxsize=32)  # pragma: no cover (runs on a GPU)
def _constants(rules: RayRules, device: torch.device) -> tuple[Tensor, Tensor]:
    # A float argument of a Triton kernel is float32; these have to arrive in float64.
    size = float(torch.tensor(rules.size, dtype=torch.float32))
    geometry = torch.tensor([*rules.lower, size], dtype=torch.float64, device=device)
    return geometry, torch.tensor(rules.thresholds, dtype=torch.float32, device=device)


@triton.jit  # pragma: no cover (runs on a GPU)
def _span(origin, direction, lower, size):
    """Of one axis in voxels: the origin, and from there to one direction further."""
    start = ((origin - lower) / size).to(tl.float32).to(tl.float64)
    end = ((origin + direction - lower) / size).to(tl.float32).to(tl.float64)
    # The origin is one for all rays; the walk wants it for each.
    return start + end * 0.0, end - start


@triton.jit  # pragma: no cover (runs on a GPU)
def _confusion_kernel(
    pred, gt, origins, frames, directions, geometry, thresholds, counts, rays, free, classes, bins,
    size_x, size_y, size_z, THRESHOLDS: tl.constexpr, COPIES: tl.constexpr,
    MAX_STEPS: tl.constexpr, UNROLL: tl.constexpr, WARP: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1)
    ray = tl.program_id(0) * WARP + tl.arange(0, WARP)
    real = ray < rays
    size = tl.load(geometry + 3)
    x, dx = _span(
        tl.load(origins + n * 3), tl.load(directions + ray * 3, mask=real, other=1.0), tl.load(geometry), size
    )
    y, dy = _span(
        tl.load(origins + n * 3 + 1), tl.load(directions + ray * 3 + 1, mask=real, other=1.0),
        tl.load(geometry + 1), size,
    )  # fmt: skip
    z, dz = _span(
        tl.load(origins + n * 3 + 2), tl.load(directions + ray * 3 + 2, mask=real, other=1.0),
        tl.load(geometry + 2), size,
    )  # fmt: skip
    length = tl.sqrt(dx * dx + dy * dy + dz * dz)
    dx, dy, dz = dx / length, dy / length, dz / length
    edge = size.to(tl.float32)
    grid = tl.load(frames + n).to(tl.int64) * size_x * size_y * size_z
    t, at, _ = walk(gt + grid, real, x, y, z, dx, dy, dz, free, size_x, size_y, size_z, MAX_STEPS, UNROLL)
    there = t.to(tl.float32) * edge
    seen = tl.load(gt + grid + at, mask=real, other=0).to(tl.int32)
    kept = real & (seen != free)
    t, at, _ = walk(pred + grid, kept, x, y, z, dx, dy, dz, free, size_x, size_y, size_z, MAX_STEPS, UNROLL)
    apart = tl.abs(there - t.to(tl.float32) * edge)
    guess = tl.load(pred + grid + at, mask=kept, other=0).to(tl.int32)
    missed = seen * 0
    for k in tl.static_range(THRESHOLDS):
        missed += (apart >= tl.load(thresholds + k)).to(tl.int32)
    pair = tl.minimum(seen, classes) * (classes + 1) + tl.minimum(guess, classes)
    copy = (tl.program_id(0) + n * 7) % COPIES
    tl.atomic_add(counts + copy * bins + pair * (THRESHOLDS + 1) + missed, 1, mask=kept, sem="relaxed")
