"""Codes of the occupancy at the ControlNet's input: what a cell is told, and a first layer of equal size for each.

A code turns an MPI into features of a cell; `CodedEncoder` puts its first layers behind it and takes the place of
`controlnet.controlnet_cond_embedding`, in training and in the pipeline.

Legend: N views, D planes, h w cells, C channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from syntheocc.models.controlnet_mpi import EncodedCondition
from syntheocc.models.mpi_encoder import MPIEncoder, nearest_class
from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY as TABLE

__all__ = ["ARMS", "CodedEncoder", "samples_per_cell"]

PLANES = 256


def nearest_plane(labels: Tensor) -> Tensor:
    """Index int64 [N, h, w] of the nearest occupied plane of labels [N, D, h, w]; 0 where there is none."""
    return (labels != TABLE.free).to(torch.uint8).argmax(1)


def depth_of(labels: Tensor) -> Tensor:
    """Depth [N, 1, h, w] of the nearest occupied plane, 1/D .. 1, and 0 where there is none."""
    hit = (labels != TABLE.free).any(1)
    return torch.where(hit, (nearest_plane(labels) + 1) / labels.shape[1], 0.0)[:, None]


def rgb(labels: Tensor) -> Tensor:
    """Palette colours [N, 3, h, w] in 0..1 of the nearest classes."""
    colors = torch.from_numpy(TABLE.colors()).to(labels.device).float() / 255
    return colors[nearest_class(labels, TABLE.free).int()].movedim(-1, 1)


def rgb_depth(labels: Tensor) -> Tensor:
    """Palette colours and depth, [N, 4, h, w]."""
    return torch.cat([rgb(labels), depth_of(labels)], 1)


def first_hit(labels: Tensor) -> Tensor:
    """One-hot nearest class and depth, [N, 18, h, w]."""
    one_hot = nn.functional.one_hot(nearest_class(labels, TABLE.free).long(), TABLE.num_classes)
    return torch.cat([one_hot.movedim(-1, 1).float(), depth_of(labels)], 1)


def scalar(labels: Tensor) -> Tensor:
    """Class ids as numbers, near to far, then the nearest: [N, D+1, h, w], as the released weights read them."""
    return torch.cat([labels, nearest_class(labels, TABLE.free)[:, None]], 1).float()


def only_visible(labels: Tensor) -> Tensor:
    """Labels [N, D, h, w] with all cells behind the first occupied one of each ray free."""
    planes = torch.arange(labels.shape[1], device=labels.device)[:, None, None]
    return labels.masked_fill(planes != nearest_plane(labels)[:, None], TABLE.free)


# Channels and function of the dense codes; the others are made by MPIEncoder's embedding.
DENSE: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "rgb": (3, rgb),
    "rgb_depth": (4, rgb_depth),
    "first_hit": (TABLE.num_classes + 1, first_hit),
    "scalar": (PLANES + 1, scalar),
}
EMBEDDED: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda labels: torch.full_like(labels, TABLE.free),
    "categorical": lambda labels: labels,
    "categorical_visible": only_visible,
    "categorical_spc4": lambda labels: labels,
}
# Shared by ranks in turns: on four, each gets one dense and one embedded code.
ARMS = ("none", "rgb", "rgb_depth", "first_hit", "scalar", "categorical", "categorical_visible", "categorical_spc4")


def samples_per_cell(arm: str) -> int:
    """How many rays a cell the arm's MPIs are rendered with."""
    return 4 if arm.endswith("_spc4") else 1


class CodedEncoder(nn.Module):
    """A code with its first layers, in place of a ControlNet's MPI encoder.

    Dense codes go through 1x1 - ReLU - 1x1 whose hidden width makes as many parameters as the embedded ones have.

    Args:
        arm: one of `ARMS`.
        out_channels: C, of the ControlNet's first convolution.

    Raises:
        ValueError: an unknown arm.
    """

    num_planes = PLANES

    def __init__(self, arm: str, out_channels: int):
        super().__init__()
        if arm not in ARMS:
            raise ValueError(f"no arm is named {arm!r}; known: {', '.join(ARMS)}")
        self.arm = arm
        embedded = (PLANES + 1) * TABLE.num_classes * out_channels + 2 * (out_channels + 1) * out_channels
        #: Factor on the learning rate of the widened layer's weights, by fan-in as muP has it (Yang et al. 2022): with
        #: Adam a layer that is a hundred times as wide would otherwise move its output a hundred times as fast.
        self.rate_of_wide_layer = 1.0
        if arm in DENSE:
            channels, self.code = DENSE[arm]
            hidden = round((embedded - out_channels) / (channels + 1 + out_channels))
            self.rate_of_wide_layer = out_channels / hidden
            self.layers = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, out_channels, 1))
        else:
            self.code = EMBEDDED[arm]
            self.layers = MPIEncoder("categorical", PLANES, TABLE.num_classes, TABLE.free, out_channels)

    def forward(
        self, labels: Tensor | EncodedCondition, nearest: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Features [N, C, h, w] of labels uint8 [N, D, h, w], or [N, D+1, h, w] with the nearest class last.

        The nearest class is always found in the labels, so that it is that of the arm's own samples a cell.
        """
        if isinstance(labels, EncodedCondition):
            return labels.features
        labels = labels[:, :PLANES]
        coded = self.code(labels)
        if self.arm in DENSE:
            return self.layers(coded.to(dtype or self.layers[0].weight.dtype))
        return self.layers(coded, None, dtype)
