"""Where the samples of training, prediction and evaluation come from: settings as flags, and what they lead to."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from syntheocc.engine.flags import flag
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.infos import read_infos
from syntheocc.occupancy.data.nuscenes_frames import read_nuscenes
from syntheocc.occupancy.perception.dataset import OccupancyFrames, Sampling
from syntheocc.occupancy.perception.labels import LabelReader
from syntheocc.occupancy.perception.sparseocc.config import SparseOccConfig
from syntheocc.occupancy.perception.transforms import ImageAugmentation

__all__ = ["SourceConfig", "make_dataset", "model_config_for"]


@dataclass(kw_only=True)
class SourceConfig:
    """Frames and their labels; the settings that training, prediction and evaluation share."""

    dataroot: Path = flag(Path("data/nuscenes"), "data root: the folder that holds samples/")
    info_path: tuple[str, ...] = flag((), "info pickles; empty: all frames of the JSON tables below --dataroot")
    labels: Literal["occ3d", "openocc_v2", "surroundocc", "openoccupancy"] = flag("occ3d", "format of the labels")
    labels_root: Path | None = flag(None, "folder of the labels; empty: gts below --dataroot")
    max_samples: int | None = flag(None, "use the first so many frames only")

    def check_source(self) -> None:
        """Paths given as text become paths; ValueError for a number of frames below one."""
        self.dataroot = Path(self.dataroot)
        self.labels_root = None if self.labels_root is None else Path(self.labels_root)
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"max_samples is {self.max_samples}; it must be 1 or more")

    def frames(self, everything: bool = False) -> list[Frame]:
        """The key frames.

        Args:
            everything: without the limit of `max_samples`.

        Raises:
            ValueError: a pickle or a table is missing or damaged, or lists no frame.
        """
        if self.info_path:
            frames = [frame for path in self.info_path for frame in read_infos(path, self.dataroot)]
        else:
            frames = read_nuscenes(self.dataroot)
        if not frames:
            raise ValueError(f"{', '.join(self.info_path) or self.dataroot}: no frames")
        return frames if everything else frames[: self.max_samples]

    def reader(self, **settings: Any) -> LabelReader:
        """The reader of the labels; `settings` are `LabelReader`'s (instances, mask, ...)."""
        return LabelReader(self.labels_root or self.dataroot / "gts", self.labels, **settings)


def model_config_for(model: SparseOccConfig, labels: LabelReader, frames: int | None) -> SparseOccConfig:
    """A preset's model on the labels' grid and classes.

    Args:
        model: the preset's.
        labels: whose grid and class table the model gets.
        frames: number of frames, the current one included; None: the preset's.

    Raises:
        ValueError: the preset's class frequencies belong to another class table.
    """
    from syntheocc.occupancy.perception.sparseocc.presets import class_frequencies, thing_classes

    grid, taxonomy = labels.preset
    changes: dict[str, Any] = {"grid": grid}
    if taxonomy != model.taxonomy:
        changes["taxonomy"] = taxonomy
        if model.class_frequencies is not None:
            changes["class_frequencies"] = class_frequencies(taxonomy)
        if model.panoptic:
            changes["instance_classes"] = thing_classes(taxonomy)
    if frames is not None:
        changes["num_frames"] = frames
    return replace(model, **changes)


def make_dataset(
    frames: list[Frame],
    model: SparseOccConfig,
    labels: LabelReader | None,
    *,
    training: bool,
    flip_images: bool = False,
    turn_grid: bool = False,
    data_root: Path | None = None,
    seed: int = 0,
    rounds: int = 1,
    unreadable: Callable[[str, str], Any] | None = None,
) -> OccupancyFrames:
    """Samples as a model wants them.

    Args:
        frames: key frames.
        model: gives the number of frames, the images' size and the grid.
        labels: reads the ground truth; None: without.
        training: augmented samples, in `rounds` different rounds.
        flip_images: mirror half of the training samples' images.
        turn_grid: mirror and turn the grid in training.
        data_root: for sweeps whose paths were written elsewhere.
        seed: of the draws.
        rounds: how many different samples there are of a frame.
        unreadable: see `OccupancyFrames`.
    """
    height, width = model.image_size
    sampling = Sampling(
        num_frames=model.num_frames,
        image=ImageAugmentation(height=height, width=width, flip=flip_images),
        training=training,
        grid_turns=turn_grid,
    )
    return OccupancyFrames(
        frames, sampling, model.grid, labels, data_root=data_root, seed=seed, rounds=rounds, unreadable=unreadable
    )
