"""SparseOcc over a drive: every image goes through the image network once, whatever the order of the samples.

Legend: B samples, T frames (the current one first), V views, D channels, h w of a feature map.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from syntheocc.engine.graphs import RecordedCall, signature
from syntheocc.occupancy.perception.prediction import OccupancyPrediction
from syntheocc.occupancy.perception.sparseocc.model import SparseOcc


class OnlinePredictor:
    """Predicts with feature maps remembered by frame.

    A frame is one moment's images of all cameras, named by any hashable token. Maps depend on the images alone (the
    motion between frames is in ego2img), so the predictions are those of `SparseOcc.predict` on all images at once,
    for batches of any size, samples in any order, several drives at a time.

    Args:
        model: in evaluation mode. Call `clear` after its weights change.
        capacity: frames to remember; the least recently used go first. None remembers what four samples need.
        cuda_graph: record the work on the device once for every shape of images and batch, and replay it: for batches
            of one, launching the kernels takes longer than running them. On a GPU only, ignored elsewhere. `clear`
            drops the recordings too.

    Raises:
        ValueError: a capacity below one sample's frames.

    Example:
        >>> online = OnlinePredictor(model)
        >>> for token, images, history, ego2img in drive:  # images [V, 3, H, W], history: newest first
        ...     grids = online([[token, *history]], {token: images}, ego2img[None])
    """

    def __init__(self, model: SparseOcc, capacity: int | None = None, cuda_graph: bool = False):
        frames = model.config.num_frames
        self.model = model
        self.capacity = 4 * frames if capacity is None else capacity
        if self.capacity < frames:
            raise ValueError(f"capacity {self.capacity} holds less than one sample's {frames} frames")
        self.cuda_graph = cuda_graph
        self._maps: OrderedDict[Hashable, list[Tensor]] = OrderedDict()
        self._recordings: dict[tuple, RecordedCall] = {}

    def __len__(self) -> int:
        return len(self._maps)

    def __contains__(self, token: Hashable) -> bool:
        """Whether a frame is remembered; its images need not be given again."""
        return token in self._maps

    def clear(self) -> None:
        """Forget all frames, and recordings."""
        self._maps.clear()
        self._recordings.clear()

    @torch.no_grad()
    def __call__(
        self,
        tokens: Sequence[Sequence[Hashable]],
        images: Mapping[Any, Tensor],
        ego2img: Tensor,
    ) -> OccupancyPrediction:
        """Predict a batch.

        Args:
            tokens: for each of B samples its frames, the current one first. A short history is filled by repeating
                its last frame.
            images: token -> [V, 3, H, W] as `SparseOcc.encode` takes them, read only for frames not remembered; a
                mapping that loads on demand will do.
            ego2img: [B, T, V, 4, 4], see `SparseOcc.decode`.

        Raises:
            ValueError: a frame is neither remembered nor given, a sample without frames or with too many, or the model
                is in training mode.
        """
        if self.model.training:
            raise ValueError("predictions need model.eval(): while training, voxels and points are drawn at random")
        frames = self.model.config.num_frames
        for sample in tokens:
            if not 0 < len(sample) <= frames:
                raise ValueError(f"a sample has 1 to {frames} frames, got {len(sample)}")
        filled = [[*sample, *[sample[-1]] * (frames - len(sample))] for sample in tokens]
        wanted = list(dict.fromkeys(token for sample in filled for token in sample))
        new = [token for token in wanted if token not in self._maps]
        # Frame by frame: a mapping may hold any of them, and one that is missing must be named before work starts.
        if absent := [token for token in new if token not in images]:
            raise ValueError(
                f"frame {absent[0]!r} is neither remembered nor among the given images; after a jump in the drive "
                "give the images of the whole history"
            )
        for token in new:
            self._maps[token] = list(self._run("encode", [images[token]]))
        for token in wanted:
            self._maps.move_to_end(token)
        stacked = [
            torch.stack([torch.stack([self._maps[token][level] for token in sample]) for sample in filled])
            for level in range(self.model.config.num_levels)
        ]
        while len(self._maps) > self.capacity:
            self._maps.popitem(last=False)
        semantics, instances = self._run("decode", [*stacked, ego2img])
        return OccupancyPrediction(self.model.config.grid, self.model.config.taxonomy, semantics, instances)

    def _run(self, name: str, tensors: list[Tensor]) -> tuple:
        """One of the two halves, from a recording where that is wanted."""
        function = self._encode if name == "encode" else self._decode
        if not self.cuda_graph or not all(tensor.is_cuda for tensor in tensors):
            return function(*tensors)
        key = (name, signature(tensors))
        if key not in self._recordings:
            self._recordings[key] = RecordedCall(function, tensors, constant=False)
        return self._recordings[key](tensors)

    def _encode(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode(images))

    def _decode(self, *tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        *maps, ego2img = tensors
        grids = self.model.grids(self.model.decode(list(maps), ego2img))
        return grids.semantics, grids.instances
