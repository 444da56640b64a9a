"""NYUv2's and SemanticTartanAir's samples for OccDepth (specs/occdepth.md 1.7, 1.8), and the choice of a source."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from syntheocc.occupancy.data import nyuv2, tartanair
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.tartanair_frames import STEREO, read_voxels
from syntheocc.occupancy.grids import NYUV2, TARTANAIR
from syntheocc.occupancy.perception.occdepth.config import OccDepthConfig
from syntheocc.occupancy.perception.occdepth.sources import Depth, KittiSource, StereoSource, StereoTruth, View

__all__ = ["NyuSource", "TartanAirSource", "stereo_source"]


class NyuSource(StereoSource):
    """Rooms of NYUv2: one picture, Kinect's depth, and a grid with an origin of its own in each file.

    Args:
        frames: of `nyuv2.read_nyuv2_frames`.
        config, depth, labels: see `StereoSource`; a config with a virtual view needs depth "sensor", also in tests.
    """

    spec = NYUV2.spec
    kinds = ("sensor",)

    def views(self, frame: Frame) -> list[View]:  # noqa: D102 - of the base
        if self.config.num_views == 2 and not self.config.virtual_view:
            raise ValueError("NYUv2 has one camera; a model of two views needs virtual_view")
        return self._stereo(frame, (nyuv2.CAMERA_NAME,))

    def origin(self, frame: Frame) -> Tensor:  # noqa: D102
        return nyuv2.read_nyuv2_pose(self._path(frame))[0]

    def truth(self, frame: Frame) -> StereoTruth:  # noqa: D102
        return StereoTruth(*nyuv2.read_nyuv2_targets(self._path(frame)))

    def depths(self, frame: Frame) -> list[np.ndarray]:  # noqa: D102
        path = frame.extras.get("depth") or self._path(frame).with_suffix(".png")
        depth = nyuv2.read_depth(path)
        if depth.shape != nyuv2.IMAGE_SIZE:
            raise ValueError(f"{path}: depth of {depth.shape[0]} x {depth.shape[1]} pixels; Kinect's has 480 x 640")
        return [depth]

    def _path(self, frame: Frame) -> Path:
        if frame.occupancy_path is None:
            raise ValueError(f"sample {frame.token}: has no .bin, which says where its grid lies")
        return Path(frame.occupancy_path)


class TartanAirSource(StereoSource):
    """SemanticTartanAir's office: stereo pairs, exact depth, and voxels of the visible surface.

    Args:
        frames: of `tartanair_frames.read_tartanair_frames`.
        config, depth, labels: see `StereoSource`.
        index_rule: of the voxels, see `tartanair.export_voxels`; the grid is shifted accordingly, where the published
            loader looked half a voxel beside.
    """

    spec = TARTANAIR.spec
    kinds = ("sensor",)

    def __init__(
        self,
        frames: Sequence[Frame],
        config: OccDepthConfig,
        depth: Depth | None = None,
        labels: bool = True,
        index_rule: str = "rint",
    ):
        super().__init__(frames, config, depth, labels)
        self._grid2ego = tartanair.grid2ego(index_rule)
        self.index_rule = index_rule

    def views(self, frame: Frame) -> list[View]:  # noqa: D102 - of the base
        return self._stereo(frame, STEREO)

    def grid2ego(self, frame: Frame) -> Tensor:  # noqa: D102
        return self._grid2ego

    def truth(self, frame: Frame) -> StereoTruth:  # noqa: D102
        return self._scaled(read_voxels(frame, self.index_rule).grid.labels.numpy())

    def depths(self, frame: Frame) -> list[np.ndarray]:  # noqa: D102
        path = frame.extras["depth"]
        depth = tartanair.read_depth(path)
        if depth.shape != tartanair.IMAGE_SIZE:
            raise ValueError(f"{path}: depth of {depth.shape[0]} x {depth.shape[1]} pixels; TartanAir's has 480 x 640")
        return [np.where(np.isfinite(depth), depth, 0.0)]


def stereo_source(
    config: OccDepthConfig, frames: Sequence[Frame], depth: Depth | None = None, labels: bool = True, **more: Any
) -> StereoSource:
    """The source of a model's data set.

    Args:
        config: of the model.
        frames: of the data set.
        depth: whence depth comes: "stereo", "lidar" (KITTI), "sensor" (NYUv2, TartanAir), or None.
        labels: whether there is ground truth to read.
        more: `release`, `labels_root`, `depth_root` (KITTI), `index_rule` (TartanAir).
    """
    sources = {"semantic_kitti": KittiSource, "nyuv2": NyuSource, "tartanair": TartanAirSource}
    return sources[config.dataset](frames, config, depth, labels, **more)
