"""``syntheocc generate --rig FILE --occupancy FILE``: a user's own cameras and grids instead of a data set's.

`--occupancy` alone makes no pictures, for nobody says which cameras look at it. `--rig` alone puts the user's cameras
on the car of a data set, whose labels are then rendered for them.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from syntheocc.commands.generate import GenerateConfig
    from syntheocc.occupancy import OccupancyGrid
    from syntheocc.occupancy.data.frames import Frame

EXAMPLE_RIG = "examples/rigs/front_only.yaml"


def check_own_scene(config: "GenerateConfig") -> None:
    """Raise ValueError where `--rig` and `--occupancy` do not go with each other or with other flags."""
    if config.occupancy and config.rig is None:
        raise ValueError(
            f"--occupancy={' '.join(config.occupancy)} needs --rig, the cameras that look at it (a file such as "
            f"{EXAMPLE_RIG}; docs/rigs.md)"
        )
    if config.rig is None:
        return
    if config.as_dataset is not None:
        raise ValueError("--as_dataset writes a data set of its own cameras; leave out --rig and --occupancy")
    if not config.occupancy and config.occ_kind == "mpi":
        raise ValueError(
            "--rig looks at grids, and MPI files are made for other cameras; give your own grids as --occupancy, or "
            "the data set's labels as --occ_kind=syntheocc, occ3d, ..."
        )
    absent = [path for path in (str(config.rig), *config.occupancy) if not Path(path).exists()]
    if absent:
        raise ValueError(f"{', '.join(absent)}: no such file or folder; check --rig and --occupancy")


def own_frames(config: "GenerateConfig", others: list["Frame"]) -> list["Frame"]:
    """The job's samples with the user's cameras: one a grid, or those of the data set.

    Args:
        config: with `rig`.
        others: the data set's frames where there is no `occupancy`.

    Raises:
        ValueError: a rig file that is none, or two grids of one name.
    """
    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.occupancy.data.rig_files import read_rig

    assert config.rig is not None
    rig = read_rig(config.rig)
    if config.occupancy:
        names: dict[str, Path] = {}
        for given in map(Path, config.occupancy):
            name = _name_of(given)
            if name in names:
                raise ValueError(f"{names[name]} and {given} would both be called {name!r}; rename one")
            names[name] = given
        others = [
            Frame(
                token=name, scene="", timestamp_us=i, cameras=rig.cameras, lidar2ego=rig.lidar2ego, occupancy_path=path
            )
            for i, (name, path) in enumerate(names.items())
        ][: config.max_samples]
    # Named after the sample: there are no pictures that they could be named after.
    return [
        replace(
            frame,
            cameras=rig.cameras,
            image_paths={camera: rig.images.get(camera, Path(f"{frame.token}.jpg")) for camera in rig.cameras.names},
        )
        for frame in others
    ]


def own_grid(config: "GenerateConfig", frame: "Frame") -> "OccupancyGrid":
    """The grid of one of `own_frames`; ValueError naming the file, and what its format would need."""
    from syntheocc.occupancy.data.grid_files import read_grid_file
    from syntheocc.occupancy.data.occupancy_files import read_occupancy

    path = frame.occupancy_path
    assert path is not None
    if config.occ_kind == "mpi":
        return read_grid_file(path)
    if config.occ_kind == "lidar":
        raise ValueError("--occ_kind=lidar builds from a data set's sweeps; give --occupancy files of a label format")
    if frame.lidar2ego is None and config.occ_kind not in ("occ3d", "openocc_v2"):
        raise ValueError(
            f"{path}: {config.occ_kind} labels lie in the lidar's frame; write lidar2ego (4x4) into {config.rig}"
        )
    return read_occupancy(path, config.occ_kind, frame.lidar2ego)


def _name_of(path: Path) -> str:
    # Occ3D calls every file labels.npz, in a folder of the sample's name.
    return path.parent.name if path.stem == "labels" and path.parent.name else path.stem
