"""One training step of SparseOcc as one module: a batch to its losses."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from syntheocc.occupancy.perception.dataset import OccupancyBatch
from syntheocc.occupancy.perception.photometric import apply_photometric
from syntheocc.occupancy.perception.sparseocc.model import SparseOcc


class SparseOccStep(nn.Module):
    """What a training loop wraps and calls: ``step_module(batch, step=..., positions=...)["loss"].backward()``.

    Args:
        model: what is trained.
        generator_of: (step, position in the global batch, device) -> the generator of that sample's random points and
            dropout, so that they do not depend on how a batch is divided; None draws from torch's own.
    """

    def __init__(
        self,
        model: SparseOcc,
        generator_of: Callable[[int, int, torch.device], torch.Generator] | None = None,
    ):
        super().__init__()
        self.model = model
        self.generator_of = generator_of

    def forward(self, batch: OccupancyBatch, step: int, positions: Sequence[int]) -> dict[str, Tensor]:
        """All loss terms and "loss", their sum; colours change here, on the batch's device.

        Args:
            batch: with ground truth, and instances for a panoptic model.
            step: the optimizer step.
            positions: of the batch's samples in the global batch.

        Raises:
            ValueError: a batch without ground truth.
        """
        if batch.semantics is None:
            raise ValueError(f"samples {', '.join(batch.tokens)} have no ground truth to learn from")
        images = batch.images
        if batch.photometric is not None:
            changed = apply_photometric(images.flatten(0, 2), batch.photometric)
            images = self.model.normalise(changed).unflatten(0, images.shape[:3])
        generators = None
        if self.generator_of is not None:
            generators = [self.generator_of(step, position, images.device) for position in positions]
        output = self.model(images, batch.ego2img, generators)
        return self.model.losses(output, batch.semantics, batch.instances)
