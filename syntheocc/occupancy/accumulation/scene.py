"""A scene read from its files: sweeps, classes, objects; what is damaged is noted and left out.

Legend: K objects, S sweeps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.accumulation.cloud import OwnerRules, SceneCloud, Sweep, owners_of
from syntheocc.occupancy.accumulation.frames import (
    GROUND,
    BuildRules,
    FrameLabels,
    Placed,
    build_labels,
    choose_sweeps,
)
from syntheocc.occupancy.accumulation.point_classes import PointClasses, class_of_box, read_unlabelled
from syntheocc.occupancy.accumulation.tracks import Track, tracks_of
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.lidar_sweeps import SweepFile
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.taxonomy import OCC3D_TAXONOMY, Taxonomy
from syntheocc.occupancy.transforms import transform_points

__all__ = ["Scene", "read_scene"]

# What stands still for good: its trails are none.
_FIXED = ("others", "barrier", "traffic_cone", "manmade", "vegetation", *GROUND)


@dataclass(frozen=True, eq=False)
class Scene:
    """A scene's sweeps and objects, ready to label its key frames.

    Args:
        cloud: all sweeps that could be read.
        files: where each of them came from.
        tracks: K objects, as many as the cloud has.
        classes: K class names; None for an object that is left out.
        global2scene: float64 [4, 4].
        taxonomy: of the cloud's labels.
        problems: what was damaged or missing, with the reason: a file, or an object.
    """

    cloud: SceneCloud
    files: Sequence[SweepFile]
    tracks: Sequence[Track]
    classes: Sequence[str | None]
    global2scene: Tensor
    taxonomy: Taxonomy
    problems: dict[str, str] = field(default_factory=dict)

    def labels(
        self,
        frame: Frame,
        spec: GridSpec,
        rules: BuildRules = BuildRules(),  # noqa: B008 (frozen)
        cameras: bool = True,
        surface: tuple[Tensor, Tensor] | None = None,
    ) -> FrameLabels:
        """The labels of a key frame.

        Args:
            frame: one of the scene's.
            spec: a grid in the ego or the lidar frame.
            rules: how.
            cameras: whether `mask_camera` is made.
            surface: a reconstructed surface in place of the returns, see `build_labels`.

        Raises:
            ValueError: no sweep to build from, a frame without poses, a grid in another frame.
        """
        if frame.ego2global is None or frame.lidar2ego is None:
            raise ValueError(f"sample {frame.token}: its source lacks ego2global or lidar2ego")
        if spec.frame not in ("ego", "lidar"):
            raise ValueError(f"occupancy is built in the ego or the lidar frame, not in {spec.frame!r}")
        own, chosen = None, []
        if self.files:
            times = np.array([file.timestamp_us for file in self.files])
            nearest = int(np.abs(times - frame.timestamp_us).argmin())
            origins = torch.stack([sweep.origin for sweep in self.cloud.sweeps])
            keys = np.array([bool(file.sample) for file in self.files])
            chosen = choose_sweeps(origins, times, nearest, rules, keys)
            own = nearest if self.files[nearest].sample == frame.token else None
        elif surface is None:
            raise ValueError(f"sample {frame.token}: none of its scene's sweeps could be read")
        grid2ego = frame.lidar2ego if spec.frame == "lidar" else torch.eye(4, dtype=torch.float64)
        return build_labels(
            self.cloud, chosen, own, list(self._placed(frame)), self.global2scene @ frame.ego2global @ grid2ego, spec,
            self.taxonomy, grid2ego, frame.cameras if cameras else None, rules, surface,
        )  # fmt: skip

    def _placed(self, frame: Frame) -> Iterator[Placed]:
        moment = np.array([frame.timestamp_us], dtype=np.int64)
        for k, (track, name) in enumerate(zip(self.tracks, self.classes, strict=True)):
            pose, there = track.at(moment)
            if name is not None and bool(there[0]):
                yield Placed(k, name, pose[0], track.size)


def read_scene(
    frames: Sequence[Frame],
    files: Sequence[SweepFile],
    classes: PointClasses,
    taxonomy: Taxonomy = OCC3D_TAXONOMY,
    owners: OwnerRules | None = None,
    progress: Callable[[], None] | None = None,
) -> Scene:
    """Read a scene.

    Args:
        frames: all its key frames in time order.
        files: its sweeps in time order.
        classes: reads a key sweep with classes (of `taxonomy`). Where it fails and the sweep itself is sound, the
            sweep counts as one between key frames, whose returns take the classes of their neighbours.
        taxonomy: what labels mean.
        owners: which returns belong to objects; `object_rules(taxonomy)` when left out.
        progress: called after every sweep.

    Returns:
        A `Scene`; `problems` holds what was damaged.

    Raises:
        ValueError: no key frame has a pose.
    """
    posed = [frame for frame in frames if frame.ego2global is not None]
    if not posed:
        raise ValueError(f"scene {frames[0].scene if frames else ''!r}: no key frame has ego2global")
    global2scene = torch.eye(4, dtype=torch.float64)
    assert posed[0].ego2global is not None
    global2scene[:3, 3] = -posed[0].ego2global[:3, 3]
    by_token = {frame.token: frame for frame in frames}
    problems: dict[str, str] = {}
    tracks = tracks_of(posed, global2scene)
    names = [class_of_box(track.name, taxonomy) for track in tracks]
    for track, name in zip(tracks, names, strict=True):
        if name is None:
            problems[f"object {track.token}"] = f"no class of {taxonomy.name!r} for {track.name!r}; it is left out"
    owners = owners or object_rules(taxonomy)
    times = np.array([file.timestamp_us for file in files], dtype=np.int64)
    moved = [track.at(times) for track in tracks]
    everywhere = torch.stack([pose for pose, _ in moved], 1) if moved else torch.zeros(len(times), 0, 4, 4).double()
    present = torch.stack([there for _, there in moved], 1) if moved else torch.zeros(len(times), 0, dtype=torch.bool)
    present &= torch.tensor([name is not None for name in names], dtype=torch.bool)
    sizes = torch.stack([track.size for track in tracks]) if tracks else torch.zeros(0, 3, dtype=torch.float64)
    speeds = _speeds(tracks, times)
    kept: list[int] = []

    def sweeps() -> Iterator[Sweep]:
        for i, file in enumerate(files):
            found = _read(file, by_token.get(file.sample), classes, problems)
            if progress is not None:
                progress()
            if found is None:
                continue
            kept.append(i)
            lidar2scene = global2scene @ file.lidar2global
            points = transform_points(lidar2scene, found[0].double()).float()
            owner = owners_of(points, found[1], everywhere[i], sizes, present[i], owners, speeds[i])
            yield Sweep(file.timestamp_us, lidar2scene[:3, 3], points, found[1], owner)

    placed = list(sweeps())
    cloud = SceneCloud.of(placed, len(tracks), [everywhere[i] for i in kept])
    for track, own in zip(tracks, cloud.objects, strict=True):
        if not len(own) and f"object {track.token}" not in problems:
            problems[f"object {track.token}"] = f"{track.name}: no return in its box in any sweep; it is left out"
    return Scene(cloud, [files[i] for i in kept], tracks, names, global2scene, taxonomy, problems)


def object_rules(taxonomy: Taxonomy) -> OwnerRules:
    """Boxes hold objects, and what moves leaves trails, in a table with nuScenes' class names."""
    things, movers = torch.zeros(256, dtype=torch.bool), torch.zeros(256, dtype=torch.bool)
    for label, name in enumerate(taxonomy.classes):
        still = name in ("manmade", "vegetation", *GROUND) or label == taxonomy.free
        things[label] = not still
        movers[label] = not still and name not in _FIXED
    return OwnerRules(things=things, movers=movers)


def _read(
    file: SweepFile, frame: Frame | None, classes: PointClasses, problems: dict[str, str]
) -> tuple[Tensor, Tensor] | None:
    """Points and labels of a sweep; None where it cannot be read."""
    if frame is not None:
        try:
            return classes(frame)
        except ValueError as error:
            reason = str(error)
    try:
        found = read_unlabelled(file.path, file.lidar2ego)
    except ValueError as error:
        said = str(error).removeprefix(f"{file.path}: ")
        problems[str(file.path)] = f"{said}; built without this sweep"
        return None
    if frame is not None:
        problems[str(file.path)] = f"{reason}; its returns take their neighbours' classes"
    return found


def _speeds(tracks: Sequence[Track], times: np.ndarray) -> Tensor:
    """Metres a second of every object at every sweep, float64 [S, K]."""
    columns = [
        np.interp(times - track.times_us[0], track.times_us - track.times_us[0], track.speeds()) for track in tracks
    ]
    return torch.from_numpy(np.stack(columns, 1)) if columns else torch.zeros(len(times), 0, dtype=torch.float64)
