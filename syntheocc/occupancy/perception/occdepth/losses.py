"""The eight losses of OccDepth, each finite whatever the labels hold (specs/occdepth.md 2.9, 2.4).

Legend: B samples, C classes, D depth bins, X Y Z voxels, H W picture, h w feature map.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from syntheocc.occupancy.constants import constant
from syntheocc.occupancy.losses import (
    frustum_proportion_loss,
    relation_loss,
    scene_cross_entropy,
    scene_scal_losses,
)
from syntheocc.occupancy.perception.depth_supervision import depth_bin_loss
from syntheocc.occupancy.perception.occdepth.batch import StereoBatch
from syntheocc.occupancy.perception.occdepth.config import OccDepthConfig
from syntheocc.occupancy.perception.occdepth.depth_bins import loss_bins
from syntheocc.occupancy.taxonomy import UNKNOWN

if TYPE_CHECKING:
    from syntheocc.occupancy.perception.occdepth.model import OccDepthOutput

__all__ = ["cell_depths", "occdepth_losses"]

DEPTH_STRIDE = 8


def cell_depths(
    depth: Tensor,  # [..., H, W]
    stride: int = DEPTH_STRIDE,
) -> Tensor:
    """The nearest depth of each cell of stride x stride pixels: [..., ceil(H / stride), ceil(W / stride)].

    Args:
        depth: metres, 0 none; published, the picture is stretched to whole cells first, here its cells stay in place.
        stride: of the feature map.

    Returns:
        metres; infinite where no pixel of a cell has a depth.
    """
    height, width = depth.shape[-2:]
    far = torch.where(depth > 0, depth, torch.inf)
    far = F.pad(far, (0, -width % stride, 0, -height % stride), value=torch.inf)
    return -F.max_pool2d(-far.flatten(0, -3)[:, None], stride)[:, 0].unflatten(0, depth.shape[:-2])


def occdepth_losses(output: "OccDepthOutput", batch: StereoBatch, config: OccDepthConfig) -> dict[str, Tensor]:
    """The terms that the config asks for and the batch has labels for, and "loss", their sum.

    "ssc", "occupancy", "sem_scal", "geo_scal", "frustum", "relation", "depth" and "occluded". All are computed in
    float32, and over the batch as a whole.

    Args:
        output: of the model.
        batch: with ground truth.
        config: of the model.

    Raises:
        ValueError: a batch without the labels that a term of the config learns from, or with those of another grid or
            another taxonomy.
    """
    labels = _checked_labels(batch, config)
    names, free = ", ".join(batch.tokens), config.taxonomy.free
    logits = output.logits.float()
    losses: dict[str, Tensor] = {}
    with torch.autocast(logits.device.type, enabled=False):
        if config.cross_entropy_loss:
            losses["ssc"] = scene_cross_entropy(logits, labels, _weights(config.class_weights, logits), UNKNOWN)
            if output.occupancy_logits is not None:
                occupied = torch.where(labels == UNKNOWN, UNKNOWN, (labels != free).to(labels.dtype))
                weights = _weights(config.occupancy_weights, logits)
                losses["occupancy"] = scene_cross_entropy(output.occupancy_logits.float(), occupied, weights, UNKNOWN)
        if config.sem_scal_loss or config.geo_scal_loss or config.frustum_loss:
            probabilities = logits.softmax(1)
            geometric, semantic = scene_scal_losses(probabilities, labels, free, UNKNOWN)
            losses |= {"sem_scal": semantic} if config.sem_scal_loss else {}
            losses |= {"geo_scal": geometric} if config.geo_scal_loss else {}
            if config.frustum_loss:
                if batch.frustums is None:
                    raise ValueError(f"samples {names} come without the tiles that the frustum loss needs")
                tiles = config.frustum_tiles**2
                losses["frustum"] = frustum_proportion_loss(probabilities, labels, batch.frustums, tiles)
        if output.relation_logits is not None and config.relation_loss:
            if batch.coarse is None:
                raise ValueError(f"samples {names} come without the coarse labels that the relation prior learns from")
            coarse = batch.coarse.permute(0, *(axis + 1 for axis in config.axes))
            losses["relation"] = relation_loss(
                output.relation_logits.float(), coarse, config.taxonomy.num_classes, free
            )
        if output.depth_logits is not None and config.depth_loss_weight and batch.depth is not None:
            cells = cell_depths(batch.depth)
            found = output.depth_logits[:, : cells.shape[1]]
            bins = loss_bins(config.depth, config.depth_spacing)
            losses["depth"] = config.depth_loss_weight * depth_bin_loss(found, cells, bins)
        if output.occluded_logits is not None:
            if batch.occluded is None:
                raise ValueError(f"samples {names} come without the occluded voxels that the config learns from")
            losses["occluded"] = scene_cross_entropy(output.occluded_logits.float(), batch.occluded.to(torch.uint8))
    return {**losses, "loss": torch.stack(list(losses.values())).sum()}


def _checked_labels(batch: StereoBatch, config: OccDepthConfig) -> Tensor:
    if batch.semantics is None:
        raise ValueError(f"samples {', '.join(batch.tokens)} have no ground truth to learn from")
    if tuple(batch.semantics.shape[1:]) != config.grid.shape:
        raise ValueError(f"labels are {list(batch.semantics.shape)}, the model's grid is {list(config.grid.shape)}")
    if batch.semantics.is_cuda:
        return batch.semantics  # asking for the highest label would wait for the device
    highest = int(batch.semantics.masked_fill(batch.semantics == UNKNOWN, 0).max())
    if highest >= config.taxonomy.num_classes:
        raise ValueError(
            f"the labels hold class {highest}, but taxonomy {config.taxonomy.name!r} ends at "
            f"{config.taxonomy.num_classes - 1}; are they another dataset's numbering?"
        )
    return batch.semantics


def _weights(values: tuple[float, ...] | None, like: Tensor) -> Tensor | None:
    return None if values is None else constant(values, like)
