"""Pictures of labels, conditions and results: palette views, overlays, contact sheets, strips, bird's-eye views.

A *picture* here is a numpy array, uint8 [H, W, 3], RGB. Everything that can be drawn (a PIL image, a torch tensor in
[0, 1], a float array) becomes one through :func:`as_picture`. Pillow is imported only where text or resampling is
needed, so that this module costs the lightweight package nothing.

Legend: V views, H W pixels, h w cells of an MPI, X Y Z voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from syntheocc.occupancy.taxonomy import UNKNOWN

if TYPE_CHECKING:
    from syntheocc.occupancy.grids import OccupancyGrid
    from syntheocc.occupancy.rendering.mpi import SemanticMPI
    from syntheocc.occupancy.taxonomy import Taxonomy

BACKGROUND = (24, 24, 28)
UNKNOWN_COLOR = (64, 64, 64)


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
    ids = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
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


def labelled(picture: Any, text: str) -> np.ndarray:
    """Write `text` on a dark plate in the upper left corner; the height of the text follows the picture's."""
    from PIL import Image, ImageDraw, ImageFont

    picture = as_picture(picture)
    if not text:
        return picture
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    size = max(9, round(picture.shape[0] / 18))
    font = ImageFont.load_default(size=size)
    left, top, right, bottom = draw.textbbox((size // 3, size // 4), text, font=font)
    draw.rectangle((0, 0, right + size // 3, bottom + size // 4), fill=BACKGROUND)
    draw.text((size // 3, size // 4), text, font=font, fill=(255, 255, 255))
    return np.asarray(image)


def tiled(rows: Sequence[Sequence[Any]], gap: int = 4, background: tuple[int, int, int] = BACKGROUND) -> np.ndarray:
    """Lay rows of equally large pictures out on one sheet; a short row is filled with background."""
    pictures = [[as_picture(picture) for picture in row] for row in rows]
    sizes = {picture.shape[:2] for row in pictures for picture in row}
    if len(sizes) != 1:
        raise ValueError(f"pictures on one sheet must have one size, got {sorted(sizes)}; use resized() first")
    height, width = sizes.pop()
    columns = max(len(row) for row in pictures)
    sheet = np.empty((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), dtype=np.uint8)
    sheet[:] = background
    for r, row in enumerate(pictures):
        for c, picture in enumerate(row):
            top, left = r * (height + gap), c * (width + gap)
            sheet[top : top + height, left : left + width] = picture
    return sheet


def contact_sheet(
    pictures: Mapping[str, Any],
    columns: int = 3,
    size: tuple[int, int] | None = None,
    nearest: bool = False,
    gap: int = 4,
) -> np.ndarray:
    """One sheet of named pictures (a camera's name in each corner), `columns` a row, in the mapping's order.

    Args:
        pictures: name -> picture, anything :func:`as_picture` takes.
        columns: pictures in a row.
        size: (height, width) of a tile; by default that of the first picture.
        nearest: enlarge without mixing colours (label pictures).
        gap: pixels between tiles.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    items = [(name, as_picture(picture)) for name, picture in pictures.items()]
    height, width = size or items[0][1].shape[:2]
    tiles = [labelled(resized(picture, height, width, nearest), name) for name, picture in items]
    return tiled([tiles[i : i + columns] for i in range(0, len(tiles), columns)], gap=gap)


def strip(
    rows: Mapping[str, Sequence[Any]],
    names: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    nearest_rows: Sequence[str] = ("condition",),
    gap: int = 4,
) -> np.ndarray:
    """Rows of views above each other (condition / generated / real), one column a camera.

    Args:
        rows: row title -> its views [V]; a row may be missing pictures at its end.
        names: camera names [V], written with the row title into each tile.
        size: (height, width) of a tile; by default that of the last row's first picture.
        nearest_rows: titles of rows to be enlarged without mixing colours.
        gap: pixels between tiles.
    """
    rows = {title: list(pictures) for title, pictures in rows.items() if len(pictures)}
    if not rows:
        raise ValueError("a strip needs at least one row with pictures")
    height, width = size or as_picture(list(rows.values())[-1][0]).shape[:2]
    tiles = []
    for title, pictures in rows.items():
        texts = [f"{names[i]}  {title}" if i < len(names) else title for i in range(len(pictures))]
        tiles.append(
            [
                labelled(resized(picture, height, width, title in nearest_rows), text)
                for picture, text in zip(pictures, texts, strict=True)
            ]
        )
    return tiled(tiles, gap=gap)


def bev_picture(grid: OccupancyGrid, shade: bool = True, below: float | None = None) -> np.ndarray:
    """The grid from above, one pixel a voxel column: forward is up, left is left; the topmost occupied voxel shows.

    Args:
        grid: any frame; the axes that point forward, left and up come from `grid2ego` (identity for ego grids).
        shade: darken low voxels, so that a car stands out from the road.
        below: ignore voxels whose centre lies higher than this, metres in the grid's own up axis (tunnels, crowns).

    Returns:
        uint8 [forward, left, 3].
    """
    rotation = grid.grid2ego.numpy()[:3, :3]
    axes = np.abs(rotation).argmax(axis=1)
    if sorted(axes.tolist()) != [0, 1, 2]:
        raise ValueError(f"the grid's axes are not near the ego axes (grid2ego rotation {rotation.tolist()})")
    labels = np.transpose(grid.labels.detach().cpu().numpy(), axes)
    heights = (
        np.asarray(grid.spec.lower)[axes[2]]
        + (np.arange(labels.shape[2]) + 0.5) * (np.asarray(grid.spec.voxel_size)[axes[2]])
    )
    for axis in range(3):
        if rotation[axis, axes[axis]] < 0:
            labels = np.flip(labels, axis)
            heights = heights[::-1] if axis == 2 else heights
    occupied = (labels != grid.taxonomy.free) & (labels != UNKNOWN)
    if below is not None:
        occupied = occupied & (heights <= below)
    # argmax of the flipped column is the first occupied voxel from above
    top = labels.shape[2] - 1 - np.argmax(occupied[:, :, ::-1], axis=2)
    seen = occupied.any(axis=2)
    colors = palette_picture(np.take_along_axis(labels, top[..., None], axis=2)[..., 0], grid.taxonomy)
    if shade:
        colors = shaded(colors, top / max(labels.shape[2] - 1, 1), darkest=0.55)
    colors = np.where(seen[..., None], colors, np.asarray(BACKGROUND, dtype=np.uint8))
    return np.ascontiguousarray(colors[::-1, ::-1])


def save_picture(picture: Any, path: str | Path, **options: Any) -> Path:
    """Write a picture by rename (PNG, JPEG, ... by the suffix; `options` go to Pillow, e.g. quality=95)."""
    from syntheocc.engine.files import atomic_write_image

    atomic_write_image(path, as_picture(picture), **options)
    return Path(path)
