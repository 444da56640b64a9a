"""Frames and labels of the data sets of scene completion, which are folders and not nuScenes tables or info pickles.

| labels         | data root                                          | splits                          |
|----------------|----------------------------------------------------|---------------------------------|
| semantic_kitti | ``[dataset/]sequences/XX``                         | train, val (08), test (11 - 21) |
| nyuv2          | ``[depthbin/]NYUtrain``, ``NYUtest``               | train, val and test are NYUtest |
| tartanair      | ``office/{Easy,Hard}/P00x`` and the voxels of them | train, val (P005)               |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.data.downsampling import downsample_labels
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.grids import NYUV2, SEMANTIC_KITTI, TARTANAIR, GridSpec, Preset
from syntheocc.occupancy.metrics import SSCIoU
from syntheocc.occupancy.perception.batch import FrameLabels

__all__ = ["TREES", "TreeLabels", "completion_metric", "tree_frames"]

TREES: dict[str, Preset] = {"semantic_kitti": SEMANTIC_KITTI, "nyuv2": NYUV2, "tartanair": TARTANAIR}


def tree_frames(
    kind: str,
    root: Path,
    split: str = "train",
    sequences: Sequence[str] = (),
    views: int = 2,
    voxels: Path | None = None,
) -> list[Frame]:
    """The frames of a data set, in order.

    Args:
        kind: one of `TREES`.
        root: of the data set.
        split: "train", "val" or "test", of which what is there.
        sequences: of SemanticKITTI, by name, instead of a split.
        views: 1 where the right pictures of SemanticKITTI are not needed.
        voxels: folder of TartanAir's exported voxels; empty: below `root`.

    Raises:
        ValueError: no such data set, split or sequence, or frames that are damaged as a whole (calibration, sizes).
    """
    if kind == "semantic_kitti":
        from syntheocc.occupancy.data.semantic_kitti_frames import completion_frames

        return completion_frames(root, tuple(sequences) or split, views)
    if sequences:
        raise ValueError(f"sequences {', '.join(sequences)}: only semantic_kitti has such; leave them out with {kind}")
    if kind == "nyuv2":
        from syntheocc.occupancy.data.nyuv2 import read_nyuv2_frames

        return read_nyuv2_frames(root, "train" if split == "train" else "test")
    if kind == "tartanair":
        from syntheocc.occupancy.data.tartanair_frames import read_tartanair_frames

        if split == "test":
            raise ValueError("tartanair has the splits train and val")
        return read_tartanair_frames(root, split, voxels)
    raise ValueError(f"there is no data set {kind!r} of scene completion; there are {', '.join(TREES)}")


@dataclass(frozen=True)
class TreeLabels:
    """Reads the ground truth of `tree_frames`: what `LabelReader` is for the formats of nuScenes.

    Args:
        kind: one of `TREES`.
        grid: of the model; its voxels may be several times as large as those of the labels.
        root: of the tree that holds the labels of SemanticKITTI; empty: where the pictures are.
        release: of SemanticKITTI's voxels, "detect" looks at the first frame of a sequence.
        optional: a frame without labels has no ground truth, instead of being an error.
    """

    kind: str
    grid: GridSpec
    root: Path | None = None
    release: str = "detect"
    optional: bool = False

    @property
    def preset(self) -> Preset:
        """Grid and class table of what is read."""
        return Preset(self.grid, TREES[self.kind].taxonomy)

    def scene(self, frame: Frame) -> str:
        """The frame's sequence or trajectory; empty for rooms."""
        return frame.scene or ""

    def __call__(self, frame: Frame) -> FrameLabels | None:
        """Read one frame's labels.

        Raises:
            ValueError: no file (unless `optional`), a damaged one, or voxels that the grid's are not made of.
        """
        path = self._path(frame)
        if self.optional and (path is None or not path.is_file()):
            return None
        labels = self._read(frame, path)
        factor = labels.shape[0] // self.grid.shape[0]
        found = labels if factor == 1 else downsample_labels(labels, factor, TREES[self.kind].taxonomy.free)
        if tuple(found.shape) != self.grid.shape:
            raise ValueError(
                f"{path}: {tuple(labels.shape)} voxels, which those of the grid {self.grid} are not made of"
            )
        return FrameLabels(torch.from_numpy(found))

    def grid2ego(self, frame: Frame) -> Tensor | None:
        """Where the frame's grid lies, [4, 4]; None for grids in the ego frame."""
        if self.kind == "nyuv2":
            from syntheocc.occupancy.data.nyuv2 import read_nyuv2_pose

            pose = torch.eye(4, dtype=torch.float64)
            pose[:3, 3] = read_nyuv2_pose(self._path(frame) or "")[0]
            return pose
        if self.kind == "tartanair":
            from syntheocc.occupancy.data.tartanair import grid2ego

            return grid2ego("rint")
        return frame.lidar2ego

    def _path(self, frame: Frame) -> Path | None:
        if self.kind == "semantic_kitti":
            from syntheocc.occupancy.data.semantic_kitti import semantic_kitti_path
            from syntheocc.occupancy.data.semantic_kitti_frames import sequences_folder

            folder = next(iter(frame.image_paths.values())).parent.parent
            base = folder.parent if self.root is None else sequences_folder(self.root)
            return semantic_kitti_path(base.parent, frame)
        return None if frame.occupancy_path is None else Path(frame.occupancy_path)

    def _read(self, frame: Frame, path: Path | None) -> Any:
        if path is None:
            raise ValueError(f"sample {frame.token}: has no labels; is it of a test split?")
        if self.kind == "semantic_kitti":
            from syntheocc.occupancy.data.semantic_kitti import read_semantic_kitti

            release = _release(path.parent.parent) if self.release == "detect" else self.release
            return read_semantic_kitti(path, release=release).labels.numpy()
        if self.kind == "nyuv2":
            from syntheocc.occupancy.data.nyuv2 import read_nyuv2

            return read_nyuv2(path).labels.numpy()
        from syntheocc.occupancy.data.tartanair_frames import read_voxels

        return read_voxels(frame).grid.labels.numpy()


def completion_metric(kind: str, grid: GridSpec) -> SSCIoU:
    """The metric of a data set on a grid: the official one of SemanticKITTI, MonoScene's of the others."""
    if kind == "semantic_kitti":
        official = SSCIoU.semantic_kitti()
        return SSCIoU(official.taxonomy, official.eps, ranges=official.ranges, spec=grid)
    return SSCIoU(TREES[kind].taxonomy)


@lru_cache(maxsize=64)
def _release(folder: Path) -> str:
    from syntheocc.occupancy.data.semantic_kitti_frames import sequence_release

    return sequence_release(folder)
