"""Samples of OccDepth, one frame each, for training and for prediction.

The cost of a sample is that of decoding its pictures: the tiles that voxels fall into are the same for all frames of a
recording and remembered, targets of both scales are made of the data set's own files on the fly, and what is left to
do (projection, relation labels) is done on the model's device.

Legend: I pictures, V projections, H W network input, X Y Z voxels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.perception.dataset import FrameRounds
from syntheocc.occupancy.perception.images import load_image
from syntheocc.occupancy.perception.occdepth.augmentation import (
    StereoAugmentation,
    StereoDraw,
    apply_colours,
    apply_strong,
)
from syntheocc.occupancy.perception.occdepth.batch import StereoBatch
from syntheocc.occupancy.perception.occdepth.frustums import ProjectionCache, frustum_tiles
from syntheocc.occupancy.perception.occdepth.sources import StereoSource, View
from syntheocc.occupancy.perception.occdepth.virtual_view import beside
from syntheocc.occupancy.perception.occdepth.windows import input_window, through_window, window_matrix

__all__ = ["StereoFrames"]


class StereoFrames(FrameRounds):
    """Samples of a source's frames; `dataset[i]` is a `StereoBatch` of one.

    A training dataset has `rounds` samples of every frame, which differ in what is drawn: index i is frame
    ``i % number of frames`` in its round ``i // number of frames``, and depends on nothing else.

    Args:
        source: the frames and what is read of them; its config is the model's.
        augmentation: of training samples; None: nothing is drawn.
        seed: of the draws.
        rounds: how many different samples there are of a frame.
        unreadable: makes what `dataset[i]` returns for a sample that cannot be read, from its token and the reason
            (the engine's `BadSample`); None lets the error through.

    Raises:
        ValueError: fewer than one round.

    Example:
        >>> frames = completion_frames("data/semantic_kitti", "train")
        >>> data = StereoFrames(stereo_source(config, frames, depth="stereo"), StereoAugmentation())
        >>> data[0].images.shape
        torch.Size([1, 2, 3, 370, 1220])
    """

    def __init__(
        self,
        source: StereoSource,
        augmentation: StereoAugmentation | None = None,
        seed: int = 0,
        rounds: int = 1,
        unreadable: Callable[[str, str], Any] | None = None,
    ):
        super().__init__(source.frames, seed, rounds, unreadable)
        self.source, self.config, self.augmentation = source, source.config, augmentation
        config = self.config
        self._tiles = ProjectionCache(
            partial(frustum_tiles, spec=config.grid, image_size=config.image_size, tiles=config.frustum_tiles)
        )
        # Of a whole row of pixels: a loop over three channels at a time would be three times as slow.
        width = config.image_size[1]
        mean, deviation = (np.tile(np.array(v, np.float32), width) for v in (config.image_mean, config.image_std))
        self._gain, self._bias = 1 / deviation, -mean / deviation

    def sample(self, frame: Frame, generator: torch.Generator | None = None) -> StereoBatch:
        """One frame's sample.

        Args:
            frame: one of the dataset's.
            generator: of the draws, with an augmentation.

        Raises:
            ValueError: a file is missing, damaged or of another size, named in the message.
        """
        views = self.source.views(frame)
        draw = StereoDraw(False, (None,) * len(views), (None,) * len(views))
        if self.augmentation is not None:
            if generator is None:
                raise ValueError("augmented samples are drawn at random: give a generator")
            draw = self.augmentation.draw(len(views), generator)
        plain, seen, intrinsics = self._projections(frame, views, draw.flip)
        origin = self.source.origin(frame)
        both = torch.linalg.inv(plain[-1])
        depth = self._depth(frame, draw.flip) if self.source.depth_kind is not None else None
        sample = StereoBatch(
            images=self._images(views, draw)[None],
            velo2img=seen[None],
            intrinsics=intrinsics[None],
            origin=origin[None],
            baseline=((plain[0] @ both)[0, 3] / intrinsics[0, 0, 0])[None],
            flipped=torch.tensor([draw.flip]),
            tokens=[frame.token],
            depth=depth,
        )
        if self.source.labels:
            self._add_truth(sample, frame, plain, origin)
        return sample

    def _images(self, views: list[View], draw: StereoDraw) -> Tensor:
        """Normalised images float32 [I, 3, H, W], channels last in memory."""
        out = np.empty((len(views), *self.config.image_size, 3), np.float32)
        images = torch.from_numpy(out).permute(0, 3, 1, 2)
        for index, (view, colours, strong) in enumerate(zip(views, draw.colours, draw.strong, strict=True)):
            size = (view.camera.height, view.camera.width)
            pixels = load_image(view.path, size, input_window(size, self.config.image_size, draw.flip), draft=False)
            if colours is not None:
                pixels = apply_colours(pixels, colours)
            rows = out[index].reshape(len(pixels), -1)
            np.multiply(pixels.reshape(len(pixels), -1), self._gain, out=rows)
            rows += self._bias
            if strong is not None:
                images[index] = apply_strong(images[index], strong)
        return images

    def _projections(self, frame: Frame, views: list[View], flip: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Grid to pixels [V, 4, 4], before a flip and as fed, and intrinsics [V, 3, 3] of the scaled pictures."""
        grid2ego = self.source.grid2ego(frame)
        plain, windows, intrinsics = [], [], []
        for view in views:
            camera = view.camera
            size = (camera.height, camera.width)
            cam2pixels = torch.eye(4, dtype=torch.float64)
            cam2pixels[:3, :3] = camera.intrinsics
            windows.append(input_window(size, self.config.image_size))
            cam2input = window_matrix(windows[-1], size) @ cam2pixels
            plain.append(cam2input @ camera.ego2cam @ grid2ego)
            intrinsics.append(cam2input[:3, :3])
        if self.config.virtual_view:
            plain.append(beside(plain[0], intrinsics[0]))
            intrinsics.append(intrinsics[0])
        projections = torch.stack(plain)
        mirror = torch.eye(4, dtype=torch.float64)
        if flip:
            mirror[0, 0], mirror[0, 2] = -1.0, self.config.image_size[1] - 1
        return projections, mirror @ projections, torch.stack(intrinsics)

    def _depth(self, frame: Frame, flip: bool) -> Tensor:
        """Depth float32 [1, D, H, W]."""
        pictures = self.source.depths(frame)
        windows = (input_window(picture.shape, self.config.image_size, flip) for picture in pictures)
        seen = [through_window(picture, window) for picture, window in zip(pictures, windows, strict=True)]
        return torch.from_numpy(np.stack(seen).astype(np.float32))[None]

    def _add_truth(self, sample: StereoBatch, frame: Frame, plain: Tensor, origin: Tensor) -> None:
        config, truth = self.config, self.source.truth(frame)
        for what, found, wanted in (
            ("labels", truth.semantics.shape, config.grid.shape),
            ("coarse labels", truth.coarse.shape, config.coarse_shape),
        ):
            if tuple(found) != tuple(wanted):
                raise ValueError(
                    f"sample {frame.token}: {what} of {tuple(found)} voxels, the model has {tuple(wanted)}"
                )
        sample.semantics = torch.from_numpy(truth.semantics)[None]
        sample.coarse = torch.from_numpy(truth.coarse)[None]
        if truth.occluded is not None:
            sample.occluded = torch.from_numpy(truth.occluded)[None]
        if config.frustum_loss:
            sample.frustums = self._tiles(plain, origin)[None]
