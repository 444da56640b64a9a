"""Occupancy grids: where the voxels lie (`GridSpec`), what is in them (`OccupancyGrid`), and the datasets' presets.

Grids are indexed ``[x, y, z]``; index ``i`` of an axis spans ``[lower + i*size, lower + (i+1)*size)``.
Legend: X Y Z voxels.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy import taxonomy as tables
from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.taxonomy import UNKNOWN, Taxonomy
from syntheocc.occupancy.transforms import rigid_transform

FRAMES = ("ego", "lidar", "camera", "world")


@dataclass(frozen=True)
class GridSpec:
    """Geometry of a voxel grid.

    Args:
        lower: the grid's lower corner in its own frame, metres (x, y, z).
        voxel_size: edge lengths of a voxel, metres; one float means a cube.
        shape: number of voxels (X, Y, Z).
        frame: the frame the grid lives in: ``"ego"`` (x forward, y left, z up, at the key frame's lidar time),
            ``"lidar"`` (nuScenes: x right, y forward, z up), ``"camera"`` or ``"world"``.

    Raises:
        ValueError: a size that is not positive and finite, or an unknown frame.

    Example:
        >>> spec = GridSpec(lower=(0.0, 0.0, 0.0), voxel_size=0.5, shape=(4, 4, 2))
        >>> spec.upper
        (2.0, 2.0, 1.0)
    """

    lower: tuple[float, float, float]
    voxel_size: tuple[float, float, float]
    shape: tuple[int, int, int]
    frame: str = "ego"

    def __post_init__(self):
        edges = np.asarray(self.voxel_size, dtype=np.float64)
        size = tuple((edges.repeat(3) if edges.ndim == 0 else edges).tolist())
        object.__setattr__(self, "voxel_size", size)
        object.__setattr__(self, "lower", tuple(float(v) for v in self.lower))
        if any(n != int(n) for n in self.shape):
            raise ValueError(f"grid shape must be whole numbers of voxels, got {tuple(self.shape)}")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.lower) != 3 or len(size) != 3 or len(self.shape) != 3:
            raise ValueError(f"a grid has three axes; got lower {self.lower}, voxel_size {size}, shape {self.shape}")
        if not all(np.isfinite(self.lower)):
            raise ValueError(f"grid lower corner must be finite, got {self.lower}")
        if not all(np.isfinite(s) and s > 0 for s in size):
            raise ValueError(f"voxel_size must be positive and finite metres, got {size}")
        if not all(n > 0 for n in self.shape):
            raise ValueError(f"grid shape must be positive, got {self.shape}")
        if self.frame not in FRAMES:
            raise ValueError(f"grid frame must be one of {', '.join(FRAMES)}; got {self.frame!r}")

    @property
    def upper(self) -> tuple[float, float, float]:
        """The upper corner in metres (exclusive)."""
        x, y, z = (low + n * s for low, n, s in zip(self.lower, self.shape, self.voxel_size, strict=True))
        return (x, y, z)

    def centers(self, device: torch.device | str | None = None) -> Tensor:
        """Voxel centres in the grid's frame, float64 [X, Y, Z, 3] metres."""
        axes = [
            low + (torch.arange(n, dtype=torch.float64, device=device) + 0.5) * s
            for low, n, s in zip(self.lower, self.shape, self.voxel_size, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)

    def index_of(self, points: Any) -> tuple[Tensor, Tensor]:
        """The voxel of each point.

        Args:
            points: [..., 3] metres in the grid's frame, a tensor or an array; computed in float64.

        Returns:
            index int64 [..., 3] (meaningful where inside; points that are NaN count as outside) and inside bool [...].
        """
        points = torch.as_tensor(points, dtype=torch.float64)
        cell = (points - constant(self.lower, points)) / constant(self.voxel_size, points)
        shape = constant(self.shape, points.device)
        inside = ((cell >= 0) & (cell < shape)).all(-1)
        return torch.where(inside[..., None], cell, 0.0).floor().long(), inside


class OccupancyGrid:
    """A labelled voxel grid.

    Args:
        labels: [X, Y, Z] class ids of ``taxonomy`` or 255 (unknown), kept as uint8; a torch tensor or a numpy array of
            any integer type. A uint8 array is shared, not copied.
        spec: where the voxels lie.
        taxonomy: what the ids mean.
        grid2ego: [4, 4] transform from the grid's frame to ego at the key frame's lidar time (for the lidar-frame
            grids of SyntheOcc, SurroundOcc and OpenOccupancy this is ``lidar2ego``). Identity for ego grids.

    Raises:
        ValueError: shape and spec differ, labels are not integers or lie outside the taxonomy, the pose is not a rigid
            transform, or a grid that is not in the ego frame comes without a pose.

    Example:
        >>> from syntheocc.occupancy import OCC3D_NUSCENES
        >>> grid = OccupancyGrid(torch.full((200, 200, 16), 17, dtype=torch.uint8), *OCC3D_NUSCENES)
        >>> grid.occupied().any().item()
        False
    """

    def __init__(self, labels: Any, spec: GridSpec, taxonomy: Taxonomy, grid2ego: Any = None):
        labels = _integers(labels)
        if tuple(labels.shape) != spec.shape:
            raise ValueError(
                f"occupancy labels have shape {tuple(labels.shape)} but the grid spec says {spec.shape} (X, Y, Z); "
                "transpose the array or choose the preset it was made for"
            )
        if labels.dtype != torch.uint8:
            low, high = (int(bound) for bound in labels.aminmax())
            if low < 0 or high > 255:
                raise ValueError(f"occupancy labels must lie in 0..255, got {low}..{high}")
            labels = labels.to(torch.uint8)
        # Only the largest known id matters, so one reduction instead of a unique over ten million voxels; one more
        # makes 255 wrap to 0.
        highest = int((labels + 1).max()) - 1
        if highest >= taxonomy.num_classes:
            raise ValueError(
                f"occupancy labels hold class id {highest}, but taxonomy {taxonomy.name!r} ends at "
                f"{taxonomy.num_classes - 1} (255 is unknown); is this another dataset's numbering?"
            )
        if grid2ego is None:
            if spec.frame != "ego":
                raise ValueError(
                    f"a grid in the {spec.frame!r} frame needs grid2ego [4, 4]; for the lidar-frame grids of "
                    "SyntheOcc, SurroundOcc and OpenOccupancy pass the sample's lidar2ego"
                )
            grid2ego = torch.eye(4, dtype=torch.float64)
        self.labels: Tensor = labels
        self.spec = spec
        self.taxonomy = taxonomy
        self.grid2ego: Tensor = rigid_transform(grid2ego, "grid2ego")

    def __repr__(self) -> str:
        return f"OccupancyGrid({'x'.join(map(str, self.spec.shape))} {self.taxonomy.name}, {self.spec.frame} frame)"

    @property
    def device(self) -> torch.device:
        """The device of the labels."""
        return self.labels.device

    def to(self, device: torch.device | str) -> "OccupancyGrid":
        """The same grid with its labels on another device; the pose stays on the CPU in float64."""
        return self._replace(self.labels.to(device), self.taxonomy)

    def map_to(self, taxonomy: Taxonomy) -> "OccupancyGrid":
        """The same grid in another taxonomy (`Taxonomy.mapping_to`); returns itself when it is the same table."""
        if taxonomy == self.taxonomy:
            return self
        table = torch.from_numpy(self.taxonomy.mapping_to(taxonomy)).to(self.device)
        return self._replace(table[self.labels.int()], taxonomy)

    def occupied(self) -> Tensor:
        """Bool [X, Y, Z]: neither free nor unknown."""
        return (self.labels != self.taxonomy.free) & (self.labels != UNKNOWN)

    def _replace(self, labels: Tensor, taxonomy: Taxonomy) -> "OccupancyGrid":
        # Skips __init__: the parts are known to be valid, and its checks would synchronise with the device.
        grid = object.__new__(OccupancyGrid)
        grid.labels, grid.spec, grid.taxonomy, grid.grid2ego = labels, self.spec, taxonomy, self.grid2ego
        return grid


def _integers(labels: Any) -> Tensor:
    """Labels as a tensor that torch can compute with; ValueError unless they are integers."""
    if not isinstance(labels, Tensor):
        array = np.asarray(labels)
        if array.dtype.kind not in "iu":
            raise ValueError(f"occupancy labels must be integers (uint8 class ids), got {array.dtype}")
        # torch wraps neither foreign byte orders nor negative strides, and warns of read-only memory.
        kept = array.dtype == np.uint8 or (array.dtype.kind == "i" and array.dtype.isnative)
        labels = torch.from_numpy(np.require(array, None if kept else np.int64, ["C", "W"]))
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"occupancy labels must be integers (uint8 class ids), got {labels.dtype}")
    # torch's other unsigned types know next to no operation.
    return labels if labels.dtype == torch.uint8 or labels.dtype.is_signed else labels.to(torch.int64)


class Preset(NamedTuple):
    """A dataset's grid and class table."""

    spec: GridSpec
    taxonomy: Taxonomy


_NUSCENES_EGO = GridSpec((-40.0, -40.0, -1.0), (0.4, 0.4, 0.4), (200, 200, 16))
OCC3D_NUSCENES = Preset(_NUSCENES_EGO, tables.OCC3D_TAXONOMY)
OPENOCC_V2 = Preset(_NUSCENES_EGO, tables.OPENOCC_V2_TAXONOMY)
SYNTHEOCC = Preset(
    GridSpec((-50.0, -50.0, -5.0), (0.2, 0.2, 0.2), (500, 500, 40), "lidar"),
    tables.SYNTHEOCC_TAXONOMY,
)
# The 0.5 m variant of the same files (specs/syntheocc.md 1.1).
SYNTHEOCC_COARSE = Preset(
    GridSpec((-50.0, -50.0, -5.0), (0.5, 0.5, 0.5), (200, 200, 16), "lidar"),
    tables.SYNTHEOCC_TAXONOMY,
)
SURROUNDOCC = Preset(SYNTHEOCC_COARSE.spec, tables.SURROUNDOCC_TAXONOMY)
OPENOCCUPANCY = Preset(
    GridSpec((-51.2, -51.2, -5.0), (0.2, 0.2, 0.2), (512, 512, 40), "lidar"),
    tables.OPENOCCUPANCY_TAXONOMY,
)
# Velodyne frame: x forward, y left, z up.
SEMANTIC_KITTI = Preset(
    GridSpec((0.0, -25.6, -2.0), (0.2, 0.2, 0.2), (256, 256, 32), "lidar"),
    tables.SEMANTIC_KITTI_TAXONOMY,
)
# Each NYU file carries its own origin in the room; grid2ego (here grid2world) holds it. The reader transposes to z up.
NYUV2 = Preset(
    GridSpec((0.0, 0.0, 0.0), (0.08, 0.08, 0.08), (60, 60, 36), "world"),
    tables.NYUV2_TAXONOMY,
)
# Camera-centred, yaw removed, x right, y down, z forward (specs/occdepth.md 1.8).
TARTANAIR = Preset(
    GridSpec((-6.0, -3.0, 0.0), (0.1, 0.1, 0.1), (120, 48, 120), "camera"),
    tables.TARTANAIR_TAXONOMY,
)
