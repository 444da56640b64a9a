"""Frames of many scenes, held on one device: what small networks are trained and judged on.

A scene costs a CPU core one to two seconds to make, and a frame an H200 a few milliseconds to render and label, but a
process 25 to launch: so every worker process makes scenes and renders them, on one device together, and the frames
stay on the device of the process that asked for them.

Example:
    >>> cache = build_cache("train", range(2), frames_per_scene=2, image_size=(80, 48), workers=0)  # doctest: +SKIP
    >>> cache.images.shape, cache.mpi_labels.shape  # doctest: +SKIP
    (torch.Size([4, 6, 3, 48, 80]), torch.Size([4, 6, 256, 6, 10]))

Legend: N frames, V views, D planes, H W pixels, h w cells (H/8, W/8).
"""

import json
import multiprocessing
import pickle
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.grids import SYNTHEOCC, OccupancyGrid, Preset
from syntheocc.occupancy.rendering.mpi import PlaneSpec, render_mpi
from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY
from syntheocc.worlds.labels import exact_grids, world_table
from syntheocc.worlds.splits import scene_seed
from syntheocc.worlds.stream import rig_at, sweep_shots
from syntheocc.worlds.timeline import token_of

__all__ = ["CELL", "FrameCache", "build_cache", "frame_times", "iterate_scenes"]

# Pixels of a cell along each edge: the factor between images and latents.
CELL = 8
# Frames rendered in one go: more would take the workers of a GPU tens of gigabytes together.
AT_ONCE = 8
_ON_CPU = ("intrinsics", "cam2ego")
# The parts that a file keeps as JSON; the others are tensors.
_LISTS = ("captions", "weathers", "lights", "scenes", "times", "camera_names")


@dataclass(frozen=True, eq=False)
class FrameCache:
    """N frames of V views on one device.

    Args:
        images: uint8 [N, V, 3, H, W], RGB.
        mpi_labels: uint8 [N, V, D, h, w] of SyntheOcc's table, as `render_mpi` makes them ("center" cells).
        nearest: uint8 [N, V, h, w], class of the nearest non-free plane.
        nearest_plane: uint8 [N, V, h, w], index of that plane.
        intrinsics: float64 [N, V, 3, 3] of the H x W images, on the CPU.
        cam2ego: float64 [N, V, 4, 4] to ego at the frame's time, on the CPU.
        captions: N sentences.
        weathers, lights: N words each, as `Scene` has them.
        scenes: N numbers of the scenes in their split.
        times: N instants, seconds in the scene.
        camera_names: V names.
        mpi_labels_spc4: like `mpi_labels` with four rays a cell; with `with_spc4`.
        semantics: uint8 [N, V, H, W], SyntheOcc's table at every pixel's centre: free (0) in the sky, 255 where the
            table has no word; with `with_geometry`.
        depth: float16 [N, V, H, W] z-depth, metres, inf in the sky; with `with_geometry`.
    """

    images: Tensor
    mpi_labels: Tensor
    nearest: Tensor
    nearest_plane: Tensor
    intrinsics: Tensor
    cam2ego: Tensor
    captions: list[str]
    weathers: list[str]
    lights: list[str]
    scenes: list[int]
    times: list[float]
    camera_names: list[str]
    mpi_labels_spc4: Tensor | None = None
    semantics: Tensor | None = None
    depth: Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def device(self) -> torch.device:
        """Where images and conditions are."""
        return self.images.device

    @property
    def neighbors(self) -> Tensor:
        """int64 [V, 2], the neighbours of the views; one table, for all rigs have the same ring."""
        return self.rig(0).neighbors()

    def rig(self, index: int) -> CameraRig:
        """The cameras of frame `index`, in ego at the frame's time."""
        height, width = self.images.shape[-2:]
        views = zip(self.intrinsics[index], self.cam2ego[index], strict=True)
        cameras = [Camera(intrinsics, cam2ego, height, width) for intrinsics, cam2ego in views]
        return CameraRig(dict(zip(self.camera_names, cameras, strict=True)))

    def to(self, device: torch.device | str) -> "FrameCache":
        """The cache with images and conditions on a device."""
        names = (field.name for field in fields(self) if field.name not in _ON_CPU)
        moved = {name: getattr(self, name).to(device) for name in names if isinstance(getattr(self, name), Tensor)}
        return replace(self, **moved)

    def select(self, indices: Sequence[int]) -> "FrameCache":
        """Some of the frames, in the order given."""
        indices = list(indices)
        rows = torch.tensor(indices, dtype=torch.long)
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = value[rows.to(value.device)]
            elif value is not None and field.name != "camera_names":
                changed[field.name] = [value[i] for i in indices]
        return replace(self, **changed)

    @staticmethod
    def cat(parts: Sequence["FrameCache"]) -> "FrameCache":
        """All frames of several caches of the same kind."""
        joined: dict[str, Any] = {"camera_names": parts[0].camera_names}
        for field in fields(FrameCache):
            values = [getattr(part, field.name) for part in parts]
            if field.name in joined or values[0] is None:
                continue
            joined[field.name] = torch.cat(values) if isinstance(values[0], Tensor) else sum(values, [])
        return FrameCache(**joined)

    def save(self, folder: Path) -> None:
        """Write frames.safetensors and frames.json into a folder."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, folder / "frames.safetensors")
        (folder / "frames.json").write_text(json.dumps({name: getattr(self, name) for name in _LISTS}))

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "FrameCache":
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        tensors = load_file(Path(folder) / "frames.safetensors")
        values: dict[str, Any] = {**tensors, **json.loads((Path(folder) / "frames.json").read_text())}
        return cls(**values).to(device)


def build_cache(
    split: str,
    scenes: Sequence[int],
    frames_per_scene: int = 8,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 0,
    seconds: float | None = None,
    with_spc4: bool = False,
    with_geometry: bool = False,
    image_size: tuple[int, int] = (400, 224),
    planes: PlaneSpec = PlaneSpec(),  # noqa: B008 (frozen)
    preset: Preset = SYNTHEOCC,
    timings: dict[str, float] | None = None,
) -> FrameCache:
    """Make frames of a split's scenes.

    Args:
        split: "train", "val" or "test".
        scenes: numbers of the scenes in the split, e.g. `range(rank, 10**6, world)` beside `seconds`.
        frames_per_scene: instants of each scene, drawn over its whole length.
        seed: of the world.
        device: where frames are rendered and stay.
        workers: processes that make scenes; 0 makes them here. The calling script needs the usual
            `if __name__ == "__main__":`.
        seconds: stop after so long, with the scenes that are done by then (one at least); None: all of them.
        with_spc4: also MPIs with four rays a cell.
        with_geometry: also classes and depths of all pixels.
        image_size: width and height, multiples of 8.
        planes: of the MPIs.
        preset: the grids.
        timings: filled with seconds: "scene", "render", "grids" and "mpi" summed over the processes, "total" passed.

    Raises:
        ValueError: no scene, no frame, or an image size that is no multiple of 8.
    """
    if not len(scenes) or frames_per_scene < 1:
        raise ValueError(f"a cache needs scenes and frames, got {len(scenes)} scenes of {frames_per_scene} frames")
    if image_size[0] % CELL or image_size[1] % CELL:
        raise ValueError(f"width and height must be multiples of {CELL}, got {image_size}")
    began = time.perf_counter()
    job = _Job(
        split, seed, frames_per_scene, str(torch.device(device)), with_spc4, with_geometry, image_size, planes, preset
    )
    warm_up = None
    if workers and torch.device(device).type == "cuda":
        # Compiles the kernels into the cache on the disk while the workers start: else each would compile them.
        warm_up = Thread(target=_make_frames, args=(replace(job, frames_per_scene=1), scenes[0]))
        warm_up.start()
    parts: list[FrameCache] = []
    spent: dict[str, float] = {}
    made = _frames_of_scenes(job, scenes, workers)
    try:
        for frames, stages in made:
            parts.append(frames.to(device))
            for name, value in stages.items():
                spent[name] = spent.get(name, 0.0) + value
            if seconds is not None and time.perf_counter() - began > seconds:
                break
    finally:
        made.close()
        if warm_up is not None:
            warm_up.join()
    cache = _joined(parts)
    if timings is not None:
        timings.update(spent, total=time.perf_counter() - began)
    return cache


def frame_times(seed: int, split: str, number: int, count: int, key_times: Sequence[float]) -> list[float]:
    """`count` instants of a scene, one drawn in each of as many equal parts of its length."""
    draw = np.random.default_rng(int(token_of("frames", seed, split, number)[:16], 16))
    start, end = key_times[0], key_times[-1]
    return [start + float(share) * (end - start) for share in (np.arange(count) + draw.random(count)) / count]


@dataclass(frozen=True)
class _Job:
    """What is to be made of each scene."""

    split: str
    seed: int
    frames_per_scene: int
    device: str
    with_spc4: bool
    with_geometry: bool
    image_size: tuple[int, int]
    planes: PlaneSpec
    preset: Preset


def _frames_of_scenes(
    job: _Job, scenes: Sequence[int], workers: int
) -> Generator[tuple["FrameCache", dict[str, float]], None, None]:
    """Frames and stage times of the scenes in the given order, made ahead of their use by other processes.

    Close the iterator to stop early: scenes that nobody will take are then not begun.
    """
    if workers == 0:
        for number in scenes:
            yield _make_frames(job, number)
        return
    yield from _by_workers(_frames_bytes, ((job, number) for number in scenes), workers)


def iterate_scenes(
    split: str, scenes: Sequence[int], seed: int = 0, image_size: tuple[int, int] = (400, 224), workers: int = 0
) -> Iterator[tuple[int, Any]]:
    """(number, Scene) of a split in the given order, made by `workers` other processes ahead of their use.

    Close the iterator to stop early: scenes that nobody will take are then not begun.
    """
    tasks = [(scene_seed(seed, split, number), split, image_size) for number in scenes]
    made = (_make(*task) for task in tasks) if workers == 0 else _by_workers(_scene_bytes, tasks, workers)
    yield from zip(scenes, made, strict=True)


def _by_workers(function: Callable[..., bytes], tasks: Iterable[tuple], workers: int) -> Iterator[Any]:
    """What `function` pickled of each task, in order, made ahead of its use."""
    # Spawned, not forked: the parent has threads and perhaps a GPU.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_one_thread)
    waiting: deque[Future] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, *task))
            if len(waiting) > 2 * workers:
                yield pickle.loads(waiting.popleft().result())
        while waiting:
            yield pickle.loads(waiting.popleft().result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


# Pickled in the workers: tensors would otherwise travel as shared memory, of which containers have little.
def _frames_bytes(job: _Job, number: int) -> bytes:
    frames, stages = _make_frames(job, number)
    return pickle.dumps((frames.to("cpu"), stages), protocol=5)


def _scene_bytes(seed: int, split: str, image_size: tuple[int, int]) -> bytes:
    return pickle.dumps(_make(seed, split, image_size), protocol=5)


def _make(seed: int, split: str, image_size: tuple[int, int]) -> Any:
    from syntheocc.worlds.scene import make_scene

    return make_scene(seed, split=split, image_size=image_size)


def _make_frames(job: _Job, number: int) -> tuple["FrameCache", dict[str, float]]:
    device = torch.device(job.device)
    if device.index is not None:
        torch.cuda.set_device(device)  # Triton launches on the current device, which every thread has its own of
    clock = _Clock(device)
    scene = _make(scene_seed(job.seed, job.split, number), job.split, job.image_size)
    clock.lap("scene")
    times = frame_times(job.seed, job.split, number, job.frames_per_scene, scene.key_times)
    parts = [times[i : i + AT_ONCE] for i in range(0, len(times), AT_ONCE)]
    return _joined([_frames_of(scene, number, part, job, clock) for part in parts]), clock.seconds


class _Clock:
    """Adds up the seconds between laps, by name; waits for the device at each, so that they are the device's."""

    def __init__(self, device: torch.device):
        self.device, self._last = device, time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def _frames_of(scene: Any, number: int, times: list[float], job: _Job, clock: "_Clock") -> FrameCache:
    from syntheocc.worlds.camera_images import render_shots

    device = torch.device(job.device)
    views = render_shots(scene, sweep_shots(scene, times), device)
    lead = (len(times), len(scene.rig))
    images = torch.stack([view.image for view in views]).movedim(-1, 1).contiguous().unflatten(0, lead)
    geometry: dict[str, Tensor] = {}
    if job.with_geometry:
        table = world_table(SYNTHEOCC_TAXONOMY).to(device)
        geometry["semantics"] = table[torch.stack([view.labels for view in views]).int()].unflatten(0, lead)
        geometry["depth"] = torch.stack([view.depth for view in views]).half().unflatten(0, lead)
    clock.lap("render")
    grids = exact_grids(scene, times, job.preset, device)
    clock.lap("grids")
    rigs = [rig_at(scene, t) for t in times]
    cells = (images.shape[-2] // CELL, images.shape[-1] // CELL)
    labels, nearest, nearest_plane = _mpis(grids, rigs, cells, job.planes, 1)
    if job.with_spc4:
        geometry["mpi_labels_spc4"] = _mpis(grids, rigs, cells, job.planes, 4)[0]
    clock.lap("mpi")
    return FrameCache(
        images=images,
        mpi_labels=labels,
        nearest=nearest,
        nearest_plane=nearest_plane.to(torch.uint8),
        intrinsics=torch.stack([torch.stack([camera.intrinsics for camera in rig.values()]) for rig in rigs]),
        cam2ego=torch.stack([torch.stack([camera.cam2ego for camera in rig.values()]) for rig in rigs]),
        captions=[scene.caption] * len(times),
        weathers=[scene.weather] * len(times),
        lights=[scene.light] * len(times),
        scenes=[number] * len(times),
        times=times,
        camera_names=list(scene.rig.names),
        **geometry,
    )


def _mpis(
    grids: list[OccupancyGrid], rigs: list[CameraRig], cells: tuple[int, int], planes: PlaneSpec, samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    mpi = render_mpi(grids, rigs, *cells, planes, samples_per_cell=samples, taxonomy=SYNTHEOCC_TAXONOMY)
    return mpi.labels, mpi.nearest, mpi.nearest_plane


def _joined(parts: list[FrameCache]) -> FrameCache:
    """`FrameCache.cat` that frees each field's parts before the next is joined: half the memory at the peak."""
    values = {field.name: [getattr(part, field.name) for part in parts] for field in fields(FrameCache)}
    joined: dict[str, Any] = {"camera_names": parts[0].camera_names}
    parts.clear()
    for name, pieces in values.items():
        if name in joined or pieces[0] is None:
            continue
        joined[name] = torch.cat(pieces) if isinstance(pieces[0], Tensor) else sum(pieces, [])
        pieces.clear()
    return FrameCache(**joined)
