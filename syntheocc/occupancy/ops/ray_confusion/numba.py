"""The counts of rays on the CPU, compiled by numba: a ray at a time through the ground truth, then the prediction."""

import numba
import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.ops.ray_confusion import RayRules
from syntheocc.occupancy.ops.raycast.numba import walk
from syntheocc.occupancy.ops.threads import run_in_threads


def ray_confusion_numba(
    pred: Tensor, gt: Tensor, origins: Tensor, frames: Tensor, directions: Tensor, rules: RayRules
) -> Tensor:
    """See `syntheocc.occupancy.ops.ray_confusion.ray_confusion`."""
    bins = rules.shape[0] * rules.shape[1] * rules.shape[2]
    rays = len(directions)
    # A ray's bin, not a shared histogram: threads then need not meet. The last bin is for rays that do not count.
    codes = np.empty(len(origins) * rays, np.int32)
    run_in_threads(
        _ray_bins,
        len(codes),
        pred.flatten(1).numpy(),
        gt.flatten(1).numpy(),
        np.array(gt.shape[1:], np.int64),
        origins.numpy(),
        frames.numpy(),
        directions.numpy(),
        np.array(rules.lower),
        np.float64(np.float32(rules.size)),
        rules.free,
        rules.num_classes,
        np.array(rules.thresholds, np.float32),
        codes,
    )
    return torch.from_numpy(np.bincount(codes, minlength=bins + 1)[:bins]).view(rules.shape)


@numba.njit(nogil=True, cache=True, error_model="numpy")  # pragma: no cover (compiled)
def _ray_bins(
    first, last, pred, gt, shape, origins, frames, directions, lower, size, free, classes, thresholds, codes
):
    rays = directions.shape[0]
    bins = len(thresholds) + 1
    edge = np.float32(size)
    for r in range(first, last):
        n = r // rays
        k = r % rays
        frame = frames[n]
        x = np.float64(np.float32((origins[n, 0] - lower[0]) / size))
        y = np.float64(np.float32((origins[n, 1] - lower[1]) / size))
        z = np.float64(np.float32((origins[n, 2] - lower[2]) / size))
        dx = np.float64(np.float32((origins[n, 0] + directions[k, 0] - lower[0]) / size)) - x
        dy = np.float64(np.float32((origins[n, 1] + directions[k, 1] - lower[1]) / size)) - y
        dz = np.float64(np.float32((origins[n, 2] + directions[k, 2] - lower[2]) / size)) - z
        length = np.sqrt(dx * dx + dy * dy + dz * dz)
        dx, dy, dz = dx / length, dy / length, dz / length
        codes[r] = (classes + 1) * (classes + 1) * bins
        t, at, _ = walk(gt[frame], shape[0], shape[1], shape[2], free, x, y, z, dx, dy, dz)
        seen = gt[frame, at]
        if seen != free:
            there = np.float32(t) * edge
            t, at, _ = walk(pred[frame], shape[0], shape[1], shape[2], free, x, y, z, dx, dy, dz)
            apart = np.abs(there - np.float32(t) * edge)
            missed = 0
            for threshold in thresholds:
                missed += apart >= threshold
            codes[r] = (min(seen, classes) * (classes + 1) + min(pred[frame, at], classes)) * bins + missed
