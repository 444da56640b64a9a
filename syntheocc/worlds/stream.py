"""Training batches straight from the world: scenes are made, rendered and labelled on the device, nothing is stored.

Example:
    >>> stream = WorldStream(seed=0, split="train", batch_size=2, image_size=(100, 56), mpi_size=(7, 13))
    >>> batch = stream.batch(0)
    >>> batch.images.shape, batch.mpi.labels.shape
    (torch.Size([2, 6, 3, 56, 100]), torch.Size([2, 6, 256, 7, 13]))

Legend: S samples, V views, D planes, H W pixels, h w cells.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.grids import SYNTHEOCC, OccupancyGrid, Preset
from syntheocc.occupancy.rendering.mpi import PlaneSpec, SemanticMPI, render_mpi
from syntheocc.occupancy.taxonomy import Taxonomy
from syntheocc.occupancy.transforms import invert_rigid
from syntheocc.worlds.labels import exact_grids
from syntheocc.worlds.splits import scene_seed
from syntheocc.worlds.timeline import token_of

__all__ = ["WorldBatch", "WorldStream", "rig_at", "sweep_shots"]

# Scenes kept ready ahead of the batch that needs them.
_AHEAD = 2


@dataclass(frozen=True, eq=False)
class WorldBatch:
    """S samples of V views.

    Args:
        images: uint8 [S, V, 3, H, W] on the device.
        grids: S grids on the device.
        rigs: S rigs, `cam2ego` to ego at the sample's lidar time.
        mpi: [S, V, D, h, w] on the device; None when no `mpi_size` was asked for.
        captions: S sentences.
        scenes: S pairs of the scene's number in the stream and the time in it, seconds.
    """

    images: Tensor
    grids: list[OccupancyGrid]
    rigs: list[CameraRig]
    mpi: SemanticMPI | None
    captions: list[str]
    scenes: list[tuple[int, float]]


class WorldStream:
    """An endless, seeded stream of batches; any batch can be asked for by its number.

    Batch i draws its samples, at any instant, from the `pool` scenes that are alive then; after `scene_batches` of
    them the oldest makes room for a new one. Scene j of a split is the one that `syntheocc world` writes as its j-th.

    Args:
        seed: of the world.
        split: "train", "val" or "test": which layouts and assets.
        batch_size: S.
        image_size: width and height, pixels.
        mpi_size: width and height of the MPIs, cells; None for none.
        planes: of the MPIs.
        preset: the grids.
        taxonomy: of the MPIs; the preset's when left out.
        pool: scenes that are alive at a time.
        scene_batches: batches after which a scene is replaced.
        num_scenes: after so many scenes the first comes again; None never.
        rig: cameras for all scenes, instead of nuScenes' with a calibration of its own for each.
        device: where everything is made.

    Raises:
        ValueError: a number that is not positive.
    """

    def __init__(
        self,
        seed: int = 0,
        split: str = "train",
        batch_size: int = 4,
        image_size: tuple[int, int] = (400, 224),
        mpi_size: tuple[int, int] | None = (50, 28),
        planes: PlaneSpec = PlaneSpec(),  # noqa: B008 (frozen)
        preset: Preset = SYNTHEOCC,
        taxonomy: Taxonomy | None = None,
        pool: int = 4,
        scene_batches: int = 8,
        num_scenes: int | None = None,
        rig: CameraRig | None = None,
        device: torch.device | str = "cpu",
    ):
        counts = {"batch_size": batch_size, "pool": pool, "scene_batches": scene_batches, "num_scenes": num_scenes}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.seed, self.split, self.batch_size = seed, split, batch_size
        self.image_size, self.mpi_size, self.planes = image_size, mpi_size, planes
        self.preset, self.taxonomy = preset, taxonomy or preset.taxonomy
        self.pool, self.scene_batches, self.num_scenes = pool, scene_batches, num_scenes
        self.rig, self.device = rig, torch.device(device)
        self._scenes: dict[int, Future] = {}
        self._maker = ThreadPoolExecutor(1)

    def __iter__(self) -> Iterator[WorldBatch]:
        index = 0
        while True:
            yield self.batch(index)
            index += 1

    def batch(self, index: int) -> WorldBatch:
        """Batch `index`; the same number gives the same batch."""
        first = index // self.scene_batches
        draw = np.random.default_rng(int(token_of("stream", self.seed, self.split, index)[:16], 16))
        picks = sorted(
            (self._number(first + int(k)), float(share))
            for k, share in zip(
                draw.integers(self.pool, size=self.batch_size), draw.random(self.batch_size), strict=True
            )
        )
        wanted = {self._number(first + k) for k in range(self.pool + _AHEAD)}
        for number in self._scenes.keys() - wanted:
            del self._scenes[number]
        for number in sorted(wanted - self._scenes.keys()):
            self._scenes[number] = self._maker.submit(self._make, number)
        images, grids, rigs, captions, scenes = [], [], [], [], []
        for number in sorted({number for number, _ in picks}):
            scene = self._scenes[number].result()
            start, end = scene.key_times[0], scene.key_times[-1]
            times = [start + share * (end - start) for n, share in picks if n == number]
            images.append(self._render(scene, times))
            grids += exact_grids(scene, times, self.preset, self.device)
            for t in times:
                rigs.append(rig_at(scene, t))
                captions.append(scene.caption)
                scenes.append((number, t))
        mpi = None
        if self.mpi_size is not None:
            width, height = self.mpi_size
            mpi = render_mpi(grids, rigs, height, width, self.planes, taxonomy=self.taxonomy)
        return WorldBatch(torch.cat(images), grids, rigs, mpi, captions, scenes)

    def _number(self, number: int) -> int:
        return number if self.num_scenes is None else number % self.num_scenes

    def _make(self, number: int) -> Any:
        from syntheocc.worlds.scene import make_scene

        return make_scene(
            scene_seed(self.seed, self.split, number), split=self.split, image_size=self.image_size, rig=self.rig
        )

    def _render(self, scene: Any, times: list[float]) -> Tensor:
        """uint8 [len(times), V, 3, H, W]: every camera at its own time."""
        from syntheocc.worlds.camera_images import render_shots

        views = render_shots(scene, sweep_shots(scene, times), self.device)
        images = torch.stack([view.image for view in views]).movedim(-1, 1)
        return images.reshape(len(times), len(scene.rig), *images.shape[1:])


def sweep_shots(scene: Any, times: Sequence[float]) -> list:
    """The `Shot`s of sweeps that end at `times`, cameras fastest: every camera at its own time."""
    from syntheocc.worlds.camera_images import Shot
    from syntheocc.worlds.lidar import camera_time

    cameras = list(scene.rig.values()) * len(times)
    moments = [camera_time(end, camera) for end in times for camera in scene.rig.values()]
    # All poses at once: one at a time they took longer than the GPU takes for the images.
    poses = torch.from_numpy(scene.ego.poses_at(moments))
    return [Shot(*shot) for shot in zip(cameras, poses, moments, strict=True)]


def rig_at(scene: Any, end: float) -> CameraRig:
    """The rig of a sweep that ends at `end`, in ego at that time."""
    from syntheocc.worlds.lidar import camera_time

    world2ego = invert_rigid(scene.ego.pose_at(end))
    return CameraRig(
        {
            name: camera.moved(world2ego @ scene.ego.pose_at(camera_time(end, camera)) @ camera.cam2ego)
            for name, camera in scene.rig.items()
        }
    )
