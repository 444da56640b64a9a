"""``syntheocc mpi`` and ``torchrun utils/gen_mtp.py``: occupancy labels -> 3D semantic MPI files.

The files are those that SyntheOcc released (`occupancy.data.mpi_files`), for programs that read them. Our own training
and inference render MPIs on the way and need no files.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from syntheocc.commands.samples import OccupancyKind, SampleConfig
from syntheocc.engine.flags import flag
from syntheocc.occupancy.data.samples import MPI_SETTINGS_FILE, RELEASED_MPI_SETTINGS, mpi_settings, mpi_stems

if TYPE_CHECKING:
    from syntheocc.occupancy import PlaneSpec
    from syntheocc.occupancy.data.frames import Frame

__all__ = ["MPIConfig", "SETTINGS_FILE", "mpi_settings", "mpi_stems", "planes_named", "run"]

SETTINGS_FILE = MPI_SETTINGS_FILE


@dataclass(kw_only=True)
class MPIConfig(SampleConfig):
    """Write the MPI files of a data set; run it again to go on where it stopped."""

    gen_train_or_val: Literal["train", "val", "trainval"] = flag(
        "trainval", "which of the default info pickles", env="$TRAIN_OR_VAL"
    )
    occ_kind: OccupancyKind = flag("syntheocc", "format of the label files; lidar: built from the sweep and the boxes")
    num_planes: tuple[int, ...] = flag((256, 96), "256: planes every 0.2 m to 51.2 m; 96: the same, grouped")
    height: int = flag(56, "rows of an MPI (56 for pictures of 448 rows)")
    width: int = flag(100, "columns of an MPI (100 for pictures of 800 columns)")
    pixel_origin: Literal["center", "corner"] = flag("corner", "where a cell is sampled; the released weights: corner")
    samples_per_cell: int = flag(1, "rays a cell, a square number; more of them find thin things")
    device: str = flag("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, ...")
    output_root: Path | None = flag(None, "where the folder <mtp_path> is made; by default the data root")

    def __post_init__(self):
        super().__post_init__()
        unknown = [n for n in self.num_planes if n not in (256, 96)]
        if unknown or not self.num_planes:
            raise ValueError(f"num_planes are 256, 96 or both (256,96), got {self.num_planes}")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"an MPI needs height and width of at least 1, got {self.height}x{self.width}")
        root = int(max(self.samples_per_cell, 0) ** 0.5 + 0.5)
        if self.samples_per_cell < 1 or root**2 != self.samples_per_cell:
            raise ValueError(f"samples_per_cell must be a square number, got {self.samples_per_cell}")

    def stems(self, frame: "Frame") -> dict[str, Path]:
        """Camera name -> path of its files without their endings."""
        return mpi_stems(frame, self.output_root or self.dataroot_path, self.mtp_path)


def planes_named(number: int) -> "PlaneSpec":
    """The published planes: 256 single ones, or 96 groups of them."""
    from syntheocc.occupancy import PlaneSpec

    return PlaneSpec() if number == 256 else PlaneSpec(groups=number)


def run(config: MPIConfig) -> int:
    """Write the MPI files; returns the exit status (1: some samples failed)."""
    import torch

    from syntheocc.commands.batch import check_settings, print_summary, run_samples
    from syntheocc.engine.ranks import Ranks
    from syntheocc.occupancy import render_mpi, taxonomy_named
    from syntheocc.occupancy.data.mpi_files import mpi_file_names, write_mpi_files

    ranks = Ranks.from_environment()
    frames, unreadable = config.read_frames()
    config.check_labels(config.occ_kind)
    device = _device(config.device, ranks.local_rank)
    target = Path(config.output_root or config.dataroot_path) / config.mtp_path
    settings = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name in ("occ_kind", "height", "width", "pixel_origin", "samples_per_cell")
    }
    unsaid = settings | RELEASED_MPI_SETTINGS if any(target.glob("CAM_*")) else None
    check_settings(target / SETTINGS_FILE, settings, "give another --mtp_path, or remove the folder", unsaid)
    taxonomy = taxonomy_named("syntheocc")

    def is_done(frame: "Frame") -> bool:
        return frame.image_paths.keys() >= set(frame.cameras.names) and all(
            path.is_file() for stem in config.stems(frame).values() for path in mpi_file_names(stem, config.num_planes)
        )

    def make(frame: "Frame") -> None:
        stems = config.stems(frame)
        grid = config.read_grid(frame, config.occ_kind).to(device)
        for number in config.num_planes:
            mpi = render_mpi(
                grid,
                frame.cameras,
                config.height,
                config.width,
                planes=planes_named(number),
                pixel_origin=config.pixel_origin,
                samples_per_cell=config.samples_per_cell,
                taxonomy=taxonomy,
            )
            write_mpi_files(mpi, stems)

    if ranks.world > 1 and device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks.world))
    with ranks.group():
        tally = run_samples(frames, is_done, make, ranks, "MPIs", (target / SETTINGS_FILE, settings), unreadable)
    if ranks.is_main:
        print_summary(tally, "the MPI files", target)
    return tally.status


def _device(name: str, local_rank: int):
    """The torch device that a rank works on."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank % max(torch.cuda.device_count(), 1)}"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name} was asked for, but this torch finds no GPU; give --device=cpu")
    return torch.device(name)
