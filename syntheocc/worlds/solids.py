"""A small builder for sets of primitives: "a box here, a cylinder there", in metres."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from syntheocc.worlds.primitives import BOX, CONE, ELLIPSOID, Primitives
from syntheocc.worlds.taxonomy import CLASS_TO_CATEGORY, LIDARSEG_NAMES, LIDARSEG_TO_WORLD, WORLD_TAXONOMY

__all__ = ["Solids", "axes_rotation", "pose"]


def pose(x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> np.ndarray:
    """[4, 4] transform from the frame of something at (x, y, z) whose x axis points along `yaw` (radians)."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, -sin, 0, x], [sin, cos, 0, y], [0, 0, 1, z], [0, 0, 0, 1]], dtype=np.float64)


def axes_rotation(axis: str, angle: float = 0.0) -> np.ndarray:
    """[3, 3] rotation that lays a shape's z axis along "x", "y" or "z", then turns it about world y by `angle`."""
    turn = {
        "x": np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]),
        "y": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
        "z": np.eye(3),
    }[axis]
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]) @ turn


class Solids:
    """Collects solids of one category in one frame.

    Args:
        category: a name of LIDARSEG_NAMES, or a class name of WORLD_TAXONOMY (then its usual category).
        local2frame: [4, 4] from the coordinates of the calls to the frame of the result; identity when left out.
    """

    def __init__(self, category: str, local2frame: np.ndarray | None = None):
        self.local2frame = np.eye(4) if local2frame is None else local2frame
        self._rows: list[tuple[int, np.ndarray, float, int, int, int]] = []
        self.use(category)

    def use(self, category: str) -> "Solids":
        """Give what is added from now on another category."""
        if category in LIDARSEG_NAMES:
            self.category = LIDARSEG_NAMES.index(category)
            self.label = int(LIDARSEG_TO_WORLD[self.category])
        else:
            self.label = WORLD_TAXONOMY.id_of(category)
            self.category = int(CLASS_TO_CATEGORY[self.label])
        return self

    def _add(self, kind: int, center, half, rotation: np.ndarray, taper: float, material: int) -> None:
        local = np.eye(4)
        local[:3, :3] = rotation * np.asarray(half, dtype=np.float64)
        local[:3, 3] = center
        self._rows.append((kind, self.local2frame @ local, taper, self.label, self.category, material))

    def box(
        self,
        low: Sequence[float] | np.ndarray,
        high: Sequence[float] | np.ndarray,
        material: int,
        yaw: float = 0.0,
        pitch: float = 0.0,
    ) -> None:
        """An upright box between two corners, then turned about its own centre (radians; pitch > 0 dips its front)."""
        lower, upper = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        rotation = pose(0, 0, 0, yaw)[:3, :3] @ axes_rotation("z", pitch)
        self._add(BOX, (lower + upper) / 2, (upper - lower) / 2, rotation, 0.0, material)

    def oriented_box(
        self, center: Sequence[float], half: Sequence[float], rotation: np.ndarray, material: int
    ) -> None:
        """A box with half edges `half`, turned by a rotation matrix [3, 3] about its centre."""
        self._add(BOX, center, half, rotation, 0.0, material)

    def ellipsoid(self, center: Sequence[float], radii: Sequence[float], material: int, yaw: float = 0.0) -> None:
        """An ellipsoid with half axes `radii`."""
        self._add(ELLIPSOID, center, radii, pose(0, 0, 0, yaw)[:3, :3], 0.0, material)

    def cylinder(
        self,
        center: Sequence[float],
        radius: float | tuple[float, float],
        length: float,
        material: int,
        axis: str = "z",
        taper: float = 0.0,
        upside_down: bool = False,
    ) -> None:
        """A cylinder or cone about an axis, centred; taper shrinks its far end (upside down: its near end)."""
        rx, ry = (radius, radius) if isinstance(radius, int | float) else radius
        rotation = axes_rotation(axis) @ (np.diag([1.0, -1.0, -1.0]) if upside_down else np.eye(3))
        self._add(CONE, center, (rx, ry, length / 2), rotation, taper, material)

    def rod(
        self, start: Sequence[float], end: Sequence[float], radius: float, material: int, taper: float = 0.0
    ) -> None:
        """A cylinder between two points."""
        first, last = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
        along = last - first
        length = float(np.linalg.norm(along))
        z = along / length
        helper = np.array([1.0, 0, 0]) if abs(z[0]) < 0.9 else np.array([0.0, 1, 0])
        x = np.cross(helper, z)
        x /= np.linalg.norm(x)
        rotation = np.stack([x, np.cross(z, x), z], -1)
        self._add(CONE, (first + last) / 2, (radius, radius, length / 2), rotation, taper, material)

    def __len__(self) -> int:
        return len(self._rows)

    def primitives(self) -> Primitives:
        """What was collected, instance 0."""
        if not self._rows:
            return Primitives.empty()
        kind, matrix, taper, label, category, material = zip(*self._rows, strict=True)
        return Primitives(
            kind=torch.tensor(kind, dtype=torch.int64),
            shape2frame=torch.from_numpy(np.stack(matrix)),
            taper=torch.tensor(taper, dtype=torch.float64),
            label=torch.tensor(label, dtype=torch.uint8),
            category=torch.tensor(category, dtype=torch.uint8),
            instance=torch.zeros(len(kind), dtype=torch.int64),
            material=torch.tensor(material, dtype=torch.int64),
        )
