"""Samples of the perception models: images of several cameras and frames, their projections, and the labels if any.

Works on whatever `occupancy.data` reads: without ground truth (no labels), on single frames (the current images
repeat), with frames in any order, with cameras missing (black images whose projection is all zeros).

Legend: B samples, T frames (the current one first, then ever older ones), V views, H W network input, X Y Z voxels.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from syntheocc.occupancy.data.frames import Frame, about
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.batch import FrameLabels, OccupancyBatch, collate
from syntheocc.occupancy.perception.history import Shot, ShotCamera, ShotHistory, key_shot
from syntheocc.occupancy.perception.images import Decoder, load_image
from syntheocc.occupancy.perception.photometric import draw_photometric
from syntheocc.occupancy.perception.ray_frames import InputWindow, RayFrame, ray_frame
from syntheocc.occupancy.perception.ray_labels import RaySample, build_rays
from syntheocc.occupancy.perception.ray_store import RayReader
from syntheocc.occupancy.perception.transforms import (
    GridTransform,
    ImageAugmentation,
    ImageTransform,
    draw_grid_transform,
    transform_labels,
)
from syntheocc.occupancy.transforms import invert_rigid

__all__ = [
    "SPARSEOCC_CAMERAS",
    "FrameLabels",
    "FrameRounds",
    "KeyImages",
    "OccupancyBatch",
    "OccupancyFrames",
    "Sampling",
    "collate",
]

# The order in which the published model looks for the first camera that shows a point (specs/sparseocc.md 1.2).
SPARSEOCC_CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What is made of a frame.

    Args:
        num_frames: T.
        image: how images are scaled and cropped.
        training: augment and draw the history at random; off, everything depends on the frame alone.
        grid_turns: mirror and turn the grid in training.
        max_yaw: largest turn, radians.
        random_history: draw the older images' spacing in training, as SparseOcc is trained; off, they are the key
            frames before, as in tests.
        missing: what stands in for frames before the scene's start: its oldest frame, or the current one.
        photometric: draw colour changes in training; the step applies them on its device.
        current_only: read the current images alone, for a model that remembers its feature maps; the projections are
            still those of all T frames. Not for training.
        draft, decoder: see `load_image`.
        allow_missing_files: a picture that does not exist counts as a missing camera instead of an error.

    Raises:
        ValueError: no frame at all, or a training sample without its older images.
    """

    num_frames: int
    image: ImageAugmentation
    training: bool = False
    grid_turns: bool = True
    max_yaw: float = float(np.deg2rad(22.5))
    random_history: bool = True
    missing: Literal["oldest", "current"] = "oldest"
    photometric: bool = True
    current_only: bool = False
    draft: bool = True
    decoder: Decoder = "pillow"
    allow_missing_files: bool = False

    def __post_init__(self):
        if self.num_frames < 1:
            raise ValueError(f"a sample has at least its own frame, got num_frames={self.num_frames}")
        if self.training and self.current_only:
            raise ValueError("current_only is for predicting with remembered features; training reads all images")


class FrameRounds(Dataset):
    """Samples of frames that are drawn anew in every round: index i is frame ``i % number of frames``.

    It is that frame's round ``i // number of frames``, and depends on nothing else.

    Args:
        frames: in any order.
        seed: of the draws.
        rounds: how many different samples there are of a frame.
        unreadable: makes what `dataset[i]` returns for a sample that cannot be read, from its token and the reason
            (the engine's `BadSample`, so that a run goes on with the next one); None lets the error through.

    Raises:
        ValueError: fewer than one round.
    """

    def __init__(self, frames: Sequence[Frame], seed: int, rounds: int, unreadable: Callable[[str, str], Any] | None):
        if rounds < 1:
            raise ValueError(f"every frame is seen at least once, got rounds={rounds}")
        self.frames, self.seed, self.rounds, self.unreadable = list(frames), seed, rounds, unreadable

    def __len__(self) -> int:
        return len(self.frames) * self.rounds

    def order(self, epoch: int) -> list[int]:
        """Indices of an epoch, shuffled: every frame once (for `syntheocc.engine.samplers.EpochSampler`)."""
        return shuffled_round(self.seed, epoch, len(self.frames), self.rounds)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        frame = self.frames[index % len(self.frames)]
        try:
            return self.sample(frame, index_generator(self.seed, index))
        except ValueError as error:
            if self.unreadable is None:
                raise
            return self.unreadable(frame.token, str(error))

    def sample(self, frame: Frame, generator: torch.Generator | None = None) -> Any:
        """One frame's sample; ValueError where it cannot be read."""
        raise NotImplementedError


class OccupancyFrames(FrameRounds):
    """Samples of key frames; `dataset[i]` is an `OccupancyBatch` of one.

    A training dataset has `rounds` samples of every frame, which differ in what is drawn: index i is frame
    ``i % number of frames`` in its round ``i // number of frames``, and depends on nothing else. `order` goes through
    one round an epoch.

    Args:
        frames: key frames, in any order, of any number of scenes.
        sampling: what is made of a frame.
        grid: where labels and projections live; in the ego or the lidar frame.
        labels: reads a frame's ground truth, None where it has none; left out, there is none.
        cameras: the views, in the order of the model; left out: those that any frame has, the published six in the
            published order. A frame that lacks one of them gets a black image and an all-zero projection.
        data_root: for sweeps whose paths were written elsewhere.
        seed: of the draws.
        rounds: how many different samples there are of a frame.
        rays: which lidar points become labels of the images, and who reads them; None: none. Rays and boxes are in
            the key frame's own grid, which is not augmented for them (`OccupancyBatch.grid_transforms`).
        unreadable: makes what `dataset[i]` returns for a sample that cannot be read, from its token and the reason
            (the engine's `BadSample`, so that a run goes on with the next one); None lets the error through.

    Raises:
        ValueError: no frame, a frame twice, or a grid in another frame.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        sampling: Sampling,
        grid: GridSpec,
        labels: Callable[[Frame], FrameLabels | None] | None = None,
        cameras: Sequence[str] | None = None,
        data_root: Path | None = None,
        seed: int = 0,
        rounds: int = 1,
        unreadable: Callable[[str, str], Any] | None = None,
        rays: RayReader | None = None,
    ):
        if not frames:
            raise ValueError("no frames to make samples of")
        if grid.frame not in ("ego", "lidar"):
            raise ValueError(f"the grid lies in the {grid.frame} frame; images are projected from ego or lidar grids")
        super().__init__(frames, seed, rounds, unreadable)
        self.history = ShotHistory(self.frames, data_root)
        self.sampling, self.grid, self.labels = sampling, grid, labels
        names = dict.fromkeys(name for frame in frames for name in frame.cameras.names)
        self.cameras = tuple(cameras or _published_order(list(names)))
        self.rays = rays

    def sample(self, frame: Frame, generator: torch.Generator | None = None) -> OccupancyBatch:
        """One frame's sample.

        Args:
            frame: one of the dataset's.
            generator: of the draws in training.

        Raises:
            ValueError: a file is missing or damaged, labels do not fit the grid, or no camera has a picture.
        """
        sampling = self.sampling
        turn = GridTransform()
        if sampling.training and generator is None:
            raise ValueError("training samples are drawn at random: give a generator")
        if sampling.training and sampling.random_history:
            assert generator is not None
            older = self.history.random_shots(frame.token, sampling.num_frames - 1, generator)
        else:
            older = self.history.key_shots(frame.token, sampling.num_frames - 1, sampling.missing)
        if sampling.training and sampling.grid_turns:
            assert generator is not None
            turn = draw_grid_transform(generator, sampling.max_yaw)
        # The same draw for all images of a sample (or of a camera), whatever their size.
        image_seed = int(torch.randint(2**62, (), generator=generator)) if sampling.training else None
        shots = [self.history.current(frame.token), *older]
        read = 1 if sampling.current_only else len(shots)
        images = np.zeros((read, len(self.cameras), sampling.image.height, sampling.image.width, 3), np.uint8)
        ego2img = torch.zeros(len(shots), len(self.cameras), 4, 4, dtype=torch.float64)
        intrinsics, transforms = torch.zeros_like(ego2img[..., :3, :3]), torch.zeros_like(ego2img)
        grid2global = self.grid2global(frame) @ torch.linalg.inv(turn.matrix())
        loaded: dict[Path, np.ndarray] = {}  # at a scene's start the same shot comes several times
        for t, shot in enumerate(shots):
            for v, name in enumerate(self.cameras):
                camera = self._camera(shot, name)
                if camera is not None:
                    transform = self._image_transform(camera.size, image_seed, v)
                    ego2img[t, v] = _projection(camera, transform) @ grid2global
                    intrinsics[t, v], transforms[t, v] = camera.intrinsics, transform.matrix()
                    if t < read:
                        images[t, v] = self._pixels(camera, transform, loaded)
        if not bool(ego2img[0].any()):
            raise ValueError(f"sample {frame.token}: none of {', '.join(self.cameras)} has a picture")
        semantics, instances = self._labels(frame, turn)
        draw = None
        if sampling.training and sampling.photometric:
            assert generator is not None
            draw = draw_photometric(images.shape[0] * images.shape[1], generator)
        made = None if self.rays is None else self._rays(frame, image_seed, generator)
        return OccupancyBatch(
            images=torch.from_numpy(images).permute(0, 1, 4, 2, 3)[None],
            ego2img=ego2img.float()[None],
            tokens=[frame.token],
            shots=[[_name(shot) for shot in shots]],
            semantics=semantics,
            instances=instances,
            photometric=draw,
            intrinsics=intrinsics.float()[None],
            image_transforms=transforms.float()[None],
            grid_transforms=turn.matrix().float()[None],
            rays=None if made is None else made.rays,
            motion=None if made is None else made.motion,
        )

    def images_of(self, token: str) -> Tensor:
        """The unaugmented images of a key frame by its token: uint8 [V, 3, H, W], in memory channels last.

        Raises:
            ValueError: a file is missing or damaged.
        """
        shot, image = self.history.current(token), self.sampling.image
        images = np.zeros((len(self.cameras), image.height, image.width, 3), np.uint8)
        for v, name in enumerate(self.cameras):
            camera = self._camera(shot, name)
            if camera is not None:
                images[v] = self._pixels(camera, image.for_test(*camera.size), {})
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def ray_frame(self, frame: Frame) -> RayFrame:
        """What a key frame gives to rays; its pictures need not exist.

        Raises:
            ValueError: no `rays`, or a file is missing or damaged.
        """
        if self.rays is None:
            raise ValueError("the dataset makes no rays: give it a RayReader")
        shot = key_shot(frame)
        cameras = [shot.cameras.get(name) for name in self.cameras]
        return ray_frame(frame, self.rays.lidar, cameras, self.grid2global(frame), self.rays.taxonomy)

    def _rays(self, frame: Frame, image_seed: int | None, generator: torch.Generator | None) -> RaySample:
        assert self.rays is not None
        image, config = self.sampling.image, self.rays.config
        near = [self.history.neighbour(frame.token, offset) for offset in config.frame_offsets]
        frames = [None if neighbour is None else self.ray_frame(neighbour) for neighbour in near]
        cameras = [frame.cameras[name] if name in frame.cameras.names else None for name in self.cameras]
        matrices = [
            torch.eye(4, dtype=torch.float64)
            if camera is None
            else self._image_transform((camera.height, camera.width), image_seed, v).matrix()
            for v, camera in enumerate(cameras)
        ]
        window = InputWindow(torch.stack(matrices), image.height, image.width)
        # Outside of training all depends on the frame alone.
        generator = generator if self.sampling.training else torch.Generator().manual_seed(0)
        with about(f"sample {frame.token}"):
            return build_rays(frames, config, self.grid, window, generator)

    def _camera(self, shot: Shot, name: str) -> ShotCamera | None:
        """A camera of a shot, None where it has no picture."""
        camera = shot.cameras.get(name)
        if camera is not None and self.sampling.allow_missing_files and not camera.path.is_file():
            return None
        return camera

    def _pixels(self, camera: ShotCamera, transform: ImageTransform, loaded: dict[Path, np.ndarray]) -> np.ndarray:
        if camera.path not in loaded:
            draft, decoder = self.sampling.draft, self.sampling.decoder
            loaded[camera.path] = load_image(camera.path, camera.size, transform, draft, decoder)
        return loaded[camera.path]

    def _image_transform(self, size: tuple[int, int], image_seed: int | None, view: int) -> ImageTransform:
        if image_seed is None:
            return self.sampling.image.for_test(*size)
        return self.sampling.image.draw(*size, image_generator(image_seed, view, self.sampling.image))

    def grid2global(self, frame: Frame) -> Tensor:
        """From the grid's frame to the one that camera poses end in, float64 [4, 4]."""
        ego2global = torch.eye(4, dtype=torch.float64) if frame.ego2global is None else frame.ego2global
        if self.grid.frame == "ego":
            return ego2global
        if frame.lidar2ego is None:
            raise ValueError(f"sample {frame.token}: the grid lies in the lidar frame, but lidar2ego is unknown")
        return ego2global @ frame.lidar2ego

    def _labels(self, frame: Frame, turn: GridTransform) -> tuple[Tensor | None, Tensor | None]:
        found = None if self.labels is None else self.labels(frame)
        if found is None:
            return None, None
        for name, values in (("semantics", found.semantics), ("instances", found.instances)):
            if values is not None and tuple(values.shape) != self.grid.shape:
                raise ValueError(
                    f"sample {frame.token}: {name} of shape {tuple(values.shape)}, the grid has {self.grid.shape}"
                )
        semantics = transform_labels(found.semantics, self.grid, turn)[None]
        if found.instances is None:
            return semantics, None
        # What is turned into view is unknown in the classes and no object in the instances.
        return semantics, transform_labels(found.instances.int(), self.grid, turn, fill=0)[None]


class KeyImages(Mapping[str, Tensor]):
    """Images of a dataset's key frames by token, read when asked for: what `OnlinePredictor` falls back on.

    Args:
        dataset: whose frames.
        device: where the images go.

    Example:
        >>> for batch in loader:  # of a dataset with Sampling(current_only=True)
        ...     grids = online(batch.shots, KeyImages(dataset, "cuda"), batch.ego2img)
    """

    def __init__(self, dataset: OccupancyFrames, device: torch.device | str = "cpu"):
        self.dataset, self.device = dataset, device
        self._tokens = {frame.token: None for frame in dataset.frames}

    def __getitem__(self, token: str) -> Tensor:
        if token not in self._tokens:
            raise KeyError(token)
        return self.dataset.images_of(token).to(self.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._tokens  # without reading the images


def _projection(camera: ShotCamera, transform: ImageTransform) -> Tensor:
    """From the global frame to (u*z, v*z, z, 1) of the network's input, float64 [4, 4]."""
    projection = torch.eye(4, dtype=torch.float64)
    projection[:3, :3] = camera.intrinsics
    return transform.matrix() @ projection @ invert_rigid(camera.cam2global)


def _name(shot: Shot) -> str:
    """The key frame's token, or for a sweep its first picture's path."""
    return shot.token if shot.token is not None else str(next(iter(shot.cameras.values())).path)


def _published_order(names: Sequence[str]) -> list[str]:
    known = [name for name in SPARSEOCC_CAMERAS if name in names]
    return known + [name for name in names if name not in SPARSEOCC_CAMERAS]


def index_generator(seed: int, index: int) -> torch.Generator:
    """A generator whose numbers have nothing to do with those of the neighbouring indices."""
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def image_generator(image_seed: int, view: int, augmentation: ImageAugmentation) -> torch.Generator:
    """The generator of a view's image transform: the sample's, or with `per_camera` one of its own."""
    if augmentation.per_camera:
        return index_generator(image_seed, view)
    return torch.Generator().manual_seed(image_seed)


def shuffled_round(seed: int, epoch: int, frames: int, rounds: int) -> list[int]:
    """Indices of one round of `frames` samples in an order of the epoch's own; after the last round the first."""
    start = epoch % rounds * frames
    return (torch.randperm(frames, generator=index_generator(seed, -1 - epoch)) + start).tolist()
