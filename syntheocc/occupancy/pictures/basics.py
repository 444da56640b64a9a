"""What a picture is, and the steps that all drawings share: palette, shade, blend, resample, save.

Legend: V views, H W pixels, h w cells of an MPI.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from syntheocc.occupancy.taxonomy import UNKNOWN

if TYPE_CHECKING:
    from syntheocc.occupancy.rendering.mpi import SemanticMPI
    from syntheocc.occupancy.taxonomy import Taxonomy

__all__ = [
    "BACKGROUND",
    "UNKNOWN_COLOR",
    "as_picture",
    "condition_pictures",
    "overlay",
    "palette_picture",
    "resized",
    "save_picture",
    "shaded",
    "to_array",
]

BACKGROUND = (24, 24, 28)
UNKNOWN_COLOR = (64, 64, 64)


def to_array(values: Any) -> np.ndarray:
    """A tensor of any device, or anything array-like, as a numpy array."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def as_picture(image: Any) -> np.ndarray:
    """Turn a PIL image, a torch tensor or a numpy array into a picture, uint8 [H, W, 3].

    Float values are taken as [0, 1] and rounded; a torch tensor is [3, H, W] (how models return images) or uint8
    [H, W, 3]; a numpy array is [H, W, 3], [H, W, 4] (alpha dropped) or [H, W] (grey).

    Raises:
        ValueError: for any other shape, float values outside [0, 1], or integers other than uint8.
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        if image.ndim == 3 and image.is_floating_point():
            image = image.float().permute(1, 2, 0)
        array = image.numpy()
    elif hasattr(image, "convert"):  # PIL, whatever its mode (palette, grey, alpha)
        array = np.asarray(image.convert("RGB"))
    else:
        array = np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 3 or array.shape[-1] not in (3, 4):
        raise ValueError(f"a picture is [H, W, 3], got an image of shape {tuple(array.shape)}")
    array = array[..., :3]
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        raise ValueError(f"integer images must be uint8 (0..255), got {array.dtype}; convert them with astype")
    if array.size == 0:
        raise ValueError(f"a picture needs pixels, got an image of shape {tuple(array.shape)}")
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(f"float images must lie in [0, 1], got values in [{low}, {high}]")
        array = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(array)


def palette_picture(labels: Any, taxonomy: Taxonomy) -> np.ndarray:
    """Colour class ids [...] with the taxonomy's palette: uint8 [..., 3]; 255 (unknown) is grey.

    Raises:
        ValueError: for an id that the taxonomy does not have.
    """
    ids = to_array(labels)
    if ids.dtype.kind not in "iu":
        raise ValueError(f"class ids are integers, got {ids.dtype}")
    table = taxonomy.colors()
    table[taxonomy.num_classes :] = UNKNOWN_COLOR
    bad = (ids < 0) | ((ids >= taxonomy.num_classes) & (ids != UNKNOWN))
    if bad.any():
        raise ValueError(
            f"class id {int(ids[bad][0])} is not in taxonomy {taxonomy.name!r} (0..{taxonomy.num_classes - 1})"
        )
    return table[ids]


def shaded(picture: np.ndarray, nearness: np.ndarray, darkest: float = 0.35) -> np.ndarray:
    """Darken a picture [..., 3] by a weight [...] in [0, 1]: 1 keeps the colour, 0 leaves `darkest` of it."""
    weight = darkest + (1 - darkest) * np.clip(np.asarray(nearness, dtype=np.float64), 0, 1)
    return np.rint(np.asarray(picture) * weight[..., None]).astype(np.uint8)


def condition_pictures(mpi: SemanticMPI, shade: bool = True) -> list[np.ndarray]:
    """One palette picture [h, w, 3] a view of an unbatched MPI: the class of each cell's nearest non-empty plane.

    With `shade`, far planes are darker (linear in the plane's index), which is what makes a street readable: without
    it two houses at 10 m and 40 m are one brown area.
    """
    if mpi.nearest.ndim != 3:
        raise ValueError(
            f"give one sample's MPI ([V, h, w] nearest classes), got {tuple(mpi.nearest.shape)}; index it"
        )
    colors = palette_picture(mpi.nearest, mpi.taxonomy)
    if shade:
        plane = mpi.nearest_plane.detach().cpu().numpy().astype(np.float64)
        colors = shaded(colors, 1 - plane / max(mpi.planes.num_planes - 1, 1))
    return list(colors)


def resized(picture: Any, height: int, width: int, nearest: bool = False) -> np.ndarray:
    """Resample to [height, width, 3]: bicubic, or nearest neighbour for label pictures (no invented colours)."""
    from PIL import Image

    picture = as_picture(picture)
    if picture.shape[:2] == (height, width):
        return picture
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((width, height), how))


def overlay(photo: Any, colors: np.ndarray, alpha: float = 0.5, mask: np.ndarray | None = None) -> np.ndarray:
    """Blend label colours [h, w, 3] over a photograph [H, W, 3]; colours are enlarged by nearest neighbour.

    `mask` [h, w] says which cells are drawn; by default those whose colour is not black (palette id 0 of SyntheOcc is
    black and free).
    """
    photo = as_picture(photo)
    height, width = photo.shape[:2]
    drawn = (colors.any(-1) if mask is None else np.asarray(mask, dtype=bool)).astype(np.uint8) * 255
    weight = resized(drawn, height, width, nearest=True)[..., :1].astype(np.float64) / 255 * alpha
    top = resized(colors, height, width, nearest=True).astype(np.float64)
    return np.rint(photo * (1 - weight) + top * weight).astype(np.uint8)


def save_picture(picture: Any, path: str | Path, **options: Any) -> Path:
    """Write a picture by rename (PNG, JPEG, ... by the suffix; `options` go to Pillow, e.g. quality=95)."""
    from syntheocc.engine.files import atomic_write_image

    atomic_write_image(path, as_picture(picture), **options)
    return Path(path)
