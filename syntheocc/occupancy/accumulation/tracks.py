"""Where annotated objects are at any time: the boxes of key frames, joined over time and interpolated between.

Boxes are annotated at key frames (2 Hz in nuScenes), sweeps come at 20 Hz: between two key frames that both have an
object's box, its centre moves on a straight line and its heading turns evenly (slerp), as in the nuScenes devkit.
Before the first and after the last box, and in gaps of more than `MAX_GAP_S`, the object is nowhere.
Legend: K objects, T key frames, M moments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.data.frames import Frame

__all__ = ["MAX_GAP_S", "Track", "tracks_of"]

# Two key frames apart and a little: an object that was missed once is interpolated, one that was away is not.
MAX_GAP_S = 1.3
# Without tokens, a box of the next key frame is the same object when it moved no faster than this (m/s).
_MAX_SPEED = 30.0


@dataclass(frozen=True, eq=False)
class Track:
    """One object.

    Args:
        token: what names it.
        name: its class.
        times_us: int64 [T], rising.
        box2scene: float64 [T, 4, 4].
        sizes: float64 [T, 3] metres, length, width, height.
        num_lidar_points: int64 [T], -1 unknown.
    """

    token: str
    name: str
    times_us: np.ndarray
    box2scene: Tensor
    sizes: Tensor
    num_lidar_points: np.ndarray

    @property
    def size(self) -> Tensor:
        """Its greatest length, width and height, float64 [3] metres."""
        return self.sizes.amax(0)

    def at(self, times_us: np.ndarray) -> tuple[Tensor, Tensor]:
        """Where it is.

        Args:
            times_us: int64 [M].

        Returns:
            box2scene float64 [M, 4, 4], and bool [M]: whether it is anywhere then (else the pose means nothing).
        """
        from scipy.spatial.transform import Rotation, Slerp

        times = np.asarray(times_us, dtype=np.int64)
        after = np.clip(np.searchsorted(self.times_us, times), 0, len(self.times_us) - 1)
        exact = self.times_us[after] == times
        before = np.where(exact, after, np.maximum(after - 1, 0))
        gap = self.times_us[after] - self.times_us[before]
        inside = (times >= self.times_us[0]) & (times <= self.times_us[-1])
        valid = exact | (inside & (gap <= MAX_GAP_S * 1e6))
        poses = self.box2scene[after].clone()
        if len(self.times_us) > 1 and bool((valid & ~exact).any()):
            share = torch.from_numpy((times - self.times_us[before]) / np.maximum(gap, 1))[:, None]
            first, last = self.box2scene[before], self.box2scene[after]
            poses[:, :3, 3] = first[:, :3, 3] * (1 - share) + last[:, :3, 3] * share
            turns = Slerp((self.times_us - self.times_us[0]) * 1e-6, Rotation.from_matrix(self.box2scene[:, :3, :3]))
            moments = np.clip(times, self.times_us[0], self.times_us[-1]) - self.times_us[0]
            between = torch.from_numpy(valid & ~exact)
            poses[between, :3, :3] = torch.from_numpy(turns(moments * 1e-6).as_matrix())[between]
        return poses, torch.from_numpy(valid)

    def speeds(self) -> np.ndarray:
        """Metres a second at each of its boxes, from its neighbours; float64 [T], 0 where it has none."""
        if len(self.times_us) < 2:
            return np.zeros(1)
        moved = np.linalg.norm(np.diff(self.box2scene[:, :3, 3].numpy(), axis=0), axis=1)
        speed = moved / np.maximum(np.diff(self.times_us) * 1e-6, 1e-6)
        return np.maximum(np.append(speed, 0.0), np.append(0.0, speed))


def tracks_of(frames: Sequence[Frame], global2scene: Tensor) -> list[Track]:
    """The objects of one scene.

    Args:
        frames: its key frames in time order; those without boxes or pose count as having none.
        global2scene: [4, 4].

    Returns:
        One `Track` an object, in the order in which they appear. Boxes that carry no token (mmdetection3d's infos) are
        joined when the next key frame has a box of the same class and size within reach of 30 m/s, nearest first.
    """
    rows: dict[str, list[tuple[Frame, int, Tensor]]] = {}
    for frame in frames:
        if frame.boxes is None or frame.ego2global is None:
            continue
        box2scene = global2scene @ frame.ego2global @ frame.boxes.box2ego
        tokens = _named(frame, box2scene, rows)
        for i, token in enumerate(tokens):
            rows.setdefault(token, []).append((frame, i, box2scene[i]))
    tracks = []
    for token, seen in rows.items():
        boxes = [(frame.boxes, i) for frame, i, _ in seen if frame.boxes is not None]
        tracks.append(
            Track(
                token,
                boxes[0][0].names[boxes[0][1]],
                np.array([frame.timestamp_us for frame, _, _ in seen], dtype=np.int64),
                torch.stack([pose for _, _, pose in seen]),
                torch.stack([b.sizes[i] for b, i in boxes]),
                np.array([int(b.num_lidar_points[i]) for b, i in boxes]),
            )
        )
    return tracks


def _named(frame: Frame, box2scene: Tensor, rows: dict[str, list[tuple[Frame, int, Tensor]]]) -> list[str]:
    """A token for every box of a frame: its own, or that of the object before it that it continues."""
    boxes = frame.boxes
    assert boxes is not None
    tokens = list(boxes.instance_tokens)
    nameless = [i for i, token in enumerate(tokens) if not token]
    pairs = []
    for token, seen in rows.items():
        last, j, pose = seen[-1]
        seconds = (frame.timestamp_us - last.timestamp_us) * 1e-6
        if not token.startswith("unnamed/") or not 0 < seconds <= MAX_GAP_S or last.boxes is None:
            continue
        for i in nameless:
            same = boxes.names[i] == last.boxes.names[j] and torch.allclose(
                boxes.sizes[i], last.boxes.sizes[j], atol=1e-3
            )
            moved = float((box2scene[i, :3, 3] - pose[:3, 3]).norm())
            if same and moved <= _MAX_SPEED * seconds:
                pairs.append((moved, token, i))
    taken: set[str] = set()
    for _, token, i in sorted(pairs):
        if not tokens[i] and token not in taken:
            tokens[i] = token
            taken.add(token)
    for i in nameless:
        tokens[i] = tokens[i] or f"unnamed/{frame.token}/{i}"
    return tokens
