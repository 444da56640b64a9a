"""The samples of a job: where the key frames come from, and where the labels and MPI files of each one lie.

`gen_mtp.py`, `infer.py` and `train.py` share these settings, so that what one wrote the others find.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from syntheocc.engine.flags import flag

if TYPE_CHECKING:
    from syntheocc.occupancy import OccupancyGrid
    from syntheocc.occupancy.data.frames import Frame

# "lidar" builds the grid from the sweep and the boxes; the others are label formats (occupancy.data.occupancy_files).
OccupancyKind = Literal[
    "syntheocc",
    "syntheocc_coarse",
    "surroundocc",
    "surroundocc_fine",
    "openoccupancy",
    "occ3d",
    "openocc_v2",
    "lidar",
]
# How the formats' own instructions lay them out, from the data root (openoccupancy: beside nuScenes).
_USUAL_ROOTS = {
    "syntheocc": ".",
    "syntheocc_coarse": ".",
    "surroundocc": "../nuscenes_occ",
    "surroundocc_fine": "../nuscenes_occ",
    "openoccupancy": "../nuScenes-Occupancy",
    "occ3d": "gts",
    "openocc_v2": "openocc_v2",
}
# Where they lie in a data root that holds everything itself, as `syntheocc world` writes it.
LABEL_FOLDERS = {kind: Path(usual).name or "." for kind, usual in _USUAL_ROOTS.items()}
MPI_SETTINGS_FILE = "mpi_settings.json"
# What folders of MPI files were made with that have no such file: the original script's.
RELEASED_MPI_SETTINGS = {"height": 56, "width": 100, "pixel_origin": "corner"}


def usual_label_root(dataroot: Path, kind: OccupancyKind) -> Path:
    """Where the label files of a format begin, as its own instructions lay them out from the data root."""
    # `syntheocc world` and generated data sets keep everything below the data root, perhaps beside real labels.
    within = Path(dataroot) / LABEL_FOLDERS[kind]
    return within if within.is_dir() else Path(dataroot) / _USUAL_ROOTS[kind]


@dataclass(kw_only=True)
class SampleConfig:
    """Where the samples are."""

    dataroot_path: Path = flag(Path("./data/nuscenes"), "data root, the folder that holds samples/")
    info_path: tuple[str, ...] = flag(
        (),
        "info pickles of any style, or folders of nuScenes' JSON tables, one or more; by default "
        "<dataroot>/nuscenes_occ_infos_<train|val>.pkl",
    )
    gen_train_or_val: Literal["train", "val", "trainval"] = flag(
        "val", "which of the default info pickles", env="$TRAIN_OR_VAL", aliases=("split",)
    )
    mtp_path: str = flag("samples_syntheocc_surocc", "folder of the MPI files, below the data root", env="$DATA_USED")
    occ_path: Path | None = flag(None, "root of the label files; by default where the format's instructions put them")
    max_samples: int | None = flag(None, "stop after this many samples")

    def __post_init__(self):
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"max_samples must be at least 1, got {self.max_samples}")

    def info_paths(self) -> list[Path]:
        """The info pickles and table folders to read.

        Raises:
            ValueError: one does not exist; the message says what to give instead.
        """
        if not Path(self.dataroot_path).is_dir():
            raise ValueError(
                f"data root {self.dataroot_path} is not a folder; give the folder that holds samples/ as "
                "--dataroot_path"
            )
        splits = ("train", "val") if self.gen_train_or_val == "trainval" else (self.gen_train_or_val,)
        paths = [Path(path) for path in self.info_path] or [
            Path(self.dataroot_path) / f"nuscenes_occ_infos_{split}.pkl" for split in splits
        ]
        absent = [str(path) for path in paths if not path.exists()]
        if absent:
            raise ValueError(
                f"no info file {', '.join(absent)}; give an info pickle (mmdetection3d, BEVDet, OpenOccupancy style) "
                "or a folder of nuScenes' JSON tables as --info_path"
            )
        return paths

    def read_frames(self) -> tuple[list["Frame"], dict[str, str]]:
        """All key frames, each token once, in the files' order; and token -> reason of the samples that are damaged.

        Raises:
            ValueError: a file that is missing or cannot be read, or no sample at all.
        """
        from syntheocc.occupancy.data.infos import read_infos
        from syntheocc.occupancy.data.nuscenes import NuScenesTables
        from syntheocc.occupancy.data.nuscenes_frames import frames_from_tables

        frames: dict[str, Frame] = {}
        unreadable: dict[str, str] = {}
        paths = self.info_paths()
        for path in paths:
            if path.is_dir():
                found = frames_from_tables(NuScenesTables(path, self.dataroot_path), unreadable=unreadable)
            else:
                found = read_infos(path, self.dataroot_path, unreadable=unreadable)
            frames |= {frame.token: frame for frame in found}
        if not frames:
            reasons = "".join(f"; {reason}" for reason in list(unreadable.values())[:3])
            raise ValueError(f"{', '.join(map(str, paths))}: no samples in it{reasons}")
        lost = {token: reason for token, reason in unreadable.items() if token not in frames}
        return list(frames.values())[: self.max_samples], lost

    def check_labels(self, kind: str) -> None:
        """Raise ValueError where `occ_path` does not fit `kind`: a missing folder, or one that nothing would read."""
        if kind not in ("mpi", "lidar"):
            self.occupancy_root(cast(OccupancyKind, kind))
        elif self.occ_path is not None:
            raise ValueError(
                f"--occ_path={self.occ_path} holds label files, but --occ_kind={kind} reads none; give their format "
                f"as --occ_kind ({', '.join(_USUAL_ROOTS)}), or leave --occ_path out"
            )

    def occupancy_root(self, kind: OccupancyKind) -> Path:
        """Where the label files of `kind` begin.

        Raises:
            ValueError: that folder does not exist.
        """
        root = self.occ_path or usual_label_root(self.dataroot_path, kind)
        if not Path(root).is_dir():
            raise ValueError(f"{root} (labels of kind {kind}) is not a folder; give it as --occ_path")
        return Path(root)

    def read_grid(self, frame: "Frame", kind: OccupancyKind) -> "OccupancyGrid":
        """The occupancy of one sample.

        Raises:
            ValueError: a file that is missing, truncated, of another kind or another grid.
        """
        if kind == "lidar":
            from syntheocc.occupancy.building import build_occupancy
            from syntheocc.occupancy.data.lidar import read_lidar

            if frame.lidar_path is None or frame.lidar2ego is None:
                raise ValueError("its source names no lidar sweep or no lidar2ego, from which occupancy is built")
            return build_occupancy(read_lidar(frame.lidar_path), frame.boxes, frame.lidar2ego)
        from syntheocc.occupancy.data.occupancy_files import occupancy_path, read_occupancy

        return read_occupancy(occupancy_path(self.occupancy_root(kind), frame, kind), kind, frame.lidar2ego)


def mpi_stems(frame: "Frame", root: Path, folder: str) -> dict[str, Path]:
    """Camera name -> `<root>/<folder>/<CAM>/<picture's name without suffix>`.

    Raises:
        ValueError: a camera has no picture, after which its files would be named.
    """
    from syntheocc.occupancy.data.mpi_files import mpi_stem

    unnamed = [name for name in frame.cameras.names if name not in frame.image_paths]
    if unnamed:
        raise ValueError(f"{', '.join(unnamed)} has no picture, and the MPI files are named after it")
    return {name: mpi_stem(frame.image_paths[name], root, folder) for name in frame.cameras.names}


def mpi_settings(folder: Path) -> dict[str, Any]:
    """What the MPI files of `folder` were made with: at least the keys of `RELEASED_MPI_SETTINGS`."""
    from syntheocc.engine.files import read_json

    path = folder / MPI_SETTINGS_FILE
    return RELEASED_MPI_SETTINGS | (read_json(path) if path.is_file() else {})
