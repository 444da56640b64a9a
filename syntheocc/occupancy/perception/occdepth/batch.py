"""Samples of OccDepth in tensors, alone and batched: one instant, one or two views, and what its eight losses ask for.

Why it is not `perception.batch.OccupancyBatch`: that one holds several frames of many cameras, raw, with projections
from a grid that never moves. Here is one instant; the pictures come normalised, as the published network takes
them; projections are float64, for voxels take their nearest pixel (a rounding error is another pixel); the grid's
origin differs from sample to sample (NYUv2); and there are targets that only OccDepth learns from: labels of the
coarse grid for the relation prior, the tile of the picture that each voxel is seen in, the stereo teacher's depth.
`tokens`, `semantics`, `intrinsics` and `to` are called and mean the same.

Grids are indexed [x, y, z up] for every data set: KITTI's in the velodyne frame, NYUv2's in world axes (its files, and
its released weights, have [x, up, y]), TartanAir's in the levelled camera's axes (x right, y down, z forward).

Legend: B samples, V projections (views that voxels are looked up in), I pictures, H W network input, X Y Z voxels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["NO_TILE", "StereoBatch", "collate"]

# In `StereoBatch.frustums`: a voxel that the view does not show, or that an earlier view has counted in that tile.
NO_TILE = 255


@dataclass
class StereoBatch:
    """Samples, batched."""

    images: Tensor
    """float32 [B, I, 3, H, W] RGB, normalised by ImageNet's mean and deviation; left, then right. I is V, or 1 beside
    V = 2: then the second view is a virtual one (`virtual`), whose features are made of the first's and `depth`. In
    memory the channels come last."""
    velo2img: Tensor
    """float64 [B, V, 4, 4]: from the grid's frame (metres) to (u*z, v*z, z, 1) pixels of the network's input; an
    integer pixel is a pixel's centre. Horizontal flips of the picture are in it: u becomes W - 1 - u."""
    intrinsics: Tensor
    """float64 [B, V, 3, 3] of the pictures before a flip, pixels (crops keep the principal point)."""
    origin: Tensor
    """float64 [B, 3] the grid's lower corner in the grid's frame, metres."""
    baseline: Tensor
    """float64 [B] metres from the first view to the second along the picture's rows (the second stands to the right);
    0 with one view."""
    flipped: Tensor
    """bool [B]: the pictures (and `depth`) are mirrored. The grid and its labels never are."""
    tokens: list[str]
    """What the samples are called: `SS_NNNNNN` in KITTI trees, `NYU0001_0000`, `Easy_P000_000005`."""
    semantics: Tensor | None = None
    """uint8 [B, X, Y, Z], 255 unknown (invalid voxels included); None without ground truth."""
    coarse: Tensor | None = None
    """uint8 [B, x, y, z], labels of the relation prior's grid: KITTI 1/8 (32, 32, 4), NYUv2 1/16 of its files (15, 15,
    9), TartanAir 1/4 (30, 12, 30); 255 unknown. None without ground truth."""
    occluded: Tensor | None = None
    """bool [B, X, Y, Z] behind something from every pose (`voxels/*.occluded`); None unless asked for."""
    frustums: Tensor | None = None
    """uint8 [B, V, X, Y, Z]: which of the frustum_size^2 tiles of view v shows the voxel (row by row, the row's first
    tile 0), or `NO_TILE`. A later view has `NO_TILE` where it would count a voxel in the same tile again, so every
    entry that is not `NO_TILE` counts once. Voxels of unknown class are in it: leave them out by `known`. None without
    ground truth."""
    depth: Tensor | None = None
    """float32 [B, D, H, W] metres along the optical axis, 0 none; D = 1 (the left view: stereo teacher, Kinect) or V
    (lidar). None unless asked for."""

    @property
    def known(self) -> Tensor | None:
        """Voxels whose class is known: bool [B, X, Y, Z]."""
        return None if self.semantics is None else self.semantics != UNKNOWN

    @property
    def depth_valid(self) -> Tensor | None:
        """Pixels with a depth: bool [B, D, H, W]."""
        return None if self.depth is None else self.depth > 0

    @property
    def virtual(self) -> bool:
        """Whether the second view has a projection but no picture."""
        return self.velo2img.shape[1] > self.images.shape[1]

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str) -> "StereoBatch":
        """The batch on another device."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "StereoBatch":
        """The batch in page-locked memory (called by the loader)."""
        return self._changed(lambda tensor: tensor.pin_memory())

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "StereoBatch":
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            values[name] = change(value) if isinstance(value, Tensor) else value
        return StereoBatch(**values)


def collate(samples: Sequence[StereoBatch]) -> StereoBatch:
    """Batch samples.

    Raises:
        ValueError: some samples have what others have not (ground truth, depth, a second view), or another size.
    """
    values: dict[str, Any] = {}
    for f in fields(StereoBatch):
        parts = [getattr(sample, f.name) for sample in samples]
        if f.name == "tokens":
            values[f.name] = [token for part in parts for token in part]
        elif all(part is None for part in parts):
            values[f.name] = None
        elif any(part is None for part in parts):
            without = [s.tokens[0] for s, part in zip(samples, parts, strict=True) if part is None]
            raise ValueError(f"samples {', '.join(without)} have no {f.name}, others of the batch have")
        else:
            for sample, part in zip(samples, parts, strict=True):
                if part.shape[1:] != parts[0].shape[1:]:
                    raise ValueError(
                        f"sample {sample.tokens[0]}: {f.name} is {list(part.shape[1:])}, that of "
                        f"{samples[0].tokens[0]} {list(parts[0].shape[1:])}; batch one data set"
                    )
            values[f.name] = _cat_images(parts) if f.name == "images" else torch.cat(parts)
    return StereoBatch(**values)


def _cat_images(images: Sequence[Tensor]) -> Tensor:
    """[B, I, 3, H, W] of images, channels last in memory as they came."""
    return torch.cat([image.permute(0, 1, 3, 4, 2) for image in images]).permute(0, 1, 4, 2, 3)
