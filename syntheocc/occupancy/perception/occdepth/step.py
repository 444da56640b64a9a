"""One training step of OccDepth as one module: a batch to its losses."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from syntheocc.occupancy.perception.occdepth.batch import StereoBatch
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras
from syntheocc.occupancy.perception.occdepth.model import OccDepth, OccDepthOutput

__all__ = ["OccDepthStep"]


class OccDepthStep(nn.Module):
    """What a training loop wraps and calls: ``step_module(batch, step=..., positions=...)["loss"].backward()``.

    Losses are computed for each sample and averaged, as in the published runs of one sample a GPU: the curve does not
    depend on how a batch is divided (with `share_batch_norms`, for batch norms see the whole batch).

    Args:
        model: what is trained.
        sem_decay_steps: steps over which the semantic affinity loss falls evenly to `LEAST_SEM` of it; None: it stays.
    """

    LEAST_SEM = 0.1

    def __init__(self, model: OccDepth, sem_decay_steps: int | None = None):
        super().__init__()
        self.model, self.sem_decay_steps = model, sem_decay_steps

    def forward(self, batch: StereoBatch, step: int, positions: Sequence[int]) -> dict[str, Tensor]:
        """All loss terms and "loss", their sum.

        Args:
            batch: with ground truth.
            step: the optimizer step.
            positions: of the batch's samples in the global batch.

        Raises:
            ValueError: a batch without ground truth, or without what the config learns from.
        """
        output = self.model(batch.images, StereoCameras.of_batch(batch), batch.depth)
        parts = [self.model.losses(_sample_of(output, i), _sample_of_batch(batch, i)) for i in range(len(batch))]
        losses = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        if self.sem_decay_steps is not None and "sem_scal" in losses:
            share = max(self.LEAST_SEM, 1 - step / self.sem_decay_steps)
            losses["loss"] = losses["loss"] - (1 - share) * losses["sem_scal"]
            losses["sem_scal"] = share * losses["sem_scal"]
        return losses


def _sample_of(output: OccDepthOutput, index: int) -> OccDepthOutput:
    return OccDepthOutput(*(None if value is None else value[index : index + 1] for value in output))  # type: ignore


def _sample_of_batch(batch: StereoBatch, index: int) -> StereoBatch:
    values: dict[str, Any] = {f.name: getattr(batch, f.name) for f in fields(StereoBatch)}
    own: dict[str, Any] = {name: None if v is None else v[index : index + 1] for name, v in values.items()}
    return StereoBatch(**own)
