"""The classes of a key sweep's returns: from lidarseg or panoptic files, or by rules where there are none.

**From files.** Raw categories become the table's classes as in Occ3D (`lidarseg.lidarseg_table`); noise and returns
from the own car are dropped.

**By rules** (`building.classify_returns`). Returns in a box have its class. Ground is road, sidewalk or terrain by
height, curbs and brightness (`ground`). The rest that stands is vegetation where it scatters in all directions, else
manmade. Returns from below the ground are dropped: they are reflections. Legend: N returns.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.building import classify_returns, is_ego_body
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.lidar import read_lidar
from syntheocc.occupancy.data.lidarseg import LIDARSEG_NAMES, LidarReader, lidarseg_table
from syntheocc.occupancy.ground import NOTHING
from syntheocc.occupancy.taxonomy import OCC3D_TAXONOMY, UNKNOWN, Taxonomy
from syntheocc.occupancy.transforms import transform_points

__all__ = ["FileClasses", "PointClasses", "RuleClasses", "class_of_box", "read_unlabelled"]

# Beyond this the scan lines of a 32-beam lidar are too far apart to tell ground from what stands on it, metres.
_GROUND_RANGE = 64.0


class PointClasses(Protocol):
    """Reads a key sweep."""

    def __call__(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """Points float32 [N, 3] metres in the lidar frame, labels uint8 [N]; ValueError names the file."""
        ...


@dataclass(frozen=True)
class FileClasses:
    """From lidarseg or panoptic files.

    Args:
        reader: a `LidarReader` that drops noise and the own car.
    """

    reader: LidarReader

    def __call__(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """See `PointClasses`."""
        found = self.reader(frame)
        if found is None:
            raise ValueError(f"sample {frame.token}: its source names no lidar sweep")
        kept = found.labels != UNKNOWN
        return found.points[kept], found.labels[kept]


@dataclass(frozen=True)
class RuleClasses:
    """By rules, from the sweep and the boxes of its key frame.

    Args:
        taxonomy: what labels mean.
    """

    taxonomy: Taxonomy = OCC3D_TAXONOMY

    def __call__(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """See `PointClasses`."""
        if frame.lidar_path is None or frame.lidar2ego is None:
            raise ValueError(f"sample {frame.token}: its source names no lidar sweep or no lidar2ego")
        rows = read_lidar(frame.lidar_path)
        points = torch.from_numpy(np.ascontiguousarray(rows[:, :3]))
        in_ego = transform_points(frame.lidar2ego, points.double())
        off_body = ~is_ego_body(in_ego)
        points, in_ego, intensity = points[off_body], in_ego[off_body], rows[off_body.numpy(), 3]
        boxes = None if frame.boxes is None else frame.boxes.filter(lambda name: name in self.taxonomy.classes)
        limit = (_GROUND_RANGE, _GROUND_RANGE)
        classes = classify_returns(
            in_ego, boxes, frame.lidar2ego[:3, 3].numpy(), torch.eye(4, dtype=torch.float64),
            (-limit[0], -limit[1]), limit, self.taxonomy, intensity,
        )  # fmt: skip
        label = classes.label.copy()
        kinds = [self.taxonomy.id_of(name) for name in ("driveable_surface", "sidewalk", "terrain")]
        of_kind = np.full(256, self.taxonomy.free, dtype=np.uint8)
        of_kind[:3] = kinds
        ground = classes.ground
        x, y = ground.cells_of(in_ego[:, :2].numpy())
        kind = ground.kind[x, y]
        on_ground = ground.is_ground & (kind != NOTHING)
        label[on_ground] = of_kind[kind[on_ground]]
        kept = torch.from_numpy(label != self.taxonomy.free)
        return points[kept], torch.from_numpy(label)[kept]


def read_unlabelled(path: Any, lidar2ego: Tensor) -> tuple[Tensor, Tensor]:
    """A sweep without classes: points float32 [N, 3] without the own car's body, labels all 255.

    Raises:
        ValueError: no such file, or a damaged one.
    """
    points = torch.from_numpy(np.ascontiguousarray(read_lidar(path)[:, :3]))
    points = points[~is_ego_body(transform_points(lidar2ego, points.double()))]
    return points, torch.full((len(points),), UNKNOWN, dtype=torch.uint8)


def class_of_box(name: str, taxonomy: Taxonomy = OCC3D_TAXONOMY) -> str | None:
    """The class of a box: a detection class, or what its raw category is in the table; None for a name unknown."""
    name = "others" if name == "other" else name  # mmdetection3d 1.1's word for what has no detection class
    if name in taxonomy.classes:
        return name
    if name not in LIDARSEG_NAMES:
        return None
    label = int(lidarseg_table(taxonomy=taxonomy)[LIDARSEG_NAMES.index(name)])
    return None if label == UNKNOWN else taxonomy.classes[label]
