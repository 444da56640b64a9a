"""``syntheocc world``: a procedural street world written as a nuScenes data root (and a KITTI one)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from syntheocc.engine.flags import flag

if TYPE_CHECKING:
    from syntheocc.worlds.splits import ScenePlan

SETTINGS_FILE = "world/settings.json"
SMALLEST_SIDE = 16  # pixels: two cells of an MPI


@dataclass(kw_only=True)
class WorldConfig:
    """Write a procedural street world in nuScenes' own formats; run it again to go on where it stopped."""

    out: Path = flag(Path("data/nuscenes"), "data root that is written")
    scenes: int = flag(8, "number of scenes of train and val together")
    val_scenes: int | None = flag(None, "how many of them are val; by default a quarter, at least one of two")
    test_scenes: int = flag(0, "further scenes, of layouts and assets that neither train nor val has")
    seed: int = flag(0, "seed of the whole world")
    size: str = flag("400x224", "width x height of the pictures")
    key_frames: int = flag(20, "key frames a scene (2 Hz)")
    sweeps: bool = flag(False, "also write the firings between the key frames (cameras 12 Hz, lidar 20 Hz)")
    labels: Literal["exact", "accumulated"] = flag(
        "exact", "occupancy from the geometry, or accumulated from lidar sweeps with the real data's errors"
    )
    kitti: bool = flag(
        False,
        "also write <out>/kitti, a KITTI odometry and SemanticKITTI tree (of 10 train, 1 val and 11 test scenes)",
    )
    version: str = flag("v1.0-trainval", "folder of the tables")
    workers: int | None = flag(None, "processes; by default as many as there are processors")

    def __post_init__(self):
        if self.scenes < 1:
            raise ValueError(f"--scenes must be at least 1, got {self.scenes}")
        if self.val_scenes is not None and not 0 <= self.val_scenes <= self.scenes:
            raise ValueError(f"--val_scenes must lie in 0..{self.scenes} (--scenes), got {self.val_scenes}")
        if self.test_scenes < 0:
            raise ValueError(f"--test_scenes cannot be negative, got {self.test_scenes}")
        if self.key_frames < 1:
            raise ValueError(f"--key_frames must be at least 1, got {self.key_frames}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers must be at least 1, got {self.workers}")
        if self.seed < 0:
            raise ValueError(f"--seed cannot be negative, got {self.seed}")
        if not self.version.startswith("v1.0-") or "/" in self.version:
            raise ValueError(f"--version is a folder name v1.0-..., got {self.version!r}")
        self.image_size()

    def image_size(self) -> tuple[int, int]:
        """Width and height of the pictures, pixels."""
        parts = self.size.lower().split("x")
        if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise ValueError(f"--size is width x height such as 400x224, got {self.size!r}")
        width, height = int(parts[0]), int(parts[1])
        if min(width, height) < SMALLEST_SIDE:
            raise ValueError(f"--size needs at least {SMALLEST_SIDE} pixels a side, got {self.size!r}")
        return width, height

    def plan(self) -> list["ScenePlan"]:
        """The scenes to make."""
        from syntheocc.worlds.splits import plan_scenes

        # At least one of two: `infer.py` looks for the val infos unless told otherwise.
        quarter = max(self.scenes // 4, min(1, self.scenes - 1))
        val = quarter if self.val_scenes is None else self.val_scenes
        return plan_scenes(self.scenes - val, val, self.test_scenes, self.seed)

    def settings(self) -> dict:
        """Everything that the bytes of a scene depend on, as JSON values."""
        names = ("seed", "size", "key_frames", "sweeps", "labels", "version")
        return {name: value for name, value in asdict(self).items() if name in names}


def run(config: WorldConfig) -> int:
    """Write the world; returns the exit status (1: some scenes failed)."""
    from syntheocc.commands.batch import check_settings
    from syntheocc.engine.files import atomic_write_json
    from syntheocc.worlds.tree import finish_tree, is_complete

    root = Path(config.out)
    plan = config.plan()
    check_settings(root / SETTINGS_FILE, config.settings(), "give another --out, or remove the folder")
    atomic_write_json(root / SETTINGS_FILE, config.settings())
    sequences = kitti_sequences(plan) if config.kitti else {}
    jobs = []
    for scene in plan:
        sequence = sequences.get(scene.name)
        sequence = None if sequence is None or _kitti_mark(root, scene.name).is_file() else sequence
        if sequence is not None or not is_complete(root, scene.name):
            jobs.append((scene, sequence))
    failed = _make_all(config, jobs, len(plan))
    frames = finish_tree(root, tree_options(config)) if len(failed) < len(plan) else []
    made = len(jobs) - len(failed)
    print(f"{root}: {len(frames)} key frames; {made} scenes made, {len(plan) - len(jobs)} were there already")
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}")
    return 1 if failed else 0


def tree_options(config: WorldConfig):
    """The tree's part of the settings."""
    from syntheocc.worlds.tree import TreeOptions

    return TreeOptions(version=config.version, sweeps=config.sweeps, labels=config.labels)


def kitti_sequences(plan: Sequence["ScenePlan"]) -> dict[str, str]:
    """Scene name -> SemanticKITTI's sequence, for as many scenes of each split as KITTI has sequences."""
    from syntheocc.worlds.kitti_tree import SEQUENCES

    out: dict[str, str] = {}
    for split, names in SEQUENCES.items():
        members = [scene.name for scene in plan if scene.split == split]
        out |= dict(zip(members, names, strict=False))
    return out


def _kitti_mark(root: Path, name: str) -> Path:
    """The file that says that a scene's KITTI sequence is complete."""
    return root / "world" / f"kitti-{name}.json"


def make_one(config: WorldConfig, scene: "ScenePlan", sequence: str | None = None) -> None:
    """Make and write what is missing of one scene.

    With one thread: sums in another order would give other bytes.

    Args:
        config: the job.
        scene: which one.
        sequence: its KITTI sequence; None where none is to be written.
    """
    import dataclasses

    import torch

    from syntheocc.engine.files import atomic_write_json
    from syntheocc.worlds.scene import make_scene
    from syntheocc.worlds.tree import is_complete, write_scene

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        world = make_scene(scene.seed, split=scene.split, image_size=config.image_size(), key_frames=config.key_frames)
        world = dataclasses.replace(world, name=scene.name)
        if not is_complete(config.out, scene.name):
            write_scene(world, config.out, tree_options(config))
        if sequence is not None:
            from syntheocc.worlds.kitti_tree import write_kitti_sequence

            write_kitti_sequence(world, config.out / "kitti", sequence)
            atomic_write_json(_kitti_mark(config.out, scene.name), {"sequence": sequence})
    finally:
        torch.set_num_threads(threads)


def _make_all(config: WorldConfig, jobs: Sequence[tuple["ScenePlan", str | None]], total: int) -> dict[str, str]:
    """Make scenes in a pool of processes; returns name -> reason of those that failed."""
    import multiprocessing
    import os
    from concurrent.futures import ProcessPoolExecutor, as_completed

    from tqdm import tqdm

    workers = min(config.workers or os.cpu_count() or 1, max(len(jobs), 1))
    failed: dict[str, str] = {}
    with tqdm(total=total, initial=total - len(jobs), desc="scenes", unit="scene") as bar:
        if workers == 1:
            for scene, sequence in jobs:
                try:
                    make_one(config, scene, sequence)
                except (ValueError, OSError) as error:
                    failed[scene.name] = str(error)
                bar.update()
            return failed
        # The command line's config is of a class made on the fly, which no other process knows.
        config = WorldConfig(**{f.name: getattr(config, f.name) for f in fields(WorldConfig)})
        # spawn: a forked child would inherit torch's and numba's threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            running = {pool.submit(make_one, config, *job): job[0].name for job in jobs}
            try:
                for job in as_completed(running):
                    try:
                        job.result()
                    except (ValueError, OSError) as error:
                        failed[running[job]] = str(error)
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return failed
