"""``syntheocc occupancy build``: dense semantic occupancy from sweeps, boxes and point classes.

    syntheocc occupancy build --dataroot data/nuscenes --output-dir data/built --kinds occ3d syntheocc
    syntheocc occupancy build --dataroot data/nuscenes --voxel-size 0.1 --extent -20 -20 -2 20 20 4 --frame ego

The rules and their limits are in docs/build.md. Label files are those of the published data sets and lie as theirs do,
below --output-dir: `gts/`, `nuscenes_occ/`, `nuScenes-Occupancy/`, `dense_voxels_with_semantic_z-5/`.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from syntheocc.engine.flags import flag

if TYPE_CHECKING:
    from syntheocc.occupancy.accumulation.frames import BuildRules
    from syntheocc.occupancy.grids import GridSpec

SETTINGS_FILE = "build_settings.json"
PROBLEMS_FILE = "build_problems.json"
Kind = Literal[
    "occ3d",
    "occ3d_panoptic",
    "openocc_v2",
    "syntheocc",
    "syntheocc_coarse",
    "surroundocc",
    "surroundocc_fine",
    "openoccupancy",
    "grid",
]
# Kinds whose files have the same names, so that one would overwrite the other.
_RIVALS = (("syntheocc", "syntheocc_coarse"), ("surroundocc", "surroundocc_fine"))


@dataclass(kw_only=True)
class BuildConfig:
    """Make dense occupancy labels from sweeps, boxes and point classes; run it again to go on where it stopped."""

    dataroot: Path = flag(Path("data/nuscenes"), "data root: the folder that holds samples/, sweeps/ and v1.0-*/")
    version: str | None = flag(None, "folder of the tables, e.g. v1.0-mini; by default the only one there is")
    info_path: tuple[str, ...] = flag((), "info pickles; empty: all frames of the tables")
    scenes: tuple[str, ...] = flag((), "names of scenes; empty: all")
    max_samples: int | None = flag(None, "stop after so many key frames")
    output_dir: Path = flag(Path("outputs/occupancy"), "below it the labels lie as their data sets lay them out")
    kinds: tuple[Kind, ...] = flag(("occ3d",), "label files to write; grid: --voxel-size, --extent and --frame")
    voxel_size: float = flag(0.4, "of kind grid, metres")
    extent: tuple[float, float, float, float, float, float] = flag(
        (-40.0, -40.0, -1.0, 40.0, 40.0, 5.4), "of kind grid: lower x y z, upper x y z, metres"
    )
    frame: Literal["ego", "lidar"] = flag("ego", "of kind grid")
    classes: Literal["auto", "lidarseg", "panoptic", "rules"] = flag(
        "auto", "whence returns have classes; auto: lidarseg, panoptic, or rules, the first that there is"
    )
    sweeps: int = flag(20, "sweeps that go into a key frame; 0: all of the scene that are near")
    ground_reach: float = flag(4.0, "half the widest gap in the ground that is filled, metres; 0: none")
    close: float = flag(0.4, "half the widest hole in a surface that is closed, metres; 0: none")
    fill_objects: bool = flag(True, "fill cars, trucks, trailers and buses inside")
    mirror_objects: bool = flag(True, "what is seen of one side of them is on their other side too")
    vertices: Path | None = flag(None, "folder of mesh vertices, one .npy or .ply a key frame, in place of returns")
    vertices_frame: Literal["lidar", "ego"] = flag("lidar", "in which they lie")
    vertices_classes: str = flag("occ3d", "class table of their fourth column, where they have one")
    workers: int | None = flag(None, "processes; by default as many as there are processors (1 under torchrun)")

    def __post_init__(self):
        from syntheocc.occupancy.taxonomy import taxonomy_named

        self.dataroot, self.output_dir = Path(self.dataroot), Path(self.output_dir)
        if not self.kinds:
            raise ValueError("--kinds names no label files; give one or more, e.g. occ3d")
        for pair in _RIVALS:
            if set(pair) <= set(self.kinds):
                raise ValueError(f"--kinds {' and '.join(pair)} have the same file names; build them into two folders")
        for name in ("sweeps", "ground_reach", "close"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} cannot be negative, got {getattr(self, name)}")
        for name in ("max_samples", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if self.vertices is not None and not Path(self.vertices).is_dir():
            raise ValueError(
                f"--vertices {self.vertices} is not a folder; give the one that holds the vertices' files"
            )
        taxonomy_named(self.vertices_classes)
        self.grid_spec()

    def grid_spec(self) -> "GridSpec":
        """The geometry of kind grid."""
        from syntheocc.occupancy.grids import GridSpec

        lower, upper, size = self.extent[:3], self.extent[3:], self.voxel_size
        if not size > 0:
            raise ValueError(f"--voxel_size must be positive metres, got {size}")
        x, y, z = ((high - low) / size for low, high in zip(lower, upper, strict=True))
        if any(abs(n - round(n)) > 1e-6 or round(n) < 1 for n in (x, y, z)):
            raise ValueError(f"--extent {self.extent} is no whole number of voxels of {size} m along each axis")
        return GridSpec(lower, (size, size, size), (round(x), round(y), round(z)), self.frame)

    def spec_of(self, kind: Kind) -> "GridSpec":
        """The geometry of a kind."""
        from syntheocc.occupancy.data.occupancy_files import preset_of

        if kind == "grid":
            return self.grid_spec()
        return preset_of("occ3d" if kind == "occ3d_panoptic" else kind).spec

    def rules(self) -> "BuildRules":
        """How labels are made."""
        from syntheocc.occupancy.accumulation.frames import BuildRules

        return BuildRules(
            sweeps=self.sweeps,
            ground_reach=self.ground_reach,
            close=self.close,
            fill_objects=self.fill_objects,
            mirror_objects=self.mirror_objects,
        )

    def settings(self, source: str) -> dict[str, Any]:
        """Everything that the labels depend on, as JSON values; `source` is where the classes come from."""
        names = "sweeps ground_reach close fill_objects mirror_objects".split()
        if "grid" in self.kinds:
            names += ["voxel_size", "extent", "frame"]
        if self.vertices is not None:
            names += ["vertices_frame", "vertices_classes"]
        values = {name: value for name, value in asdict(self).items() if name in names}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {"classes": source, "surface": "returns" if self.vertices is None else "vertices", **values}


def run(config: BuildConfig) -> int:
    """Make the labels; returns the exit status (1: some key frames failed)."""
    from syntheocc.commands.batch import Tally, check_settings, print_summary
    from syntheocc.commands.build_job import cut_jobs, pending_frames, run_jobs
    from syntheocc.engine.files import atomic_write_json
    from syntheocc.engine.ranks import Ranks
    from syntheocc.occupancy.accumulation.sources import class_source, read_sources

    ranks = Ranks.from_environment()
    scenes, unreadable, tables = read_sources(config.dataroot, config.version, config.info_path, config.scenes)
    source = class_source(config.dataroot, config.classes, tables)
    settings_path = config.output_dir / SETTINGS_FILE
    settings = config.settings(source)
    check_settings(settings_path, settings, "give another --output-dir, or remove the folder")
    if ranks.is_main:
        atomic_write_json(settings_path, settings)
    waiting, there = pending_frames(config, scenes)
    workers = config.workers or (1 if ranks.world > 1 else _processors())
    jobs = cut_jobs(scenes, waiting, ranks.world * workers)
    with ranks.group():
        mine = run_jobs(config, source, ranks.share(jobs), workers, ranks, tables)
        parts = ranks.gather(mine)
    made = sum(part[0] for part in parts)
    failed = {token: reason for part in parts for token, reason in part[1].items()}
    problems = {what: reason for part in parts for what, reason in part[2].items()}
    tally = Tally(made, there, unreadable | failed)
    if ranks.is_main:
        print_summary(tally, f"{', '.join(config.kinds)} labels (classes from {source})", config.output_dir)
        report = config.output_dir / PROBLEMS_FILE
        _print_problems(problems, report)
        if problems or tally.failed:
            atomic_write_json(report, {"failed": dict(tally.failed), "left out": problems})
    return tally.status


def _print_problems(problems: dict[str, str], report: Path) -> None:
    shown = list(problems.items())[:20]
    for what, reason in shown:
        print(f"  left out: {what}: {reason}")
    if len(problems) > len(shown):
        print(f"  ... and {len(problems) - len(shown)} more, all in {report}")


def _processors() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
