"""Instances that keep their number, hence their colour, over a drive. Legend: N objects, X Y Z voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from syntheocc.occupancy.pictures.basics import to_array

if TYPE_CHECKING:
    from syntheocc.occupancy.grids import OccupancyGrid

__all__ = ["InstanceTracks"]

# Metres that an object may be off for every metre of its length and one more, half a second later.
_NEW, _KNOWN = 1.4, 0.6


@dataclass
class _Track:
    number: int
    label: int
    place: np.ndarray  # [3] metres, global
    step: np.ndarray | None = None  # [3] metres from one frame to the next, None as long as it was seen once
    age: int = 0  # frames since it was seen


class InstanceTracks:
    """Renumbers the instances of successive frames: what is the same object by place and class keeps its number.

    For pictures, not for scores: an object is expected where its last two centres lead, and the nearest pairs of one
    class are matched first. How far off an object may be grows with its length (buses are faster than people), and is
    larger while it was seen only once. A model that numbers every frame anew flickers without this.

    Args:
        seconds: between frames.
        patience: frames that an object may be missing for.

    Example:
        >>> tracks = InstanceTracks()  # one a drive
        >>> numbers = tracks.update(grid, instances, frame.ego2global)  # doctest: +SKIP
    """

    def __init__(self, seconds: float = 0.5, patience: int = 2):
        self.seconds, self.patience = seconds, patience
        self._tracks: list[_Track] = []
        self._next = 1

    def update(self, grid: OccupancyGrid, instances: Any, ego2global: Any = None) -> np.ndarray:
        """The next frame's instances with their numbers of the drive.

        Args:
            grid: the classes; only the taxonomy's foreground is numbered.
            instances: integer [X, Y, Z], 0 none.
            ego2global: [4, 4]; without poses objects are compared in ego, which holds for slow drives only.

        Returns:
            int32 [X, Y, Z], 0 none.
        """
        numbers, labels = to_array(instances), to_array(grid.labels)
        cells = np.argwhere((numbers != 0) & np.isin(labels, grid.taxonomy.foreground))
        out = np.zeros(numbers.shape, np.int32)
        if len(cells):
            where = tuple(cells.T)
            present, member = np.unique(numbers[where], return_inverse=True)
            member = member.reshape(-1)
            count = np.bincount(member)
            middle = np.stack([np.bincount(member, cells[:, i]) / count for i in range(3)], -1) + 0.5
            size = np.array(grid.spec.voxel_size)
            points = np.array(grid.spec.lower) + middle * size
            extents = [(np.ptp(cells[member == i], axis=0) + 1) * size for i in range(len(present))]
            pose = grid.grid2ego.numpy()
            if ego2global is not None:
                pose = to_array(ego2global) @ pose
            # An instance has one class in a sound file; in others the commonest one counts.
            classes = [int(np.bincount(labels[where][member == i]).argmax()) for i in range(len(present))]
            out[where] = self._match(points @ pose[:3, :3].T + pose[:3, 3], np.max(extents, 1), classes)[member]
        else:
            self._match(np.zeros((0, 3)), np.zeros(0), [])
        return out

    def _match(self, places: np.ndarray, lengths: np.ndarray, classes: list[int]) -> np.ndarray:
        """Numbers of the objects of these lengths [N] at these places [N, 3], old or new."""
        pairs = []
        for j, track in enumerate(self._tracks):
            step = np.zeros(3) if track.step is None else track.step
            away = np.linalg.norm(places - track.place - step * (track.age + 1), axis=1)
            reach = 2 * self.seconds * (track.age + 1) * (_NEW if track.step is None else _KNOWN)
            near = np.flatnonzero((away <= reach * (1 + lengths)) & (np.array(classes) == track.label))
            pairs += [(float(away[i]), int(i), j) for i in near]
        found: dict[int, _Track] = {}
        taken: set[int] = set()
        for _, i, j in sorted(pairs):
            if i not in found and j not in taken:
                found[i] = self._tracks[j]
                taken.add(j)
        for j, track in enumerate(self._tracks):
            track.age += j not in taken
        for i, (place, label) in enumerate(zip(places, classes, strict=True)):
            if i in found:
                track = found[i]
                track.step, track.place, track.age = (place - track.place) / (track.age + 1), place, 0
            else:
                found[i] = _Track(self._next, label, place)
                self._tracks.append(found[i])
                self._next += 1
        self._tracks = [track for track in self._tracks if track.age <= self.patience]
        return np.array([found[i].number for i in range(len(places))], np.int32)
