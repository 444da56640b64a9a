"""Ground truth of a frame for training and evaluation, from any label format that `occupancy.data` reads."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from syntheocc.occupancy.data.frames import Boxes, Frame
from syntheocc.occupancy.data.occ3d import Occ3DLabels, read_occ3d
from syntheocc.occupancy.data.occupancy_files import OCCUPANCY_KINDS, occupancy_path, preset_of, read_occupancy
from syntheocc.occupancy.grids import OccupancyGrid, Preset
from syntheocc.occupancy.perception.batch import FrameLabels
from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["LabelReader"]

# Kinds whose files hold masks of what was observed, and instances in their panoptic copies.
_NPZ = ("occ3d", "openocc_v2")


@dataclass(frozen=True)
class LabelReader:
    """Reads labels below one folder: the `labels` of an `OccupancyFrames`.

    Args:
        root: the labels' folder, e.g. Occ3D's `gts`.
        kind: the format, one of `OCCUPANCY_KINDS`.
        instances: whence object ids come: "file" (a panoptic copy's array), "boxes" (`rule` makes them of the frame's
            boxes), or None for none.
        rule: (grid, boxes) -> integer [X, Y, Z], 0 none.
        mask: voxels that this sensor did not observe become unknown (255): no loss is asked about them.
        optional: a frame without a label file has no ground truth, instead of being an error.

    Raises:
        ValueError: an unknown kind, boxes without a rule, or masks or file instances of a format that has none.
    """

    root: str | os.PathLike
    kind: str = "occ3d"
    instances: Literal["file", "boxes"] | None = None
    rule: Callable[[OccupancyGrid, Boxes], Tensor] | None = None
    mask: Literal["camera", "lidar"] | None = None
    optional: bool = False

    def __post_init__(self):
        if self.kind not in OCCUPANCY_KINDS:
            raise ValueError(f"unknown occupancy kind {self.kind!r}; known: {', '.join(OCCUPANCY_KINDS)}")
        if self.instances == "boxes" and self.rule is None:
            raise ValueError("instances='boxes' needs a rule that gives voxels to boxes")
        if self.kind not in _NPZ and (self.mask is not None or self.instances == "file"):
            raise ValueError(
                f"{self.kind} files hold neither masks nor instances; {' and '.join(_NPZ)} files do: take no mask "
                "(--label_mask none in training, --mask none in an evaluation), and instances from boxes"
            )

    @property
    def preset(self) -> Preset:
        """Grid and class table of the labels."""
        return preset_of(self.kind)

    def path(self, frame: Frame) -> Path:
        """The frame's label file, whether it is there or not."""
        if self.kind in _NPZ and not frame.scene:
            # The published infos do not name their scenes; the folders do.
            return _by_token(str(self.root)).get(frame.token, Path(self.root) / "*" / frame.token / "labels.npz")
        return occupancy_path(self.root, frame, self.kind)

    def scene(self, frame: Frame) -> str:
        """The frame's scene: its name, its token, or for sources that know neither its folder's; else empty."""
        name = frame.scene or str(frame.extras.get("scene_token") or "")
        return name or (self.path(frame).parent.parent.name if self.kind in _NPZ else "")

    def __call__(self, frame: Frame) -> FrameLabels | None:
        """Read one frame's labels.

        Raises:
            ValueError: no file (unless `optional`), a damaged one, or one without the mask or instances asked for.
        """
        path = self.path(frame)
        if self.optional and not path.is_file():
            return None
        if self.kind in _NPZ:
            labels = read_occ3d(path, self.preset)
        else:
            labels = Occ3DLabels(read_occupancy(path, self.kind, frame.lidar2ego))
        semantics, instances = labels.grid.labels, None
        if self.mask is not None:
            observed = labels.mask_camera if self.mask == "camera" else labels.mask_lidar
            if observed is None:
                raise ValueError(f"{path}: has no mask_{self.mask}; leave mask out to learn from all voxels")
            semantics = torch.where(observed, semantics, UNKNOWN).to(torch.uint8)
        if self.instances == "file":
            if labels.instances is None:
                raise ValueError(f"{path}: has no instances; give the panoptic copy, or take them from boxes")
            instances = labels.instances
        elif self.rule is not None and self.instances == "boxes":
            if frame.boxes is None:
                raise ValueError(f"sample {frame.token}: has no boxes to make instances of; infos of a test split?")
            instances = self.rule(labels.grid, frame.boxes)
        return FrameLabels(semantics, instances)


@lru_cache(maxsize=8)
def _by_token(root: str) -> dict[str, Path]:
    """Sample token -> label file, of all `<scene>/<token>/` below a folder."""
    scenes = sorted(path for path in Path(root).iterdir() if path.is_dir()) if Path(root).is_dir() else []
    return {entry.name: Path(entry.path) / "labels.npz" for scene in scenes for entry in os.scandir(scene)}
