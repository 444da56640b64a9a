"""Samples of the perception models in tensors, alone and batched.

Legend: B samples, T frames (the current one first, then ever older ones), V views, H W network input, X Y Z voxels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.perception.photometric import Photometric
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels

__all__ = ["FrameLabels", "OccupancyBatch", "collate"]


@dataclass(frozen=True, eq=False)
class FrameLabels:
    """Ground truth of one frame, as a reader gives it.

    Args:
        semantics: uint8 [X, Y, Z], 255 unknown.
        instances: integer [X, Y, Z], 0 none; None where objects are not told apart.
    """

    semantics: Tensor
    instances: Tensor | None = None


@dataclass
class OccupancyBatch:
    """Samples, batched."""

    images: Tensor
    """uint8 [B, T, V, 3, H, W] RGB; in memory the channels come last. T is 1 with `Sampling.current_only`."""
    ego2img: Tensor
    """float32 [B, T, V, 4, 4]: from the (augmented) grid's frame to (u*z, v*z, z, 1) pixels; zeros: no such camera."""
    tokens: list[str]
    shots: list[list[str]]
    """For each sample what its T frames are called, the current one first: key frames by their token."""
    semantics: Tensor | None = None
    """uint8 [B, X, Y, Z], 255 unknown; None without ground truth."""
    instances: Tensor | None = None
    """int32 [B, X, Y, Z], 0 none; None without."""
    photometric: Photometric | None = None
    """Colour changes of the B*T*V images."""
    intrinsics: Tensor | None = None
    """float32 [B, T, V, 3, 3] of the original images; zeros: no such camera."""
    image_transforms: Tensor | None = None
    """float32 [B, T, V, 4, 4] from the original images to the network's input; zeros: no such camera."""
    grid_transforms: Tensor | None = None
    """float32 [B, 4, 4] from the grid's frame to the augmented one."""
    rays: RayLabels | None = None
    """What the lidar tells about the images; in the key ego frame, whatever the grid is augmented by."""
    motion: BoxMotion | None = None
    """How boxes move between the rays' frames, in the key ego frame; None where no motion is wanted."""

    def to(self, device: torch.device | str) -> "OccupancyBatch":
        """The batch on another device."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "OccupancyBatch":
        """The batch in page-locked memory (called by the loader)."""
        return self._changed(lambda tensor: tensor.pin_memory())

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "OccupancyBatch":
        values: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                value = change(value)
            elif isinstance(value, RayLabels | BoxMotion):
                value = value.map(change)
            elif isinstance(value, Photometric):
                value = Photometric(**{g.name: change(getattr(value, g.name)) for g in fields(value)})
            values[f.name] = value
        return OccupancyBatch(**values)


def collate(samples: Sequence[OccupancyBatch]) -> OccupancyBatch:
    """Batch samples; channels stay last in memory.

    Raises:
        ValueError: some samples have ground truth (or instances, rays, colour changes) and others have not.
    """

    def join(name: str) -> Any:
        values = [getattr(sample, name) for sample in samples]
        if all(value is None for value in values):
            return None
        if any(value is None for value in values):
            without = [s.tokens[0] for s, value in zip(samples, values, strict=True) if value is None]
            raise ValueError(f"samples {', '.join(without)} have no {name}, others of the batch have")
        if name == "photometric":
            return Photometric.cat(values)
        return type(values[0]).collate(values) if name in ("rays", "motion") else torch.cat(values)

    images = torch.cat([sample.images.permute(0, 1, 2, 4, 5, 3) for sample in samples])
    return OccupancyBatch(
        images=images.permute(0, 1, 2, 5, 3, 4),
        ego2img=torch.cat([sample.ego2img for sample in samples]),
        tokens=[token for sample in samples for token in sample.tokens],
        shots=[shots for sample in samples for shots in sample.shots],
        semantics=join("semantics"),
        instances=join("instances"),
        photometric=join("photometric"),
        intrinsics=join("intrinsics"),
        image_transforms=join("image_transforms"),
        grid_transforms=join("grid_transforms"),
        rays=join("rays"),
        motion=join("motion"),
    )
