"""One key frame and its boxes: what every reader gives and every writer takes.

Legend: N boxes, P points. Frames of reference as in `syntheocc.occupancy`: `ego` is x forward, y left, z up at the key
frame's lidar time. A transform is a float64 [4, 4] tensor named `a2b`, column vectors.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.cameras import NUSCENES_CAMERAS, CameraRig
from syntheocc.occupancy.transforms import invert_rigid, rigid_transform, transform_points

__all__ = ["DETECTION_CLASSES", "Boxes", "Frame", "about", "ordered_cameras", "plain_name"]

# The ten classes of the nuScenes detection task, in the order of mmdetection3d's infos (`bbox_label`).
DETECTION_CLASSES = (
    "car truck trailer bus construction_vehicle bicycle motorcycle pedestrian traffic_cone barrier"
).split()


@dataclass(frozen=True, eq=False)
class Boxes:
    """Oriented 3D boxes of one frame, in ego coordinates.

    Args:
        box2ego: float64 [N, 4, 4]; the origin is the box's centre, x runs forward along its length, z up.
        sizes: float64 [N, 3] metres: length (x), width (y), height (z).
        names: N class names: a detection class, or the dataset's own category where it has no detection class.
        velocities: float64 [N, 2] m/s along ego x and y; NaN where unknown. Left out: all NaN.
        num_lidar_points: int64 [N] points inside, -1 unknown. Left out: all -1.
        instance_tokens: N tokens that name an object over time, "" unknown. Left out: all "".
        num_radar_points: int64 [N] radar returns inside, -1 unknown. Left out: all -1.
        attributes: N nuScenes attribute names ("vehicle.parked"), "" none or unknown. Left out: all "".

    Raises:
        ValueError: lengths differ, a pose is not rigid, or a size is not positive and finite.
    """

    box2ego: Tensor
    sizes: Tensor
    names: tuple[str, ...]
    velocities: Any = None
    num_lidar_points: Any = None
    instance_tokens: Any = None
    num_radar_points: Any = None
    attributes: Any = None

    def __post_init__(self):
        num = len(self.names)
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("names", tuple(str(name) for name in self.names))
        put("box2ego", torch.as_tensor(self.box2ego, dtype=torch.float64).reshape(-1, 4, 4))
        put("sizes", torch.as_tensor(self.sizes, dtype=torch.float64).reshape(-1, 3))
        if self.velocities is None:
            put("velocities", torch.full((num, 2), torch.nan, dtype=torch.float64))
        if self.num_lidar_points is None:
            put("num_lidar_points", torch.full((num,), -1))
        put("velocities", torch.as_tensor(self.velocities, dtype=torch.float64).reshape(-1, 2))
        put("num_lidar_points", torch.as_tensor(self.num_lidar_points, dtype=torch.int64).reshape(-1))
        put("instance_tokens", ("",) * num if self.instance_tokens is None else tuple(self.instance_tokens))
        if self.num_radar_points is None:
            put("num_radar_points", torch.full((num,), -1))
        put("num_radar_points", torch.as_tensor(self.num_radar_points, dtype=torch.int64).reshape(-1))
        put("attributes", ("",) * num if self.attributes is None else tuple(self.attributes))
        for name in (
            "box2ego",
            "sizes",
            "velocities",
            "num_lidar_points",
            "instance_tokens",
            "num_radar_points",
            "attributes",
        ):
            if len(getattr(self, name)) != num:
                raise ValueError(f"boxes: {num} names but {len(getattr(self, name))} {name}; give one each")
        bad = ~(torch.isfinite(self.sizes) & (self.sizes > 0)).all(-1)
        if bool(bad.any()):
            i = int(bad.nonzero()[0])
            raise ValueError(f"box {i} ({self.names[i]}) has size {self.sizes[i].tolist()}; sizes are positive metres")
        rotation = self.box2ego[:, :3, :3]
        off = (rotation @ rotation.transpose(-1, -2) - torch.eye(3, dtype=torch.float64)).abs().amax((-1, -2))
        # The determinant; torch.linalg.det takes milliseconds for a frame's boxes.
        turned = (torch.linalg.cross(rotation[:, 0], rotation[:, 1], dim=-1) * rotation[:, 2]).sum(-1)
        # `not <` also catches NaN.
        bad = ~(off < 1e-3) | ~torch.isfinite(self.box2ego[:, :3, 3]).all(-1) | (turned < 0)
        if bool(bad.any()):
            i = int(bad.nonzero()[0])
            raise ValueError(f"box {i} ({self.names[i]}) has a pose that is not rigid: {self.box2ego[i].tolist()}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def centers(self) -> Tensor:
        """Centres float64 [N, 3] in ego, metres."""
        return self.box2ego[:, :3, 3]

    @property
    def yaws(self) -> Tensor:
        """Heading about ego z, radians [N]; 0 looks along ego x."""
        return torch.atan2(self.box2ego[:, 1, 0], self.box2ego[:, 0, 0])

    def corners(self) -> Tensor:
        """The eight corners float64 [N, 8, 3] in ego, metres: x slowest, z fastest, minus before plus."""
        signs = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * 3)
        return transform_points(self.box2ego, signs[None] * self.sizes[:, None])

    def contains(self, points: Tensor, margin: float = 0.0) -> Tensor:
        """Which points lie in which box.

        Args:
            points: [P, 3] metres in ego.
            margin: metres added on every side.

        Returns:
            bool [N, P]; the faces belong to the box.
        """
        inside = torch.zeros(len(self), len(points), dtype=torch.bool)
        # numpy: hundreds of small steps, each of which torch's threads would have to start and meet again.
        columns = np.ascontiguousarray(points.to(torch.float64).numpy().T)
        ego2box, centers, half = (
            invert_rigid(self.box2ego).numpy(),
            self.centers.numpy(),
            self.sizes.numpy() / 2 + margin,
        )
        for i in range(len(self)):
            # A box holds a tiny share of a sweep: cutting a slab out first spares the full transform of the rest.
            radius = np.linalg.norm(half[i]) + 1e-9
            near = np.flatnonzero(np.abs(columns[0] - centers[i, 0]) <= radius)
            near = near[np.abs(columns[1, near] - centers[i, 1]) <= radius]
            local = ego2box[i, :3, :3] @ columns[:, near] + ego2box[i, :3, 3:]
            inside[i, near] = torch.from_numpy((np.abs(local) <= half[i, :, None] + 1e-9).all(0))
        return inside

    def filter(self, keep: Tensor | Iterable[int] | Callable[[str], bool]) -> "Boxes":
        """The boxes chosen by a bool mask [N], by indices, or by a rule on the name."""
        if callable(keep):
            keep = torch.tensor([bool(keep(name)) for name in self.names], dtype=torch.bool)
        index = torch.as_tensor(keep if isinstance(keep, Tensor) else list(keep))
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()
        chosen = index.tolist()
        return Boxes(
            self.box2ego[index],
            self.sizes[index],
            tuple(self.names[i] for i in chosen),
            self.velocities[index],
            self.num_lidar_points[index],
            tuple(self.instance_tokens[i] for i in chosen),
            self.num_radar_points[index],
            tuple(self.attributes[i] for i in chosen),
        )


@dataclass(frozen=True, eq=False)
class Frame:
    """One key frame: cameras, where its files lie, poses and what is known about the scene.

    Args:
        token: the sample's token.
        scene: the scene's name, "" unknown.
        timestamp_us: lidar time, microseconds.
        cameras: the rig; every `cam2ego` ends in ego at the lidar's time, whenever that camera fired.
        image_paths: camera name to picture; cameras without a picture are left out.
        lidar_path: the key sweep, None unknown.
        lidar2ego, ego2global: [4, 4] (ego2global at the lidar's time), None unknown.
        boxes: None where the source has no annotations (no objects is `Boxes` of length 0).
        caption: a sentence about the scene, None unknown.
        prev, next: tokens of the neighbouring key frames, None at the ends or unknown.
        occupancy_path: the frame's label file, where the source names one.
        extras: what only this source has (its style, scene token, sweeps, ...).

    Raises:
        ValueError: a picture for a camera the rig lacks, a pose that is not rigid, or a token, scene or camera that is
            no plain name (outputs are named after them, and `../x` would leave the folder that the user gave).
    """

    token: str
    scene: str
    timestamp_us: int
    cameras: CameraRig
    image_paths: Mapping[str, Path] = field(default_factory=dict)
    lidar_path: Path | None = None
    lidar2ego: Tensor | None = None
    ego2global: Tensor | None = None
    boxes: Boxes | None = None
    caption: str | None = None
    prev: str | None = None
    next: str | None = None
    occupancy_path: Path | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        plain_name(self.token, "the token")
        plain_name(self.scene, f"sample {self.token}: the scene")
        for name in self.cameras.names:
            plain_name(name, f"sample {self.token}: the camera")
        for name in ("lidar2ego", "ego2global"):
            if getattr(self, name) is not None:
                pose = rigid_transform(getattr(self, name), f"{name} of sample {self.token}")
                object.__setattr__(self, name, pose)
        unknown = [name for name in self.image_paths if name not in self.cameras.names]
        if unknown:
            raise ValueError(f"sample {self.token}: pictures of {unknown}, but the rig has {self.cameras.names}")
        object.__setattr__(self, "image_paths", {name: Path(path) for name, path in self.image_paths.items()})

    @property
    def lidar_origin(self) -> Tensor | None:
        """Where the lidar stands in ego, float64 [3] metres."""
        return None if self.lidar2ego is None else self.lidar2ego[:3, 3]

    def missing_files(self) -> list[Path]:
        """Pictures and sweep that the frame names and that do not exist."""
        paths = [*self.image_paths.values(), *([self.lidar_path] if self.lidar_path else [])]
        return [path for path in paths if not path.is_file()]

    def check_files(self, images: bool = True, lidar: bool = True) -> None:
        """Make sure that every camera has a picture that exists, and that the sweep exists.

        Raises:
            ValueError: names each missing file, where it was looked for, and the remedy.
        """
        searched = self.extras.get("searched", {})
        problems = []
        for name in self.cameras.names if images else ():
            if name not in self.image_paths:
                problems.append(f"{name} has no picture")
            elif not self.image_paths[name].is_file():
                problems.append(_not_found(name, self.image_paths[name], searched.get(name)))
        if lidar and self.lidar_path is not None and not self.lidar_path.is_file():
            problems.append(_not_found("lidar", self.lidar_path, searched.get("lidar")))
        if problems:
            raise ValueError(
                f"sample {self.token}: {'; '.join(problems)}. Give the folder that holds samples/ as data root or "
                "copy the missing files there"
            )

    def select_cameras(self, names: Iterable[str]) -> "Frame":
        """The frame with only these cameras, in this order."""
        names = list(names)
        paths = {name: self.image_paths[name] for name in names if name in self.image_paths}
        return replace(self, cameras=self.cameras.select(names), image_paths=paths)


def ordered_cameras(names: Iterable[str]) -> list[str]:
    """The six nuScenes cameras in `NUSCENES_CAMERAS` order, then any others as they come."""
    names = list(names)
    return [name for name in NUSCENES_CAMERAS if name in names] + [n for n in names if n not in NUSCENES_CAMERAS]


@contextmanager
def about(what: str, token: str = "", unreadable: dict[str, str] | None = None) -> Iterator[None]:
    """Put what they are about (a file, a sample, a camera) before the ValueErrors of a block.

    With `unreadable` the message is kept there under `token`, and nothing is raised.
    """
    try:
        yield
    except ValueError as error:
        if unreadable is None:
            raise ValueError(f"{what}: {error}") from error
        unreadable[token] = f"{what}: {error}"


def plain_name(name: str, what: str) -> str:
    """The name, which can be a file's or a folder's; ValueError for one that leads elsewhere (`../x`, `/x`)."""
    if name in (".", "..") or any(character in name for character in "/\\\0"):
        raise ValueError(f"{what} {name!r} is no plain name: files are named after it; rename it in its source")
    return name


def _not_found(what: str, path: Path, candidates: Iterable[Path] | None) -> str:
    looked = ", ".join(str(candidate) for candidate in candidates or [path])
    return f"{what} {path.name} was not found (looked at {looked})"
