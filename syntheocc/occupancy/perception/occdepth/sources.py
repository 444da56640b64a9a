"""Where OccDepth's samples come from: what a data set must tell of a frame, and SemanticKITTI's answer.

A source knows the frames' cameras, targets at the model's two scales, and depth; `dataset.StereoFrames` makes samples
of it. NYUv2's and TartanAir's are in `indoor_sources`; `stereo_source` chooses.

Legend: X Y Z voxels of the model's grid, H W picture.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.cameras import Camera
from syntheocc.occupancy.data.downsampling import downsample_labels
from syntheocc.occupancy.data.frames import Frame, about
from syntheocc.occupancy.data.kitti import STEREO, read_depth, read_scan
from syntheocc.occupancy.data.semantic_kitti import read_semantic_kitti, read_voxel_bits, semantic_kitti_path
from syntheocc.occupancy.data.semantic_kitti_frames import sequence_release, sequences_folder
from syntheocc.occupancy.grids import SEMANTIC_KITTI, GridSpec
from syntheocc.occupancy.perception.depth_supervision import nearest_depths
from syntheocc.occupancy.perception.occdepth.config import OccDepthConfig
from syntheocc.occupancy.transforms import transform_points

__all__ = ["DEPTHS", "KittiSource", "StereoSource", "StereoTruth", "View", "coarser"]

# Whence depth comes: pictures of a stereo teacher (`utils/gen_depth.py`), the frame's lidar, or a depth camera.
Depth = Literal["stereo", "lidar", "sensor"]
DEPTHS = ("stereo", "lidar", "sensor")


class View(NamedTuple):
    """One camera of a frame."""

    name: str
    path: Path
    camera: Camera


class StereoTruth(NamedTuple):
    """Targets of one frame."""

    semantics: np.ndarray
    """uint8 [X, Y, Z], 255 unknown."""
    coarse: np.ndarray
    """uint8 of `OccDepthConfig.coarse_shape`."""
    occluded: np.ndarray | None = None
    """bool [X, Y, Z]."""


class StereoSource(ABC):
    """Frames of one data set and what is read of them.

    Args:
        frames: in any order.
        config: of the model: grid, scales, number of views, whether the second is a virtual one.
        depth: what `depths` reads, None for nothing.
        labels: False: there is no ground truth, or none is wanted.

    Raises:
        ValueError: no frame or a frame twice, a grid that the data set's voxels do not add up to, or a kind of depth
            that it has not.
    """

    spec: GridSpec
    """Of the data set's labels."""
    kinds: tuple[str, ...] = DEPTHS
    """Of depth, that it has."""

    def __init__(
        self, frames: Sequence[Frame], config: OccDepthConfig, depth: Depth | None = None, labels: bool = True
    ):
        if not frames:
            raise ValueError("no frames to make samples of")
        tokens = [frame.token for frame in frames]
        if len(set(tokens)) < len(tokens):
            twice = next(token for token in tokens if tokens.count(token) > 1)
            raise ValueError(f"sample {twice} is there twice; list each sequence or folder once")
        if depth is not None and depth not in self.kinds:
            raise ValueError(f"depth is one of {', '.join(self.kinds)} for {config.dataset}; got {depth!r}")
        self.frames, self.config, self.depth_kind, self.labels = list(frames), config, depth, labels
        self.factor = coarser(self.spec, config.grid)

    @abstractmethod
    def views(self, frame: Frame) -> list[View]:
        """The cameras with pictures, the left one first: as many as the model has, 1 beside a virtual one."""

    @abstractmethod
    def truth(self, frame: Frame) -> StereoTruth:
        """Targets; ValueError naming the file that is missing or damaged."""

    @abstractmethod
    def depths(self, frame: Frame) -> list[np.ndarray]:
        """Depth pictures float32 [H, W], metres, 0 none: of the left view or of all; ValueError naming the file."""

    def origin(self, frame: Frame) -> Tensor:
        """The grid's lower corner in the grid's frame, float64 [3] metres."""
        return torch.tensor(self.config.grid.lower, dtype=torch.float64)

    def grid2ego(self, frame: Frame) -> Tensor:
        """From the grid's frame to the one the cameras are in, float64 [4, 4]."""
        return torch.eye(4, dtype=torch.float64)

    def semantics(self, frame: Frame) -> Tensor:
        """The labels alone, on the model's grid: uint8 [X, Y, Z], 255 unknown."""
        return torch.from_numpy(self.truth(frame).semantics)

    def _stereo(self, frame: Frame, names: Sequence[str]) -> list[View]:
        views: list[View] = []
        for name in names[: 1 if self.config.virtual_view else self.config.num_views]:
            path = frame.image_paths.get(name)
            if path is None or name not in frame.cameras:
                raise ValueError(
                    f"sample {frame.token}: has no camera {name}; give one that has, or a model of one view"
                )
            if not path.is_file():
                raise ValueError(
                    f"{path}: no such picture; unpack the data set's part with it"
                    + (", or take a model of one view" if views else "")
                )
            views.append(View(name, path, frame.cameras[name]))
        return views

    def _scaled(self, labels: np.ndarray, occluded: np.ndarray | None = None) -> StereoTruth:
        """Targets of labels of the data set's own size; its free class is the model's."""
        free, factor = self.config.taxonomy.free, self.factor
        coarse = downsample_labels(labels, factor * self.config.coarse_factor, free)
        if factor > 1:
            labels = downsample_labels(labels, factor, free)
            if occluded is not None:
                x, y, z = self.config.grid.shape
                occluded = occluded.reshape(x, factor, y, factor, z, factor).mean((1, 3, 5)) > 0.5
        return StereoTruth(labels, coarse, occluded)


class KittiSource(StereoSource):
    """SemanticKITTI's trees, real or procedural, and any stereo pair in the velodyne's frame.

    Args:
        frames: of `semantic_kitti_frames.completion_frames`, `kitti.read_sequence` or `stereo_pairs`.
        config, depth, labels: see `StereoSource`.
        release: of the voxels; "detect" looks at the first frame of each sequence, and warns of an old release.
        labels_root: of the tree that holds `voxels/`; where the pictures are unless given.
        depth_root: of the tree that holds `depth/`, as `utils/gen_depth.py` writes it; where the pictures are unless
            given.
    """

    spec = SEMANTIC_KITTI.spec
    kinds = ("stereo", "lidar")

    def __init__(
        self,
        frames: Sequence[Frame],
        config: OccDepthConfig,
        depth: Depth | None = None,
        labels: bool = True,
        release: str = "detect",
        labels_root: str | os.PathLike | None = None,
        depth_root: str | os.PathLike | None = None,
    ):
        super().__init__(frames, config, depth, labels)
        self.labels_folder = None if labels_root is None else sequences_folder(labels_root)
        self.depth_folder = None if depth_root is None else sequences_folder(depth_root)
        self.releases: dict[Path, str] = {}
        if labels:
            for folder in dict.fromkeys(self.voxels(frame).parent.parent for frame in self.frames):
                self.releases[folder] = sequence_release(folder) if release == "detect" else release

    def voxels(self, frame: Frame) -> Path:
        """The frame's `.label`, whether it is there or not."""
        return semantic_kitti_path(self._folder(frame, self.labels_folder).parent.parent, frame)

    def views(self, frame: Frame) -> list[View]:  # noqa: D102 - of the base
        return self._stereo(frame, tuple(STEREO))

    def truth(self, frame: Frame) -> StereoTruth:  # noqa: D102
        path = self.voxels(frame)
        release = self.releases.get(path.parent.parent, "current")
        labels = read_semantic_kitti(path, release=release).labels.numpy()
        occluded = None
        if self.config.occluded_head:
            occluded = read_voxel_bits(path.with_suffix(".occluded"), release).numpy()
        return self._scaled(labels, occluded)

    def depths(self, frame: Frame) -> list[np.ndarray]:  # noqa: D102
        views = self.views(frame)
        if self.depth_kind == "lidar":
            return [self._scan_depth(frame, view.camera) for view in views]
        path = frame.extras.get("depth")
        if path is None or self.depth_folder is not None:
            path = self._folder(frame, self.depth_folder) / "depth" / f"{frame.extras['frame']}.png"
        if not path.is_file():
            raise ValueError(f"{path}: no such depth picture; make them with `python utils/gen_depth.py`")
        depth = read_depth(path)
        size = (views[0].camera.height, views[0].camera.width)
        if depth.shape != size:
            raise ValueError(
                f"{path}: depth of {depth.shape[0]} x {depth.shape[1]} pixels, the picture has {size[0]} x {size[1]}; "
                "is it of another sequence?"
            )
        return [depth]

    def _folder(self, frame: Frame, folder: Path | None) -> Path:
        """A sequence's folder, in a tree of its own or where the pictures are."""
        if not frame.scene or "frame" not in frame.extras:
            raise ValueError(f"sample {frame.token}: is no frame of a KITTI sequence")
        if folder is not None:
            return folder / frame.scene
        return next(iter(frame.image_paths.values())).parent.parent

    def _scan_depth(self, frame: Frame, camera: Camera) -> np.ndarray:
        if frame.lidar_path is None:
            raise ValueError(f"sample {frame.token}: has no lidar scan to take depths of")
        points = torch.from_numpy(read_scan(frame.lidar_path)[:, :3]).double()
        with about(str(frame.lidar_path)):
            inside = transform_points(camera.ego2cam, points)
            pixels, z = camera.project(inside[inside[:, 2] > 0])
            first = torch.zeros(len(z), dtype=torch.int64)
            depth = nearest_depths(pixels, z, first, 1, (camera.height, camera.width), stride=1)[0]
        return torch.where(torch.isfinite(depth), depth, 0.0).float().numpy()


def coarser(labels: GridSpec, grid: GridSpec) -> int:
    """How many of the labels' voxels make an edge of the model's; ValueError where the grids do not lie alike."""
    factor = round(grid.voxel_size[0] / labels.voxel_size[0])
    alike = factor >= 1 and np.allclose(np.array(labels.voxel_size) * factor, grid.voxel_size)
    if not alike or tuple(n * factor for n in grid.shape) != labels.shape or not np.allclose(grid.lower, labels.lower):
        raise ValueError(
            f"the model's grid {grid} is not the labels' {labels} in larger voxels; choose another preset"
        )
    return factor
