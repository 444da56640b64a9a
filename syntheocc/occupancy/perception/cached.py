"""Key frames held on one device: samples of small data sets without a loader.

For what a GPU can hold (a frame of six 128 x 352 windows with its labels is 2 MB): nuScenes' mini split, or frames of
the procedural world that never were files. Samples are those of `OccupancyFrames` for data without sweeps, made on
the device: images are resampled bilinearly from the stored ones, which are about as large as the network's input.

Legend: N key frames, V views, T frames of a sample, H W stored images, X Y Z voxels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from syntheocc.occupancy.data.frames import about
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.batch import OccupancyBatch
from syntheocc.occupancy.perception.dataset import (
    OccupancyFrames,
    Sampling,
    image_generator,
    index_generator,
    shuffled_round,
)
from syntheocc.occupancy.perception.images import load_image
from syntheocc.occupancy.perception.photometric import draw_photometric
from syntheocc.occupancy.perception.ray_config import RayConfig
from syntheocc.occupancy.perception.ray_frames import InputWindow
from syntheocc.occupancy.perception.ray_labels import RaySample, build_rays
from syntheocc.occupancy.perception.ray_store import StoredLidar
from syntheocc.occupancy.perception.transforms import (
    GridTransform,
    ImageTransform,
    draw_grid_transform,
    transform_labels,
)
from syntheocc.occupancy.transforms import invert_rigid

__all__ = ["CachedFrames", "FrameStore", "store_frames"]


@dataclass(eq=False)
class FrameStore:
    """N key frames; images and labels on the device, matrices on the CPU.

    Raises:
        ValueError: lengths or shapes that do not belong together.
    """

    images: Tensor
    """uint8 [N, V, H, W, 3] RGB."""
    intrinsics: Tensor
    """float64 [N, V, 3, 3] of these images; all zeros where a camera is missing."""
    cam2global: Tensor
    """float64 [N, V, 4, 4] at the time of each picture."""
    grid2global: Tensor
    """float64 [N, 4, 4], the labels' frame; the ego pose for grids in ego."""
    previous: Tensor
    """int64 [N]: row of the key frame before, its own at a scene's start."""
    tokens: list[str]
    semantics: Tensor | None = None
    """uint8 [N, X, Y, Z], 255 unknown."""
    instances: Tensor | None = None
    """integer [N, X, Y, Z], 0 none."""
    window: Tensor | None = None
    """float64 [4, 4] from the original images to the stored ones (`ImageTransform.matrix`); None: the same."""
    lidar: StoredLidar | None = None
    """Classified points and boxes, for rays."""

    def __post_init__(self):
        number, views = len(self.tokens), self.images.shape[1]
        shapes: dict[str, tuple[int, ...]] = {
            "intrinsics": (number, views, 3, 3),
            "cam2global": (number, views, 4, 4),
            "grid2global": (number, 4, 4),
            "previous": (number,),
        }
        if self.images.ndim != 5 or len(self.images) != number or self.images.dtype != torch.uint8:
            raise ValueError(f"{number} tokens, but images {self.images.dtype} {tuple(self.images.shape)}")
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must be {shape}, got {tuple(getattr(self, name).shape)}")
        for name in ("semantics", "instances"):
            if getattr(self, name) is not None and len(getattr(self, name)) != number:
                raise ValueError(f"{number} frames but {len(getattr(self, name))} {name}")
        if self.lidar is not None and len(self.lidar) != number:
            raise ValueError(f"{number} frames but lidar of {len(self.lidar)}")
        if number and not (0 <= int(self.previous.min()) and int(self.previous.max()) < number):
            raise ValueError("previous names a row that is not there")

    def __len__(self) -> int:
        return len(self.tokens)

    @staticmethod
    def cat(stores: "Sequence[FrameStore]") -> "FrameStore":
        """All frames of several stores, on the device of the first.

        Raises:
            ValueError: no store, or some have labels (or lidar) and others have not.
        """
        if not stores:
            raise ValueError("no stores to put together")
        device = stores[0].images.device
        joined: dict[str, Any] = {}
        starts = [sum(len(store) for store in stores[:i]) for i in range(len(stores))]
        for name in ("images", "intrinsics", "cam2global", "grid2global", "semantics", "instances", "lidar"):
            values = [getattr(store, name) for store in stores]
            if any(value is None for value in values) and not all(value is None for value in values):
                raise ValueError(f"some stores have {name} and others have not")
            to = device if name in ("images", "semantics", "instances") else torch.device("cpu")
            if name == "lidar" or values[0] is None:
                joined[name] = None if values[0] is None else StoredLidar.cat(values)
            else:
                joined[name] = torch.cat([value.to(to) for value in values])
        windows = [torch.eye(4, dtype=torch.float64) if s.window is None else s.window for s in stores]
        if any(not torch.equal(window, windows[0]) for window in windows):
            raise ValueError("stores of differently scaled images do not go together")
        return FrameStore(
            previous=torch.cat([store.previous + start for store, start in zip(stores, starts, strict=True)]),
            tokens=[token for store in stores for token in store.tokens],
            window=stores[0].window,
            **joined,
        )


class CachedFrames(Dataset):
    """Samples of a `FrameStore`; `dataset[i]` is an `OccupancyBatch` of one on the store's device.

    Indices, rounds and draws are those of `OccupancyFrames`; use it in the loop's own process (no workers).

    Args:
        store: the frames.
        sampling: what is made of them; decoding options have no meaning here.
        grid: where the labels lie.
        seed: of the draws.
        rounds: how many different samples there are of a frame.
        rays: which rays the samples have, None without; needs the store's `lidar`.

    Raises:
        ValueError: labels of another shape than the grid's, or rays of a store without lidar.
    """

    def __init__(
        self,
        store: FrameStore,
        sampling: Sampling,
        grid: GridSpec,
        seed: int = 0,
        rounds: int = 1,
        rays: RayConfig | None = None,
    ):
        if rays is not None and store.lidar is None:
            raise ValueError("rays are made of lidar points, which the store has none of; store them with the frames")
        if store.semantics is not None and tuple(store.semantics.shape[1:]) != grid.shape:
            raise ValueError(f"the store's labels are {tuple(store.semantics.shape[1:])}, the grid is {grid.shape}")
        self.store, self.sampling, self.grid = store, sampling, grid
        self.seed, self.rounds, self.rays = seed, rounds, rays
        before = store.previous.tolist()
        self._previous: dict[int, int] = {row: other for row, other in enumerate(before) if other != row}
        self._next = {other: row for row, other in self._previous.items()}

    def __len__(self) -> int:
        return len(self.store) * self.rounds

    def order(self, epoch: int) -> list[int]:
        """Indices of an epoch, shuffled: every frame once."""
        return shuffled_round(self.seed, epoch, len(self.store), self.rounds)

    def __getitem__(self, index: int) -> OccupancyBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.sample(index % len(self.store), index_generator(self.seed, index))

    def sample(self, row: int, generator: torch.Generator | None = None) -> OccupancyBatch:
        """One frame's sample; `generator` is needed in training."""
        store, sampling = self.store, self.sampling
        rows = [row]
        while len(rows) < sampling.num_frames and (before := int(store.previous[rows[-1]])) != rows[-1]:
            rows.append(before)
        rows += [row if sampling.missing == "current" else rows[-1]] * (sampling.num_frames - len(rows))
        height, width = store.images.shape[2:4]
        turn, draw, views = GridTransform(), None, store.images.shape[1]
        transforms = [sampling.image.for_test(height, width)] * views
        if sampling.training:
            if generator is None:
                raise ValueError("training samples are drawn at random: give a generator")
            if sampling.grid_turns:
                turn = draw_grid_transform(generator, sampling.max_yaw)
            image_seed = int(torch.randint(2**62, (), generator=generator))
            transforms = [
                sampling.image.draw(height, width, image_generator(image_seed, view, sampling.image))
                for view in range(views)
            ]
            if sampling.photometric:
                draw = draw_photometric(len(rows) * views, generator)
        read = rows[:1] if sampling.current_only else rows
        if len(set(transforms)) == 1:
            images = _resample(store.images[read].flatten(0, 1), transforms[0]).unflatten(0, (len(read), -1))
        else:
            images = torch.stack([_resample(store.images[read, v], t) for v, t in enumerate(transforms)], 1)
        exists = store.intrinsics[rows].flatten(2).any(-1)
        matrices = torch.stack([t.matrix() for t in transforms])
        window = torch.eye(4, dtype=torch.float64) if store.window is None else store.window
        projection = torch.zeros(len(rows), store.images.shape[1], 4, 4, dtype=torch.float64)
        projection[..., :3, :3] = store.intrinsics[rows]
        projection[..., 3, 3] = exists
        matrix = matrices @ projection @ invert_rigid(store.cam2global[rows])
        device, labels = store.images.device, {}
        for name, fill in (("semantics", 255), ("instances", 0)):
            values: Tensor | None = getattr(store, name)
            if values is not None:
                labels[name] = transform_labels(values[row], self.grid, turn, fill)[None]
        if "instances" in labels:
            labels["instances"] = labels["instances"].int()
        made = None if self.rays is None else self._rays(row, self.rays, matrices @ window, generator)
        batch = OccupancyBatch(
            images=images.permute(0, 1, 4, 2, 3)[None],
            ego2img=(matrix @ store.grid2global[row] @ torch.linalg.inv(turn.matrix())).float()[None],
            tokens=[store.tokens[row]],
            shots=[[store.tokens[r] for r in rows]],
            photometric=draw,
            intrinsics=(torch.linalg.inv(window)[:3, :3] @ store.intrinsics[rows]).float()[None],
            image_transforms=(matrices @ window * exists[..., None, None]).float()[None],
            grid_transforms=turn.matrix().float()[None],
            rays=None if made is None else made.rays,
            motion=None if made is None else made.motion,
            **labels,
        )
        return batch.to(device)

    def neighbour(self, row: int, offset: int) -> int | None:
        """The row of the key frame `offset` after one (before it, if negative), None beyond the scene's ends."""
        links, at = self._previous if offset < 0 else self._next, row
        for _ in range(abs(offset)):
            if at not in links:
                return None
            at = links[at]
        return at

    def _rays(self, row: int, config: RayConfig, matrices: Tensor, generator: torch.Generator | None) -> RaySample:
        store, image, lidar = self.store, self.sampling.image, self.store.lidar
        assert lidar is not None
        near = [self.neighbour(row, offset) for offset in config.frame_offsets]
        unscaled = torch.eye(3, dtype=torch.float64)
        if store.window is not None:
            unscaled = torch.linalg.inv(store.window)[:3, :3]
        frames = [
            None
            if r is None
            else lidar.frame(r, store.grid2global[r], unscaled @ store.intrinsics[r], store.cam2global[r])
            for r in near
        ]
        window = InputWindow(matrices, image.height, image.width)
        generator = generator if self.sampling.training else torch.Generator().manual_seed(0)
        with about(f"sample {store.tokens[row]}"):
            return build_rays(frames, config, self.grid, window, generator)


def store_frames(dataset: OccupancyFrames, device: torch.device | str = "cpu") -> FrameStore:
    """Read all key frames of a dataset, scaled as its test window wants them.

    Args:
        dataset: its frames, cameras, grid and labels are taken, with `rays` the lidar points too; its pictures must
            have one size.
        device: where images and labels go.

    Raises:
        ValueError: pictures of several sizes, some frames with labels and others without, or a file that cannot be
            read.
    """
    rows = {frame.token: row for row, frame in enumerate(dataset.frames)}
    images, intrinsics, poses, grids, previous, labels = [], [], [], [], [], []
    window: ImageTransform | None = None
    original, lidar = (0, 0), []
    for frame in dataset.frames:
        shot = dataset.history.current(frame.token)
        sizes = {camera.size for camera in shot.cameras.values()}
        for size in sizes:
            scale = dataset.sampling.image.test_scale(*size)
            whole = ImageTransform(scale, 0, 0, *ImageTransform(scale, 0, 0, 1, 1).scaled_size(*size))
            if window is not None and window != whole:
                raise ValueError(f"sample {frame.token}: a store holds pictures of one size, got {sorted(sizes)}")
            window, original = whole, size
        if window is None:
            raise ValueError(f"sample {frame.token}: the first frame of a store needs pictures")
        pixels = np.zeros((len(dataset.cameras), window.height, window.width, 3), np.uint8)
        k = torch.zeros(len(dataset.cameras), 3, 3, dtype=torch.float64)
        pose = torch.eye(4, dtype=torch.float64).repeat(len(dataset.cameras), 1, 1)
        for v, name in enumerate(dataset.cameras):
            camera = shot.cameras.get(name)
            if camera is not None:
                pixels[v] = load_image(camera.path, camera.size, window, dataset.sampling.draft)
                k[v] = window.matrix()[:3, :3] @ camera.intrinsics
                pose[v] = camera.cam2global
        images.append(torch.from_numpy(pixels).to(device))
        intrinsics.append(k)
        poses.append(pose)
        grids.append(dataset.grid2global(frame))
        before = dataset.history.previous(frame.token)
        previous.append(rows[frame.token if before is None else before.token])
        labels.append(None if dataset.labels is None else dataset.labels(frame))
        if dataset.rays is not None:
            lidar.append(dataset.ray_frame(frame))
    return FrameStore(
        images=torch.stack(images),
        intrinsics=torch.stack(intrinsics),
        cam2global=torch.stack(poses),
        grid2global=torch.stack(grids),
        previous=torch.tensor(previous),
        tokens=list(rows),
        semantics=_stacked(labels, "semantics", device),
        instances=_stacked(labels, "instances", device),
        window=None if window is None else window.matrix(),
        lidar=StoredLidar.of(lidar, original, device) if dataset.rays is not None else None,
    )


def _stacked(labels: list[Any], name: str, device: torch.device | str) -> Tensor | None:
    values = [getattr(found, name) for found in labels if found is not None and getattr(found, name) is not None]
    if not values:
        return None
    if len(values) < len(labels):
        raise ValueError(f"some frames have {name} and others have not; store them apart")
    return torch.stack([value.to(torch.uint8 if name == "semantics" else torch.int32) for value in values]).to(device)


def _resample(images: Tensor, transform: ImageTransform) -> Tensor:
    """uint8 [n, H, W, 3] through an image transform, bilinearly; black beyond the image."""
    height, width = images.shape[1:3]
    scaled_height, scaled_width = transform.scaled_size(height, width)
    device = images.device
    column = torch.arange(transform.width, device=device)
    if transform.flip:
        column = column.flip(0)
    # Pixel centres of the window in the scaled image, then as shares of it: -1 is its left edge, 1 its right one.
    x = 2 * (column + transform.left + 0.5) / scaled_width - 1
    y = 2 * (torch.arange(transform.height, device=device) + transform.top + 0.5) / scaled_height - 1
    x, y = x.expand(len(y), -1), y[:, None].expand(-1, len(x))
    if transform.rotation:
        x, y = _turned(x, y, transform, scaled_width, scaled_height)
    grid = torch.stack([x, y], -1).expand(len(images), -1, -1, -1)
    pixels = F.grid_sample(images.permute(0, 3, 1, 2).float(), grid, mode="bilinear", align_corners=False)
    inside = (x.abs() < 1) & (y.abs() < 1)
    return (pixels * inside).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _turned(
    x: Tensor, y: Tensor, transform: ImageTransform, scaled_width: int, scaled_height: int
) -> tuple[Tensor, Tensor]:
    """Where the pixels of a turned window come from: its places about the window's centre, turned back."""
    centers = transform.left + transform.width / 2, transform.top + transform.height / 2
    u, v = (x + 1) / 2 * scaled_width - centers[0], (y + 1) / 2 * scaled_height - centers[1]
    # The columns are mirrored already; a mirrored window turns the other way round in the image.
    angle = -transform.rotation if transform.flip else transform.rotation
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = cos * u - sin * v, sin * u + cos * v
    # The window is cut out before it is turned: its corners turn black.
    cut = (u.abs() < transform.width / 2) & (v.abs() < transform.height / 2)
    x, y = 2 * (u + centers[0]) / scaled_width - 1, 2 * (v + centers[1]) / scaled_height - 1
    return torch.where(cut, x, -9.0), torch.where(cut, y, -9.0)
