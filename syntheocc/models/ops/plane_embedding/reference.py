"""Sum of the (plane, class) vectors of every pixel of an MPI, in plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def plane_embedding(
    layers: Tensor,  # integer [N, D, h, w]
    table: Tensor,  # [D, classes, C]
    free_class: int,
    dtype: torch.dtype,
) -> Tensor:
    """An embedding bag over the occupied cells, [N, C, h, w]; waits for the device to tell their number."""
    num_images, num_layers, height, width = layers.shape
    pixels = layers.permute(0, 2, 3, 1).reshape(-1, num_layers)  # [N*h*w, D]
    occupied = pixels != free_class
    pixel, plane = occupied.nonzero().unbind(1)  # [M], sorted by pixel
    class_id = pixels[pixel, plane].long()  # [M]
    num_classes = table.shape[1]
    if class_id.numel() and not bool(((class_id >= 0) & (class_id < num_classes)).all()):
        raise ValueError(f"class id {int(class_id.max())} is not one of 0..{num_classes - 1}")
    count = occupied.sum(1)  # [N*h*w]
    bags = F.embedding_bag(
        plane * num_classes + class_id, table.float().flatten(0, 1), offsets=count.cumsum(0) - count, mode="sum"
    )
    return bags.to(dtype).view(num_images, height, width, -1).permute(0, 3, 1, 2)
