"""Drives through the street world for perception.py: made by worker processes, shared by the ranks, held on the GPU.

Every rank makes its share of the scenes with worker processes that render and label on the rank's own device; then all
ranks hold all of them. A batch is cut from them on the device. Geometric augmentation is exact: images mirrored, the
grid mirrored along x and y; nothing is resampled.

Legend: N key frames of all drives, F key frames of a drive, R of them scored, V views, B samples, T frames of a
sample, h w network input, X Y Z voxels.
"""

import math
import multiprocessing
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from perception_labels2d import cameras_of, rays_at, rays_of
from processes import of_all_ranks
from torch import Tensor

from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.grids import Preset
from syntheocc.occupancy.metrics import ray_origins
from syntheocc.occupancy.perception.batch import OccupancyBatch
from syntheocc.occupancy.perception.dataset import SPARSEOCC_CAMERAS
from syntheocc.occupancy.perception.transforms import ImageAugmentation
from syntheocc.occupancy.transforms import invert_rigid

EXACT, ACCUMULATED = "exact", "accumulated"


@dataclass(frozen=True)
class Order:
    """What is to be made of each scene of a split."""

    split: str
    seed: int
    key_frames: int
    image_size: tuple[int, int]
    """Width and height as rendered; the network sees the `window` at the bottom of it."""
    window: tuple[int, int]
    """Height and width."""
    preset: Preset
    device: str
    accumulated: bool = False
    """Also labels accumulated from lidar sweeps, and for scored frames the lidar's mask."""
    scored: tuple[int, ...] = ()
    """Key frames that are scored; empty for training drives, of which all frames have labels and none has masks."""
    new_rig: bool = False
    """Cameras mounted otherwise than in any training scene."""
    rays: bool = False
    """Also lidar points as rays with 2D labels (`perception_labels2d`)."""


def other_rig(image_size: tuple[int, int]) -> CameraRig:
    """Another car: cameras 0.25 m higher, the ring turned by 10 degrees, pitched 4 degrees down, 12 % wider."""
    from syntheocc.worlds.street import nominal_rig

    width, height = image_size
    turn, pitch = math.radians(10.0), -math.radians(4.0)
    place = torch.eye(4, dtype=torch.float64)
    place[:2, :2] = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    place[2, 3] = 0.25
    tilt = torch.eye(4, dtype=torch.float64)
    tilt[1:3, 1:3] = torch.tensor([[math.cos(pitch), -math.sin(pitch)], [math.sin(pitch), math.cos(pitch)]])
    cameras = {}
    for name, camera in nominal_rig(height, width).items():
        intrinsics = camera.intrinsics.clone()
        intrinsics[0, 0] *= 0.88
        intrinsics[1, 1] *= 0.88
        cameras[name] = Camera(intrinsics, place @ camera.cam2ego @ tilt, camera.height, camera.width)
    return CameraRig(cameras)


def make_drive(order: Order, number: int) -> dict[str, Any]:
    """Scene `number` of an order, tensors on the CPU.

    Returns:
        images uint8 [F, V, h, w, 3]; global2img float64 [F, V, 4, 4]; grid2global float64 [F, 4, 4]; semantics and
        instances uint8 [F or R, X, Y, Z]; with `accumulated` the same of accumulated labels; of scored frames
        camera_mask, with `accumulated` lidar_mask, bool [R, X, Y, Z], and origins, a list of R times [O, 3] metres;
        with `rays` what `rays_of` gives.
    """
    from syntheocc.occupancy.accumulation.visibility import camera_mask
    from syntheocc.worlds.drives import drive_of
    from syntheocc.worlds.scene import make_scene
    from syntheocc.worlds.splits import scene_seed
    from syntheocc.worlds.timeline import key_frame

    device = torch.device(order.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton launches on the current device
    scene = make_scene(
        scene_seed(order.seed, order.split, number),
        split=order.split,
        image_size=order.image_size,
        rig=other_rig(order.image_size) if order.new_rig else None,
        key_frames=order.key_frames,
    )
    store = drive_of(scene, order.preset, device=device, lidar=order.rays)
    height, width = order.window
    window = ImageAugmentation(height=height, width=width).for_test(*store.images.shape[2:4])
    if window.scale != 1:
        raise ValueError(f"pictures of {order.image_size} must hold a window of {order.window} unscaled")
    rows, columns = slice(window.top, window.top + height), slice(window.left, window.left + width)
    projection = torch.eye(4, dtype=torch.float64).repeat(*store.intrinsics.shape[:2], 1, 1)
    projection[..., :3, :3] = store.intrinsics
    assert store.semantics is not None and store.instances is not None
    chosen = list(order.scored) or list(range(order.key_frames))
    made: dict[str, Any] = {
        "images": store.images[:, :, rows, columns].cpu().contiguous(),
        "global2img": window.matrix() @ projection @ invert_rigid(store.cam2global),
        "grid2global": store.grid2global,
        "semantics": store.semantics[chosen].cpu(),
        "instances": torch.stack([_bytes(store.instances[i]) for i in chosen]).cpu(),
    }
    if order.rays:
        made |= rays_of(store, order.window, order.preset.spec)
    accumulation = None
    if order.accumulated:
        from syntheocc.worlds.accumulate import Accumulation

        accumulation = Accumulation.of(scene, _sweeps(scene, device))
        pairs = [accumulation.labels(i, order.preset, unseen=False) for i in chosen]
        made["accumulated_semantics"] = torch.stack([grid.labels for grid, _ in pairs])
        made["accumulated_instances"] = torch.stack([_bytes(instances) for _, instances in pairs])
    if order.scored:
        spec, frames = order.preset.spec, [key_frame(scene, i) for i in range(order.key_frames)]
        occupied = made["semantics"] != order.preset.taxonomy.free
        made["camera_mask"] = torch.stack(
            [
                camera_mask(held, spec, frames[i].cameras.select(SPARSEOCC_CAMERAS))
                for held, i in zip(occupied, chosen, strict=True)
            ]
        )
        if accumulation is not None:
            made["lidar_mask"] = torch.stack([accumulation.observed(i, spec) for i in chosen])
        made["origins"] = [ray_origins(frames, reference=i) for i in chosen]
    return made


def _sweeps(scene: Any, device: torch.device) -> list[Any]:
    """The lidar's sweeps of all key frames, made on the CPU where the device cannot: a run of minutes must not end."""
    from syntheocc.worlds.lidar import scan

    try:
        return [scan(scene, t, device=device) for t in scene.key_times]
    except RuntimeError as error:
        if device.type == "cpu":
            raise
        print(f"sweeps are made on the CPU: {error}".splitlines()[0], flush=True)
        return [scan(scene, t) for t in scene.key_times]


def _bytes(instances: Tensor) -> Tensor:
    """Object ids as bytes, 0 none; a scene with more than 255 objects has those of the frame numbered anew."""
    if int(instances.max()) > 255:
        found, dense = torch.unique(instances, return_inverse=True)
        instances = dense + int(found[0] != 0)
        # What still does not fit is an unknown object.
        instances = instances.masked_fill(instances > 255, 0)
    return instances.to(torch.uint8)


class Workshop:
    """Worker processes that make drives ahead of their use; with 0 workers they are made here.

    The calling script needs the usual ``if __name__ == "__main__":``.

    Args:
        workers: processes.
        warm_up: an order of little, whose first scene is made once here where the device is a GPU.
        one: (order, number of the scene) -> its tensors by name; a function of a module, for workers import it.
    """

    def __init__(self, workers: int, warm_up: Any, one: Callable[[Any, int], dict[str, Any]] = make_drive):
        self.workers, self.pool, self.one = workers, None, one
        if workers:
            # Spawned, not forked: the parent has threads and perhaps a GPU.
            self.pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
            started = [self.pool.submit(_nothing) for _ in range(workers)]
            if torch.device(warm_up.device).type == "cuda":
                # Compiles the kernels into the cache on the disk while the workers start: else each would.
                one(warm_up, 0)
            for future in started:
                future.result()

    def make(
        self, order: Any, numbers: Iterable[int], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[dict[str, Any]]:
        """The drives of scenes in the given order; none is begun after `stop` says so, but at least one is made."""
        if self.pool is None:
            for i, number in enumerate(numbers):
                if i and stop():
                    return
                yield self.one(order, number)
            return
        waiting: deque[Future] = deque()
        for number in numbers:
            if waiting and stop():
                break
            waiting.append(self.pool.submit(_drive_bytes, self.one, order, number))
            if len(waiting) > self.workers + 4:
                yield pickle.loads(waiting.popleft().result())
        if stop():
            kept = [i == 0 or not future.cancel() for i, future in enumerate(waiting)]
            waiting = deque(future for future, keep in zip(waiting, kept, strict=True) if keep)
        while waiting:
            yield pickle.loads(waiting.popleft().result())

    def close(self) -> None:
        """End the workers; what they are at is lost."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    torch.set_num_threads(1)
    import syntheocc.worlds.camera_images  # noqa: F401 (what takes seconds to import)
    import syntheocc.worlds.drives  # noqa: F401


def _nothing() -> None:
    time.sleep(0.2)  # so that no worker takes two


# Pickled in the workers: tensors would otherwise travel as shared memory, of which containers have little.
def _drive_bytes(one: Callable[[Any, int], dict[str, Any]], order: Any, number: int) -> bytes:
    return pickle.dumps(one(order, number), protocol=5)


@dataclass(eq=False)
class Drives:
    """Drives of F key frames each, on one device."""

    images: Tensor
    """uint8 [N, V, h, w, 3]."""
    global2img: Tensor
    """float64 [N, V, 4, 4]: from the global frame to (u*z, v*z, z, 1) pixels of the window."""
    grid2global: Tensor
    """float64 [N, 4, 4]."""
    length: int
    """F."""
    labels: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """kind -> semantics and instances, uint8 [N (or scored frames), X, Y, Z]."""
    rays: dict[str, Tensor] = field(default_factory=dict)
    """Columns of `rays_of`, [N, ...]; empty without."""
    motion: list[Any] = field(default_factory=list)
    """N times how boxes move."""
    top: int = 0
    """Rows of the rendered pictures above the window."""

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self, rows: Tensor, frames: int, flips: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What a network reads at key frames.

        Args:
            rows: int64 [B] on the CPU.
            frames: T; at a drive's start the first one repeats.
            flips: bool [B, 3] on the CPU: mirror the images, the grid's x, its y.

        Returns:
            images uint8 [B, T, V, 3, h, w] and ego2img float32 [B, T, V, 4, 4], on the drives' device.
        """
        device = self.images.device
        shots = torch.maximum(rows[:, None] - torch.arange(frames), rows[:, None] // self.length * self.length)
        shots, rows = shots.to(device), rows.to(device)
        images = self.images[shots].permute(0, 1, 2, 5, 3, 4)
        matrix = self.global2img[shots] @ self.grid2global[rows][:, None, None]
        if flips is not None:
            width = images.shape[-1]
            mirror = torch.eye(4, dtype=torch.float64).repeat(len(flips), 1, 1)
            mirror[flips[:, 0], 0, 0], mirror[flips[:, 0], 0, 2] = -1.0, float(width)
            turned = torch.eye(4, dtype=torch.float64).repeat(len(flips), 1, 1)
            turned[flips[:, 1], 0, 0], turned[flips[:, 2], 1, 1] = -1.0, -1.0  # its own inverse
            matrix = mirror.to(device)[:, None, None] @ matrix @ turned.to(device)[:, None, None]
            seen = flips[:, 0].to(device)[:, None, None, None, None, None]
            images = torch.where(seen, images.flip(-1), images)
        return images, matrix.float()

    def batch(self, rows: Tensor, frames: int, kind: str, flips: Tensor | None = None) -> OccupancyBatch:
        """Training samples; see `inputs`. All key frames need labels of that kind."""
        images, ego2img = self.inputs(rows, frames, flips)
        picked = [values[rows.to(values.device)] for values in self.labels[kind]]
        if flips is not None:
            axes = [[axis for axis in (1, 2) if one[axis]] for one in flips.tolist()]
            # Sample by sample: axis 1 of a flip is the grid's x, dimension 0 of its labels.
            picked = [
                torch.stack([v.flip([a - 1 for a in one]) if one else v for v, one in zip(values, axes, strict=True)])
                for values in picked
            ]
        names = [f"row {row}" for row in rows.tolist()]
        batch = OccupancyBatch(images, ego2img, names, [[name] for name in names], picked[0], picked[1].int())
        if self.rays:
            cameras = cameras_of(ego2img, self.top, images.shape[-1], flips)
            batch.intrinsics, batch.image_transforms = cameras.intrinsics, cameras.image_transforms
            batch.grid_transforms = cameras.grid_transforms
            batch.rays, batch.motion = rays_at(self.rays, self.motion, rows)
        return batch


def gathered(made: list[dict[str, Any]], name: str, ranks: Ranks, device: torch.device) -> Tensor:
    """One tensor of all drives of all ranks, on the device; those of this rank are freed on the way."""
    rows = torch.cat([one.pop(name) for one in made]).to(device)
    # Gloo has no word for bool.
    return of_all_ranks(rows.to(torch.uint8) if rows.dtype == torch.bool else rows, ranks)


def drives_of_all(made: list[dict[str, Any]], length: int, ranks: Ranks, device: torch.device) -> Drives:
    """The drives of all ranks on each of them; of a rank that made more than others the last ones are left out."""
    kinds = [kind for kind in (EXACT, ACCUMULATED) if _name(kind, "semantics") in made[0]]
    rays = [name for name in made[0] if name.startswith("ray_")]
    motion = ranks.gather([one for drive in made for one in drive.pop("motion", [])]) if rays else []
    least = min((len(part) for part in motion), default=0)
    return Drives(
        rays={name: gathered(made, name, ranks, device) for name in rays},
        motion=[one for part in motion for one in part[:least]],
        images=gathered(made, "images", ranks, device),
        global2img=gathered(made, "global2img", ranks, device),
        grid2global=gathered(made, "grid2global", ranks, device),
        length=length,
        labels={
            kind: (
                gathered(made, _name(kind, "semantics"), ranks, device),
                gathered(made, _name(kind, "instances"), ranks, device),
            )
            for kind in kinds
        },
    )


def _name(kind: str, what: str) -> str:
    return what if kind == EXACT else f"{kind}_{what}"


@dataclass(eq=False)
class Exam:
    """Held-out drives of one level, R scored frames a drive; scored frame i is of drive i // R."""

    drives: Drives
    rows: Tensor
    """int64 [M] on the CPU, the scored key frames among all."""
    per_scene: int
    """R."""
    masks: dict[str, Tensor]
    """"camera" and perhaps "lidar" -> bool [M, X, Y, Z] on the device."""
    origins: list[Tensor]
    """M times [O, 3] metres in ego, on the CPU."""

    @property
    def scenes(self) -> int:
        """How many drives."""
        return len(self.rows) // self.per_scene


def exam_of_all(made: list[dict[str, Any]], order: Order, ranks: Ranks, device: torch.device) -> Exam:
    """The held-out drives of all ranks on each of them."""
    drives_made = ranks.gather(len(made))
    if len(set(drives_made)) > 1:
        raise ValueError(f"ranks made {drives_made} held-out drives; they must be equally many")
    origins = [one for part in ranks.gather([drive["origins"] for drive in made]) for drive in part for one in drive]
    masks = {
        name: gathered(made, f"{name}_mask", ranks, device).bool()
        for name in ("camera", "lidar")
        if f"{name}_mask" in made[0]
    }
    drives = drives_of_all(made, order.key_frames, ranks, device)
    first = torch.arange(len(drives) // order.key_frames) * order.key_frames
    rows = (first[:, None] + torch.tensor(order.scored)).flatten()
    return Exam(drives, rows, len(order.scored), masks, origins)
