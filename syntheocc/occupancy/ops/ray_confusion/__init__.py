"""What rays see in two grids: the counts behind RayIoU (specs/sparseocc.md 3.3-3.5).

From every origin the same rays are cast into the ground truth and into the prediction. A ray counts unless the ground
truth's voxel is free (it left the grid); it counts for the pair of its two classes, and by how many of the distance
thresholds its two distances differ. Labels of no class (255) are counted as class ``num_classes``.

Implementations of one signature: `reference`, `torch` (vectorised, any device), `numba` (CPU) and `triton` (GPU, one
launch for all frames and origins). They give the same integers, because all of them round alike, in this order:

* voxel coordinates of the origin and of the point one direction further: float64, then float32 (`voxel_rays`);
* the traversal: float64 (`syntheocc.occupancy.ops.raycast`), its exit distance in voxels then float32;
* distance in metres, difference and comparison: float32.

Legend: B frames, N origins of all frames, R rays, C classes, T thresholds, X Y Z voxels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.ops.mpi_lookup import has_module
from syntheocc.occupancy.ops.raycast import choose_backend

BACKENDS = ("reference", "torch", "numba", "triton")


class RayRules(NamedTuple):
    """What is counted: the grid's ``lower`` corner and voxel ``size`` (metres), free label, classes, thresholds.

    ``thresholds`` are metres in rising order.
    """

    lower: tuple[float, float, float]
    size: float
    free: int
    num_classes: int
    thresholds: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the counts: ground truth's class, predicted class, thresholds that the distances differ by."""
        return (self.num_classes + 1, self.num_classes + 1, len(self.thresholds) + 1)


def ray_confusion(
    pred: Tensor,  # [B, X, Y, Z] uint8
    gt: Tensor,  # [B, X, Y, Z] uint8
    origins: Tensor,  # [N, 3] float64, metres
    frames: Tensor,  # [N] int32
    directions: Tensor,  # [R, 3] float64
    rules: RayRules,
    backend: str | None = None,
) -> Tensor:
    """Casts all rays from all origins into both grids and counts what they meet.

    Args:
        pred: predicted labels.
        gt: ground truth.
        origins: where rays begin, of all frames.
        frames: the frame of each origin.
        directions: unit vectors, the same for every origin.
        rules: see `RayRules`.
        backend: one of `BACKENDS`; None takes the fastest.

    Returns:
        int64 [C + 1, C + 1, T + 1] on the labels' device: rays by ground-truth class, by predicted class, and by the
        number of thresholds that the difference of the distances is not below.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is unknown or cannot run here.
    """
    if pred.ndim != 4 or pred.shape != gt.shape or pred.dtype != torch.uint8 or gt.dtype != torch.uint8:
        raise ValueError(
            f"pred and gt must be uint8 [B, X, Y, Z] of one shape, got {pred.dtype} {tuple(pred.shape)} and "
            f"{gt.dtype} {tuple(gt.shape)}"
        )
    for name, tensor, dtype in (("origins", origins, torch.float64), ("directions", directions, torch.float64)):
        if tensor.ndim != 2 or tensor.shape[1] != 3 or tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype} [., 3], got {tensor.dtype} {tuple(tensor.shape)}")
    if frames.shape != origins.shape[:1] or frames.dtype != torch.int32:
        raise ValueError(f"frames must be int32 [{len(origins)}], got {frames.dtype} {tuple(frames.shape)}")
    if len({tensor.device for tensor in (pred, gt, origins, frames, directions)}) > 1:
        raise ValueError("grids, origins, frames and directions must share one device")
    name = backend or choose_backend(pred.device)
    if not len(origins) or not len(directions):
        return torch.zeros(rules.shape, dtype=torch.int64, device=pred.device)
    arguments = (pred.contiguous(), gt.contiguous(), origins.contiguous(), frames, directions.contiguous(), rules)
    if name == "numba" and pred.device.type == "cpu" and has_module("numba"):
        from syntheocc.occupancy.ops.ray_confusion.numba import ray_confusion_numba

        return ray_confusion_numba(*arguments)
    if name == "triton" and pred.device.type != "cpu" and has_module("triton"):
        from syntheocc.occupancy.ops.ray_confusion.triton import ray_confusion_triton

        return ray_confusion_triton(*arguments)
    if name == "torch":
        from syntheocc.occupancy.ops.ray_confusion.vectorised import ray_confusion_torch

        return ray_confusion_torch(*arguments)
    if name == "reference":
        from syntheocc.occupancy.ops.ray_confusion.reference import ray_confusion_reference

        return ray_confusion_reference(*arguments)
    raise ValueError(f"backend {name!r} cannot run on {pred.device}: choose from {', '.join(BACKENDS)}")
