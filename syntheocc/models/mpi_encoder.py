"""From a semantic multi-plane image to the features that are added to the ControlNet's first convolution.

Two codes for the class ids of an MPI: "scalar", the id as a number, which is how the released weights were trained,
and "categorical", a learned vector for every (plane, class). Class ids have no order, so a number is a poor code.

Legend: N images (samples x frames x views), D planes near to far, h w latent pixels, C features, M occupied cells.
"""

from typing import Literal

import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it in the module that a saved class names)
from torch import Tensor, nn
from torch.nn import functional as F

from syntheocc.models.ops.plane_embedding import plane_embedding
from syntheocc.occupancy.taxonomy import UNKNOWN


class MPIEncoder(nn.Module):
    """1x1 convolutions over the planes of an MPI; no mixing between pixels.

    * "scalar" (as released): Conv1x1(D+1 -> C) - ReLU - Conv1x1(C -> C) on raw class ids in D planes and, last, the
      class of the nearest non-free plane. Parameters `position_encoder.0` and `.2`.
    * "categorical": a vector [C] for every (plane, class) with the nearest class as plane D, summed over the non-free
      planes of a pixel; then the same two layers. Free cells contribute nothing, so an all-free MPI (the null
      condition of guidance) is the same for every view. The sum equals a 1x1 convolution of the one-hot MPI (see
      `embed_dense`) and is computed over the occupied cells only, about 2 % of them.

    Neither is initialised to zero: the ControlNet's own zero convolutions make it a no-op at first.

    Args:
        kind: "scalar" or "categorical".
        num_planes: D, 256 or the number of groups.
        num_classes: number of class ids, the free class included.
        free_class: id of the free class.
        out_channels: C, the channels of the ControlNet's first convolution.

    """

    def __init__(
        self,
        kind: Literal["scalar", "categorical"] = "categorical",
        num_planes: int = 256,
        num_classes: int = 17,
        free_class: int = 0,
        out_channels: int = 320,
    ):
        super().__init__()
        if kind not in ("scalar", "categorical"):
            raise ValueError(f"encoder kind must be 'scalar' or 'categorical', got {kind!r}")
        if not 0 <= free_class < num_classes <= UNKNOWN:
            raise ValueError(f"free_class {free_class} is not one of {num_classes} class ids (at most {UNKNOWN})")
        if kind == "scalar" and free_class != 0:
            raise ValueError(
                f"a scalar encoder reads class ids as numbers, so free must be 0, not {free_class}: map the labels to "
                "the 'syntheocc' taxonomy or use kind='categorical'"
            )
        self.kind = kind
        self.num_planes = num_planes
        self.num_classes = num_classes
        self.free_class = free_class
        self.out_channels = out_channels
        layers = num_planes + 1
        if kind == "categorical":
            # 2.2 % of the cells are occupied (measured on nuScenes): unit variance for the sum over a usual pixel.
            std = (0.022 * num_planes + 1) ** -0.5
            self.plane_class_embedding = nn.Parameter(torch.empty(layers * num_classes, out_channels).normal_(0, std))
        self.position_encoder = nn.Sequential(
            nn.Conv2d(layers if kind == "scalar" else out_channels, out_channels, kernel_size=1),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, kernel_size=1),
        )

    def forward(self, labels: Tensor, nearest: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Encode MPIs.

        Args:
            labels: class ids [N, D, h, w], planes near to far, or [N, D+1, h, w] with the nearest class as the last
                plane (the layout of the released files). "categorical" wants integers, "scalar" takes floats too.
            nearest: class ids [N, h, w] of the nearest non-free plane; default: the last plane of `labels`, or found
                in `labels`.
            dtype: to compute in; default: that of the weights. They differ where weights are only stored in float8.

        Returns:
            [N, C, h, w] in `dtype`.

        Raises:
            ValueError: wrong shape or dtype, or an id that is no class ("categorical" only).

        """
        layers = self.with_nearest(labels, nearest)
        if dtype is None:
            dtype = next(self.position_encoder.parameters()).dtype
        features = layers if self.kind == "scalar" else self.embed_sparse(layers, dtype)
        return self.position_encoder(features.to(dtype))

    def with_nearest(self, labels: Tensor, nearest: Tensor | None = None) -> Tensor:
        """Return [N, D+1, h, w]: the planes near to far, then the class of the nearest non-free plane."""
        if labels.ndim != 4 or labels.shape[1] not in (self.num_planes, self.num_planes + 1):
            raise ValueError(
                f"an MPI of {self.num_planes} planes is [N, {self.num_planes}, h, w], or [N, {self.num_planes + 1}, "
                f"h, w] with the nearest class last; got {tuple(labels.shape)}"
            )
        if labels.shape[1] == self.num_planes + 1:
            if nearest is not None:
                raise ValueError(f"labels {tuple(labels.shape)} hold the nearest class already; do not give it twice")
            return labels
        if nearest is None:
            nearest = nearest_class(labels, self.free_class)
        if nearest.shape != labels[:, 0].shape:
            raise ValueError(f"nearest is {tuple(nearest.shape)}, but labels are {tuple(labels.shape)}")
        return torch.cat([labels, nearest[:, None].to(labels.dtype)], dim=1)

    def embed_sparse(self, layers: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Sum the (plane, class) vectors of every pixel over the occupied cells, in float32 whatever the weights are.

        Waits for the device twice (the number of occupied cells, and the check of their ids), which is once per
        generation. In training on a GPU a kernel does not (syntheocc.models.ops.plane_embedding); ids that are no
        class then give NaN.

        Args:
            layers: integer class ids [N, D+1, h, w].
            dtype: of the result; default: that of the weights.

        Returns:
            [N, C, h, w], channels last in memory.

        """
        if layers.is_floating_point():
            raise ValueError(f"a categorical encoder needs integer class ids, got {layers.dtype}")
        table = self.plane_class_embedding.unflatten(0, (-1, self.num_classes))
        try:
            return plane_embedding(layers, table, self.free_class, dtype or table.dtype)
        except ValueError as error:
            raise ValueError(
                f"the MPI's {error}: map the grid to the ControlNet's taxonomy first ({UNKNOWN}, unknown, counts as "
                "free)"
            ) from None

    def embed_dense(self, layers: Tensor) -> Tensor:
        """Return what `embed_sparse` returns, as a matrix product with the one-hot MPI. Slow reference for tests."""
        one_hot = F.one_hot(layers.permute(0, 2, 3, 1).long(), self.num_classes).float()  # [N, h, w, D+1, classes]
        one_hot[..., self.free_class] = 0
        features = one_hot.flatten(-2) @ self.plane_class_embedding.float()
        return features.to(self.plane_class_embedding.dtype).permute(0, 3, 1, 2)


def nearest_class(labels: Tensor, free_class: int) -> Tensor:
    """Return the class [N, h, w] of the nearest non-free plane of `labels` [N, D, h, w]; free where there is none."""
    # argmax of equal values gives the first one on every device; all-free pixels give plane 0, which is free too.
    nearest_plane = (labels != free_class).to(torch.uint8).argmax(dim=1, keepdim=True)
    return labels.gather(1, nearest_plane)[:, 0]
