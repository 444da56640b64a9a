"""Classified lidar points and boxes of many key frames, on one device. Legend: N key frames, P points, V views."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.lidarseg import LidarPoints
from syntheocc.occupancy.perception.ray_config import RayConfig
from syntheocc.occupancy.perception.ray_frames import PlacedBoxes, RayFrame
from syntheocc.occupancy.taxonomy import OCC3D_TAXONOMY, UNKNOWN, Taxonomy

__all__ = ["RayReader", "StoredLidar"]


class RayReader(NamedTuple):
    """The `rays` of an `OccupancyFrames`: which ones, and who reads the points.

    config: which rays. lidar: reads a frame's classified points, None where it has none (`LidarReader`). taxonomy: of
    their classes.
    """

    config: RayConfig
    lidar: Callable[[Frame], LidarPoints | None]
    taxonomy: Taxonomy = OCC3D_TAXONOMY


@dataclass(eq=False)
class StoredLidar:
    """The points of N key frames, each in its own grid's coordinates; points and labels on the device.

    Args:
        points: float32 [N, P, 3] metres; frames with fewer points are filled up.
        labels: uint8 [N, P] class, 255 no label (and no point).
        origins: float64 [N, 3] metres, where the lidar stands, on the CPU.
        size: height and width of the original images.
        boxes: of each frame, None where it has no annotations.

    Raises:
        ValueError: lengths that do not belong together.
    """

    points: Tensor
    labels: Tensor
    origins: Tensor
    size: tuple[int, int]
    boxes: tuple[PlacedBoxes | None, ...]

    def __post_init__(self):
        number = len(self.boxes)
        shape = tuple(self.labels.shape)
        if tuple(self.points.shape) != (*shape, 3) or len(shape) != 2 or shape[0] != number:
            raise ValueError(f"boxes of {number} frames, but points {tuple(self.points.shape)} and labels {shape}")
        if tuple(self.origins.shape) != (number, 3) or self.labels.dtype != torch.uint8:
            raise ValueError(
                f"origins must be [{number}, 3], labels uint8; got {self.origins.shape}, {self.labels.dtype}"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    @staticmethod
    def of(frames: Sequence[RayFrame], size: tuple[int, int], device: torch.device | str = "cpu") -> "StoredLidar":
        """Put key frames into a store; size is height and width of their images."""
        most = max((len(frame.points) for frame in frames), default=0)
        points, labels = torch.zeros(len(frames), most, 3), torch.full((len(frames), most), UNKNOWN, dtype=torch.uint8)
        for row, frame in enumerate(frames):
            points[row, : len(frame.points)] = frame.points.cpu()
            labels[row, : len(frame.points)] = frame.labels.cpu()
        origins = torch.stack([frame.lidar_origin for frame in frames]) if frames else torch.zeros(0, 3)
        boxes = tuple(frame.boxes for frame in frames)
        return StoredLidar(points.to(device), labels.to(device), origins.double(), size, boxes)

    @staticmethod
    def cat(stores: "Sequence[StoredLidar]") -> "StoredLidar":
        """All frames of several stores, on the device of the first.

        Raises:
            ValueError: images of different sizes.
        """
        if len({store.size for store in stores}) != 1:
            raise ValueError(f"stores of images of different sizes: {sorted({store.size for store in stores})}")
        device, most = stores[0].points.device, max(store.points.shape[1] for store in stores)
        points, labels = [], []
        for store in stores:
            short = most - store.points.shape[1]
            points.append(torch.nn.functional.pad(store.points.to(device), (0, 0, 0, short)))
            labels.append(torch.nn.functional.pad(store.labels.to(device), (0, short), value=UNKNOWN))
        boxes = tuple(found for store in stores for found in store.boxes)
        origins = torch.cat([store.origins for store in stores])
        return StoredLidar(torch.cat(points), torch.cat(labels), origins, stores[0].size, boxes)

    def frame(self, row: int, grid2global: Tensor, intrinsics: Tensor, cam2global: Tensor) -> RayFrame:
        """A row as a `RayFrame`, with its pose [4, 4] and cameras [V, 3, 3] (of the original images), [V, 4, 4]."""
        return RayFrame(
            points=self.points[row],
            labels=self.labels[row],
            frame2global=grid2global,
            lidar_origin=self.origins[row],
            intrinsics=intrinsics,
            cam2global=cam2global,
            sizes=torch.tensor(self.size, dtype=torch.float64).expand(len(intrinsics), 2),
            boxes=self.boxes[row],
        )
