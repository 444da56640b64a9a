"""The part of a picture that the network sees: its upper left window, at full size or scaled.

The published networks crop (KITTI's sequences differ by a few rows and columns) and do not resize. Networks for
smaller pictures scale first. Pixels are those of OpenCV: a scaled picture's pixel u lies at (u + 0.5) / scale - 0.5.
"""

import numpy as np
import torch
from torch import Tensor

from syntheocc.occupancy.perception.transforms import ImageTransform

__all__ = ["input_window", "through_window", "window_matrix"]

# A picture that is larger than the network's input by fewer pixels than this on each side is cropped and not scaled.
CROP = 32


def input_window(size: tuple[int, int], image_size: tuple[int, int], flip: bool = False) -> ImageTransform:
    """The window of a picture.

    Args:
        size: height and width of the picture.
        image_size: H, W of the network's input.
        flip: mirror the window.

    Returns:
        at scale 1 where that cuts off fewer than 32 pixels a side, else the smallest scale that fills the window.
    """
    beyond = [have - want for have, want in zip(size, image_size, strict=True)]
    scale = (
        1.0 if all(0 <= extra < CROP for extra in beyond) else max(image_size[0] / size[0], image_size[1] / size[1])
    )
    return ImageTransform(scale, 0, 0, *image_size, flip)


def window_matrix(window: ImageTransform, size: tuple[int, int]) -> Tensor:
    """(u*z, v*z, z, 1) of the picture to those of the window: float64 [4, 4]."""
    height, width = window.scaled_size(*size)
    x, y = width / size[1], height / size[0]
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 0], matrix[0, 2] = x, 0.5 * x - 0.5 - window.left
    matrix[1, 1], matrix[1, 2] = y, 0.5 * y - 0.5 - window.top
    if window.flip:
        matrix[0] = -matrix[0]
        matrix[0, 2] += window.width - 1
    return matrix


def through_window(values: np.ndarray, window: ImageTransform) -> np.ndarray:
    """A depth picture [H, W] as the network sees the picture: the nearest pixels; 0 beyond the picture."""
    height, width = window.scaled_size(*values.shape)
    out = np.zeros((window.height, window.width), values.dtype)
    if (height, width) == values.shape:
        part = values[window.top : window.top + window.height, window.left : window.left + window.width]
        out[: part.shape[0], : part.shape[1]] = part
    else:
        rows = ((np.arange(window.height) + window.top + 0.5) * values.shape[0] / height).astype(np.int64)
        columns = ((np.arange(window.width) + window.left + 0.5) * values.shape[1] / width).astype(np.int64)
        inside_y, inside_x = rows < values.shape[0], columns < values.shape[1]
        out[np.ix_(inside_y, inside_x)] = values[np.ix_(rows[inside_y], columns[inside_x])]
    return np.ascontiguousarray(out[:, ::-1]) if window.flip else out
