"""What one key frame gives to the rays of a sample: classified lidar points, cameras, boxes.

Legend: P points, V views, N boxes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from syntheocc.occupancy.data.frames import DETECTION_CLASSES, Boxes, Frame
from syntheocc.occupancy.data.lidarseg import LidarPoints
from syntheocc.occupancy.perception.history import ShotCamera
from syntheocc.occupancy.taxonomy import OCC3D_TAXONOMY, Taxonomy
from syntheocc.occupancy.transforms import invert_rigid, transform_points

__all__ = ["InputWindow", "PlacedBoxes", "RayFrame", "placed_boxes", "ray_frame"]


class InputWindow(NamedTuple):
    """What the network sees of the key frame's cameras.

    matrices float64 [V, 4, 4]: (u*z, v*z, z, 1) of the original images to those of the input (`ImageTransform`);
    height and width of the input, pixels.
    """

    matrices: Tensor
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class PlacedBoxes:
    """Boxes of one frame in the global frame, on the CPU.

    Args:
        box2global: float64 [N, 4, 4]; origin at the centre, x along the length, z up.
        sizes: float64 [N, 3] length, width, height in metres.
        labels: int64 [N] class; -1 where the object has none.
        instances: N tokens that name an object over time, "" unknown.
        num_points: int64 [N] lidar points inside, -1 unknown.
    """

    box2global: Tensor
    sizes: Tensor
    labels: Tensor
    instances: tuple[str, ...]
    num_points: Tensor

    def __len__(self) -> int:
        return len(self.instances)


def placed_boxes(boxes: Boxes, ego2global: Tensor, taxonomy: Taxonomy = OCC3D_TAXONOMY) -> PlacedBoxes:
    """A frame's boxes with classes of a table; only detection classes have one."""
    known = [name in DETECTION_CLASSES and name in taxonomy.classes for name in boxes.names]
    labels = [taxonomy.id_of(n) if ok else -1 for n, ok in zip(boxes.names, known, strict=True)]
    return PlacedBoxes(
        ego2global @ boxes.box2ego,
        boxes.sizes,
        torch.tensor(labels, dtype=torch.int64),
        tuple(boxes.instance_tokens),
        boxes.num_lidar_points,
    )


@dataclass(frozen=True, eq=False)
class RayFrame:
    """One key frame. Points are on the device where rays are wanted, all else on the CPU.

    The frame's own coordinates are those of its grid: ego at its lidar time for the grids of ego.

    Args:
        points: float32 [P, 3] metres in the frame's own coordinates, none where it has no lidar.
        labels: uint8 [P] class, 255 no label.
        frame2global: float64 [4, 4].
        lidar_origin: float64 [3] metres, where the lidar stands in these coordinates.
        intrinsics: float64 [V, 3, 3] of the original images; zeros where a camera is missing.
        cam2global: float64 [V, 4, 4], each at the time of its picture.
        sizes: float64 [V, 2] height and width of the original images.
        boxes: None where the frame has no annotations.
    """

    points: Tensor
    labels: Tensor
    frame2global: Tensor
    lidar_origin: Tensor
    intrinsics: Tensor
    cam2global: Tensor
    sizes: Tensor
    boxes: PlacedBoxes | None = None

    @property
    def exists(self) -> Tensor:
        """Which cameras there are, bool [V]."""
        return self.intrinsics.flatten(1).any(-1)


def ray_frame(
    frame: Frame,
    lidar: Callable[[Frame], LidarPoints | None],
    cameras: Sequence[ShotCamera | None],
    frame2global: Tensor,
    taxonomy: Taxonomy = OCC3D_TAXONOMY,
) -> RayFrame:
    """A key frame as its files have it.

    Args:
        frame: the key frame.
        lidar: reads its classified points (`LidarReader`); None where it has none.
        cameras: the views, None where one is missing.
        frame2global: from the frame's grid to the frame that camera poses end in.
        taxonomy: of the boxes' classes.

    Raises:
        ValueError: points but no `lidar2ego`, or what the reader says.
    """
    found = lidar(frame)
    if found is None:
        found = LidarPoints(torch.zeros(0, 3), torch.zeros(0, dtype=torch.uint8))
    elif frame.lidar2ego is None:
        raise ValueError(f"sample {frame.token}: has a lidar sweep but no lidar2ego; make the infos again")
    ego2global = torch.eye(4, dtype=torch.float64) if frame.ego2global is None else frame.ego2global
    ego2frame = invert_rigid(frame2global) @ ego2global
    lidar2frame = ego2frame if frame.lidar2ego is None else ego2frame @ frame.lidar2ego
    intrinsics = torch.zeros(len(cameras), 3, 3, dtype=torch.float64)
    cam2global = torch.eye(4, dtype=torch.float64).repeat(len(cameras), 1, 1)
    sizes = torch.ones(len(cameras), 2, dtype=torch.float64)
    for v, camera in enumerate(cameras):
        if camera is not None:
            intrinsics[v], cam2global[v] = camera.intrinsics, camera.cam2global
            sizes[v] = torch.tensor(camera.size, dtype=torch.float64)
    return RayFrame(
        points=transform_points(lidar2frame.float(), found.points),
        labels=found.labels,
        frame2global=frame2global,
        lidar_origin=lidar2frame[:3, 3],
        intrinsics=intrinsics,
        cam2global=cam2global,
        sizes=sizes,
        boxes=None if frame.boxes is None else placed_boxes(frame.boxes, ego2global, taxonomy),
    )
