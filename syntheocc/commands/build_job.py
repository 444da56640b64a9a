"""The work of ``syntheocc occupancy build``: scenes are shared among processes, read once, labelled frame by frame.

A job is a part of a scene's key frames with all of the scene's sweeps. Where there are fewer scenes than processes,
scenes are cut into parts, so that all have work; each part's process then reads the scene for itself.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syntheocc.commands.build import BuildConfig, Kind
from syntheocc.engine.ranks import Ranks

if TYPE_CHECKING:
    from syntheocc.occupancy.accumulation.frames import FrameLabels
    from syntheocc.occupancy.accumulation.point_classes import PointClasses
    from syntheocc.occupancy.accumulation.sources import SceneFiles
    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.occupancy.data.nuscenes import NuScenesTables

Outcome = tuple[int, dict[str, str], dict[str, str]]


@dataclass(frozen=True, eq=False)
class Job:
    """Tokens of the key frames of a scene that one process labels."""

    scene: "SceneFiles"
    tokens: tuple[str, ...]


def path_of(config: BuildConfig, kind: Kind, frame: "Frame") -> Path:
    """Where a frame's file of a kind is written; ValueError where a name that it needs is unknown."""
    from syntheocc.occupancy.data.occupancy_files import occupancy_path

    root = config.output_dir / _FOLDERS[kind]
    if kind == "grid":
        return root / frame.scene / f"{frame.token}.npz"
    return occupancy_path(root, frame, "occ3d" if kind == "occ3d_panoptic" else kind)


# Below the output folder, as `samples.usual_label_root` finds them.
_FOLDERS: dict[str, str] = {
    "occ3d": "gts",
    "occ3d_panoptic": "occ3d_panoptic",
    "openocc_v2": "openocc_v2",
    "syntheocc": ".",
    "syntheocc_coarse": ".",
    "surroundocc": "nuscenes_occ",
    "surroundocc_fine": "nuscenes_occ",
    "openoccupancy": "nuScenes-Occupancy",
    "grid": "grids",
}


def pending_frames(config: BuildConfig, scenes: Sequence["SceneFiles"]) -> tuple[list[list[str]], int]:
    """Of every scene the tokens of the frames that lack a file, and how many frames lack none."""
    waiting: list[list[str]] = []
    there = seen = 0
    for scene in scenes:
        tokens = []
        for frame in scene.frames:
            if config.max_samples is not None and seen >= config.max_samples:
                break
            seen += 1
            try:
                done = all(path_of(config, kind, frame).is_file() for kind in config.kinds)
            except ValueError:
                done = False  # it fails when its turn comes, and is listed
            there += done
            if not done:
                tokens.append(frame.token)
        waiting.append(tokens)
    return waiting, there


def cut_jobs(scenes: Sequence["SceneFiles"], waiting: Sequence[Sequence[str]], processes: int) -> list[Job]:
    """Scenes with frames to label as jobs; cut into parts while there are fewer than processes."""
    todo = [(scene, tokens) for scene, tokens in zip(scenes, waiting, strict=True) if tokens]
    parts = -(-processes // len(todo)) if todo else 1
    jobs = []
    for scene, tokens in todo:
        count = min(parts, len(tokens))
        bounds = [round(i * len(tokens) / count) for i in range(count + 1)]
        jobs += [Job(scene, tuple(tokens[a:b])) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    return jobs


def run_jobs(
    config: BuildConfig, source: str, jobs: Sequence[Job], workers: int, ranks: Ranks, tables: "NuScenesTables | None"
) -> Outcome:
    """Do jobs in a pool of processes, with a bar over their key frames.

    Returns:
        How many frames were made; token -> reason of those that failed; file or object -> reason of what was left out.
    """
    from tqdm import tqdm

    from syntheocc.occupancy.accumulation.sources import point_classes

    total = sum(len(job.tokens) for job in jobs)
    title = "labels" if ranks.world == 1 else f"labels (rank 0 of {ranks.world})"
    classes = point_classes(config.dataroot, source, tables)  # type: ignore[arg-type]
    with tqdm(total=total, desc=title, unit="frame", disable=not ranks.is_main) as bar:
        workers = min(workers, max(len(jobs), 1))
        if workers == 1:
            return _merged(do_job(config, classes, job, lambda: bar.update()) for job in jobs)
        return _merged(_in_pool(config, classes, jobs, workers, bar))


def do_job(
    config: BuildConfig, classes: "PointClasses", job: Job, progress: Callable[[], Any] = lambda: None
) -> Outcome:
    """Read a scene and label its frames.

    Args:
        config: the settings.
        classes: reads key sweeps.
        job: which frames.
        progress: called after every frame.
    """
    from syntheocc.occupancy.accumulation.scene import read_scene

    failed: dict[str, str] = {}
    try:
        scene = read_scene(job.scene.frames, job.scene.sweeps, classes)
    except ValueError as error:
        return 0, dict.fromkeys(job.tokens, str(error)), {}
    made = 0
    by_token = {frame.token: frame for frame in job.scene.frames}
    for token in job.tokens:
        try:
            _label(config, scene, by_token[token])
            made += 1
        except (ValueError, OSError) as error:
            failed[token] = str(error)
        progress()
    return made, failed, scene.problems


def _label(config: BuildConfig, scene: Any, frame: "Frame") -> None:
    """Make and write the files of a frame that are missing."""
    from syntheocc.occupancy.accumulation.vertices import read_vertices, vertices_path
    from syntheocc.occupancy.taxonomy import taxonomy_named
    from syntheocc.occupancy.transforms import invert_rigid, transform_points

    kinds = [kind for kind in config.kinds if not path_of(config, kind, frame).is_file()]
    surface = None
    if config.vertices is not None:
        table = taxonomy_named(config.vertices_classes)
        path = vertices_path(config.vertices, frame)
        points, labels = read_vertices(path, table)
        surface = points, _mapped(labels, table, scene.taxonomy, path)
    built: dict[Any, FrameLabels] = {}
    for kind in kinds:
        spec = config.spec_of(kind)
        if spec not in built:
            placed = surface
            if surface is not None and config.vertices_frame != spec.frame and frame.lidar2ego is not None:
                between = frame.lidar2ego if spec.frame == "ego" else invert_rigid(frame.lidar2ego)
                placed = transform_points(between, surface[0]), surface[1]
            masked = any(config.spec_of(k) == spec and k in _MASKED for k in kinds)
            built[spec] = scene.labels(frame, spec, config.rules(), masked, placed)
        _write(built[spec], kind, path_of(config, kind, frame))


# Kinds whose files hold masks.
_MASKED = ("occ3d", "occ3d_panoptic", "openocc_v2", "grid")


def _mapped(labels: Any, table: Any, taxonomy: Any, path: Path) -> Any:
    """Labels of another class table; one that has no classes stays as it is."""
    import torch

    try:
        return torch.from_numpy(table.mapping_to(taxonomy))[labels.int()]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _write(labels: "FrameLabels", kind: Kind, path: Path) -> None:
    from syntheocc.occupancy.accumulation.voting import numbered_instances
    from syntheocc.occupancy.data.grid_files import write_grid_file
    from syntheocc.occupancy.data.occ3d import Occ3DLabels, write_occ3d
    from syntheocc.occupancy.data.occupancy_files import preset_of, write_occupancy

    if kind == "grid":
        masks = {"mask_lidar": labels.mask_lidar, "mask_camera": labels.mask_camera}
        write_grid_file(labels.grid, path, {n: m.numpy().astype("uint8") for n, m in masks.items() if m is not None})
        return
    taxonomy = preset_of("occ3d" if kind == "occ3d_panoptic" else kind).taxonomy
    grid = labels.published().map_to(taxonomy)
    if kind not in _MASKED:
        write_occupancy(grid, path, kind)
        return
    instances = numbered_instances(labels.instances) if kind == "occ3d_panoptic" else None
    write_occ3d(Occ3DLabels(grid, labels.mask_lidar, labels.mask_camera, instances), path)


def _merged(outcomes: Iterator[Outcome]) -> Outcome:
    made = 0
    failed: dict[str, str] = {}
    problems: dict[str, str] = {}
    for count, lost, left_out in outcomes:
        made += count
        failed |= lost
        problems |= left_out
    return made, failed, problems


def _in_pool(
    config: BuildConfig, classes: "PointClasses", jobs: Sequence[Job], workers: int, bar: Any
) -> Iterator[Outcome]:
    import multiprocessing
    import threading
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool
    from dataclasses import fields
    from itertools import islice

    # The command line's config is of a class made on the fly, which no other process knows.
    config = BuildConfig(**{f.name: getattr(config, f.name) for f in fields(BuildConfig)})
    # spawn: a forked child would inherit torch's and numba's threads.
    context = multiprocessing.get_context("spawn")
    ticks = context.SimpleQueue()

    def count() -> None:
        while ticks.get():
            bar.update()

    counter = threading.Thread(target=count, daemon=True)
    counter.start()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(ticks,)) as pool:
        waiting = iter(jobs)
        running: set[Future] = set()
        try:
            while True:
                # Few at a time: a job's poses are megabytes. As bytes: torch would hand every small tensor over in
                # shared memory of its own.
                for job in islice(waiting, 2 * workers - len(running)):
                    running.add(pool.submit(_do_packed, pickle.dumps((config, classes, job))))
                if not running:
                    break
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (done.result() for done in finished)
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process was killed, perhaps for want of memory; give fewer --workers and run it again"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            ticks.put(False)
            counter.join()


_TICKS: list[Any] = []


def _start(ticks: Any) -> None:
    import torch

    _TICKS.append(ticks)
    torch.set_num_threads(1)


def _do_packed(packed: bytes) -> Outcome:
    config, classes, job = pickle.loads(packed)  # of this program's own making
    return do_job(config, classes, job, lambda: _TICKS[0].put(True))
