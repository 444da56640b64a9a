"""Which older images a sample is seen with (specs/sparseocc.md 1.2-1.3).

A `Shot` is one firing of the cameras: a key frame's or one of the camera sweeps between two key frames. A key frame's
history runs backwards from it: its own sweeps, the key frame before, that one's sweeps, ... to the scene's start. Data
without sweeps has key frames only.

Frames come in any order, of any number of scenes; scenes are told by name, by token, or, where the source knows
neither, by the time between frames.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.locate import ImageLocator
from syntheocc.occupancy.transforms import numbers, pose_from_quaternion

__all__ = ["Shot", "ShotCamera", "ShotHistory"]

# What the published loader walks back at most.
MAX_SHOTS = 150
# Shots between two images of a training sample, where there are enough.
NARROWEST, WIDEST = 4, 8
# Key frames of one drive follow each other within this time; nuScenes' are 0.5 s apart.
MAX_GAP_US = 1_200_000
# Metres a second; two cars of a fleet may be on their ways at the same time.
FASTEST = 60.0


@dataclass(frozen=True, eq=False)
class ShotCamera:
    """One camera of a shot.

    Args:
        path: the picture.
        intrinsics: float64 [3, 3].
        cam2global: float64 [4, 4] at the time of the picture.
        size: height and width.
    """

    path: Path
    intrinsics: Tensor
    cam2global: Tensor
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Shot:
    """One firing of the cameras; a camera that gave no picture is left out.

    Args:
        cameras: by name.
        token: the key frame's; None between key frames.
    """

    cameras: Mapping[str, ShotCamera]
    token: str | None = None

    @property
    def is_key(self) -> bool:
        """Whether these are a key frame's pictures."""
        return self.token is not None


@dataclass
class ShotHistory:
    """The shots before each key frame.

    Args:
        frames: key frames in any order.
        data_root: the folder below which the sweeps' files lie, for infos that were written elsewhere.

    Raises:
        ValueError: two frames have one token, or a camera is no pinhole without distortion.
    """

    frames: Sequence[Frame]
    data_root: Path | None = None
    _previous: dict[str, str | None] = field(init=False, repr=False)
    _next: dict[str, str] = field(init=False, repr=False)
    _by_token: dict[str, Frame] = field(init=False, repr=False)

    def __post_init__(self):
        self._by_token = {frame.token: frame for frame in self.frames}
        if len(self._by_token) != len(self.frames):
            raise ValueError(f"{len(self.frames)} frames have {len(self._by_token)} tokens; a sample is there twice")
        self._previous = _previous_tokens(self.frames)
        self._next = {before: token for token, before in self._previous.items() if before is not None}
        self._locate = ImageLocator(self.data_root) if self.data_root is not None else None

    def previous(self, token: str) -> Frame | None:
        """The key frame before, None at the start of a scene."""
        before = self._previous[token]
        return None if before is None else self._by_token[before]

    def neighbour(self, token: str, offset: int) -> Frame | None:
        """The key frame `offset` after one (before it, if negative), None beyond the scene's ends."""
        links = self._previous if offset < 0 else self._next
        at: str | None = token
        for _ in range(abs(offset)):
            at = None if at is None else links.get(at)
        return None if at is None else self._by_token[at]

    def current(self, token: str) -> Shot:
        """A key frame's own shot."""
        return key_shot(self._by_token[token])

    def key_shots(self, token: str, number: int, missing: str = "oldest") -> list[Shot]:
        """The `number` key frames before one, the newest first; at a scene's start its first one repeats.

        This is what the published SparseOcc is tested with. With ``missing="current"`` the frame itself stands in for
        those that there are not, as in BEVDet4D.
        """
        shots = [self.current(token)]
        at = self.previous(token)
        while at is not None and len(shots) <= number:
            shots.append(key_shot(at))
            at = self.previous(at.token)
        if missing == "current":
            return (shots[1:] + shots[:1] * number)[:number]
        # A scene's first frame has nothing before it but itself.
        return (shots[1:] + [shots[-1]] * number)[:number]

    def shots(self, token: str, most: int = MAX_SHOTS) -> list[Shot]:
        """Sweeps and key frames before one, the newest first, none at a scene's start."""
        found: list[Shot] = []
        at: Frame | None = self._by_token[token]
        while at is not None and len(found) < most:
            before = self.previous(at.token)
            found += self._sweeps(at)
            if before is not None:
                found.append(key_shot(before))
            at = before
        return found[:most]

    def random_shots(self, token: str, number: int, generator: torch.Generator) -> list[Shot]:
        """`number` older shots at one random spacing, the newest first, as the published model is trained.

        The spacing is 4 to 8 shots (0.33 to 0.67 s at 12 Hz) where the history is long enough, less where it is
        short. Without sweeps in the data these are the `key_shots`.
        """
        # The widest spacing reaches no further back.
        found = self.shots(token, min(MAX_SHOTS, WIDEST * number))
        if all(shot.is_key for shot in found):
            return self.key_shots(token, number)
        if len(found) <= number:
            return (found + found[-1:] * number)[:number]
        high = min(WIDEST, len(found) // number)
        low = min(NARROWEST, high)
        spacing = int(torch.randint(low, high + 1, (), generator=generator))
        return [found[(k + 1) * spacing - 1] for k in range(number)]

    def _sweeps(self, frame: Frame) -> list[Shot]:
        """The camera sweeps that a frame's infos list, newest first; lidar sweeps are passed over."""
        names = set(frame.cameras.names)
        shots: list[Shot] = []
        for sweep in frame.extras.get("sweeps") or ():
            if not isinstance(sweep, Mapping):
                continue
            cameras = {name: entry for name, entry in sweep.items() if name in names and isinstance(entry, Mapping)}
            if cameras and set(cameras) == names:
                shots.append(Shot({n: self._sweep_camera(frame, n, e) for n, e in cameras.items()}))
            elif cameras:
                # A firing that lost cameras: the one after it stands in, the key frame itself for the newest.
                shots.append(shots[-1] if shots else key_shot(frame))
        return shots

    def _sweep_camera(self, frame: Frame, name: str, entry: Mapping[str, Any]) -> ShotCamera:
        try:
            given = str(entry["data_path"])
            intrinsics = entry["cam_intrinsics"] if "cam_intrinsics" in entry else entry["cam_intrinsic"]
            rotation = numbers(entry["sensor2global_rotation"], "sensor2global_rotation")
            translation = numbers(entry["sensor2global_translation"], "sensor2global_translation")
        except KeyError as error:
            raise ValueError(f"sample {frame.token}: a sweep of {name} lacks {error}; make the infos again") from error
        if tuple(rotation.shape) == (4,):
            cam2global = pose_from_quaternion(translation, rotation)
        else:
            cam2global = torch.eye(4, dtype=torch.float64)
            # The published sweep infos store the transpose of the rotation (specs/sparseocc.md 1.2).
            cam2global[:3, :3] = rotation.T
            cam2global[:3, 3] = translation
        path = Path(given) if self._locate is None else self._locate(given, name)[0]
        camera = frame.cameras[name]
        return ShotCamera(path, numbers(intrinsics, "intrinsics")[:3, :3], cam2global, (camera.height, camera.width))


def key_shot(frame: Frame) -> Shot:
    """A key frame's cameras; those without a picture are left out.

    Without `ego2global` the global frame is the ego frame itself: good for a single frame, which then has no history.

    Raises:
        ValueError: a camera's projection is no matrix (a lens other than a plain pinhole).
    """
    ego2global = torch.eye(4, dtype=torch.float64) if frame.ego2global is None else frame.ego2global
    cameras = {}
    for name, path in frame.image_paths.items():
        camera = frame.cameras[name]
        if camera.model != "pinhole" or camera.distortion is not None:
            raise ValueError(
                f"sample {frame.token}: {name} is {camera}; this needs pinhole cameras without distortion. Rectify "
                "the pictures first"
            )
        size = (camera.height, camera.width)
        cameras[name] = ShotCamera(path, camera.intrinsics, ego2global @ camera.cam2ego, size)
    return Shot(cameras, frame.token)


def _previous_tokens(frames: Sequence[Frame]) -> dict[str, str | None]:
    """Token of every frame -> token of the key frame before it in its scene, as far as poses are known."""
    known = {frame.token: frame for frame in frames}
    scenes: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        scenes[frame.scene or str(frame.extras.get("scene_token") or "")].append(frame)
    previous: dict[str, str | None] = {}
    for scene, members in scenes.items():
        members.sort(key=lambda frame: frame.timestamp_us)
        # Where infos list sweeps at all, a frame without any is the first of its drive.
        lists_sweeps = not scene and any(frame.extras.get("sweeps") for frame in members)
        for index, frame in enumerate(members):
            # What the source says is before it counts, where that frame is at hand.
            linked = known.get(frame.prev) if frame.prev else None
            if linked is None and index and scene:
                linked = members[index - 1]
            elif linked is None and not (lists_sweeps and not frame.extras.get("sweeps")):
                linked = _before(members[max(0, index - 50) : index], frame)
            if linked is not None and (linked.ego2global is None or frame.ego2global is None):
                linked = None
            previous[frame.token] = linked.token if linked is not None and linked is not frame else None
    return previous


def _before(earlier: Sequence[Frame], frame: Frame) -> Frame | None:
    """The frame of an unnamed scene before this one: close in time, and no further off than a car gets in it."""
    for before in reversed(earlier):
        gap = frame.timestamp_us - before.timestamp_us
        if gap > MAX_GAP_US:
            break
        if gap > 0 and before.ego2global is not None and frame.ego2global is not None:
            away = float((frame.ego2global - before.ego2global)[:3, 3].norm())
            if away <= 1.0 + FASTEST * gap * 1e-6:
                return before
    return None
