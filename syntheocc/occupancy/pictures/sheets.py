"""Several pictures on one: titles, sheets, strips, legends. Legend: V views, H W pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from syntheocc.occupancy.pictures.basics import BACKGROUND, as_picture, resized, to_array

if TYPE_CHECKING:
    from syntheocc.occupancy.grids import OccupancyGrid
    from syntheocc.occupancy.taxonomy import Taxonomy

Color = tuple[int, int, int]

__all__ = ["class_legend", "contact_sheet", "labelled", "legend", "strip", "tiled", "with_legend"]


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


def class_legend(taxonomy: Taxonomy, *grids: OccupancyGrid) -> dict[str, Color]:
    """Names and colours of a taxonomy's classes without free, in its order; with grids, of those that occur in one.

    Raises:
        ValueError: a grid of another taxonomy.
    """
    present = np.full(256, not grids)
    for grid in grids:
        if grid.taxonomy != taxonomy:
            raise ValueError(f"the legend is of {taxonomy.name!r}, but a grid of {grid.taxonomy.name!r}; use map_to()")
        present |= np.bincount(to_array(grid.labels).ravel(), minlength=256) > 0
    return {
        name: color
        for i, (name, color) in enumerate(zip(taxonomy.classes, taxonomy.palette, strict=True))
        if present[i] and i != taxonomy.free
    }


def legend(
    entries: Mapping[str, Color],
    width: int,
    size: int = 16,
    background: Color = (255, 255, 255),
) -> np.ndarray:
    """Names with a square of their colour, in as many lines as they need.

    Args:
        entries: name -> RGB; underscores are written as spaces.
        width: of the picture, pixels.
        size: of the text, pixels.
        background: RGB; the text is black or white, whichever can be read.

    Returns:
        uint8 [lines, width, 3].
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=size)
    gap, line = size // 2, round(1.7 * size)
    left, row, places = gap, 0, []
    for name in entries:
        wide = size + gap + round(font.getlength(name.replace("_", " "))) + 2 * gap
        if left > gap and left + wide > width:
            left, row = gap, row + 1
        places.append((left, row * line + (line - size) // 2))
        left += wide
    image = Image.new("RGB", (width, (row + 1) * line), background)
    draw = ImageDraw.Draw(image)
    ink = (0, 0, 0) if sum(background) > 380 else (255, 255, 255)
    for (name, color), (x, y) in zip(entries.items(), places, strict=True):
        draw.rectangle((x, y, x + size - 1, y + size - 1), fill=tuple(color), outline=(128, 128, 128))
        draw.text((x + size + gap, y + size / 2), name.replace("_", " "), font=font, fill=ink, anchor="lm")
    return np.asarray(image)


def with_legend(
    picture: Any, entries: Mapping[str, Color], background: Color = (255, 255, 255), size: int | None = None
) -> np.ndarray:
    """A picture with a legend below it; by default the text grows with the picture."""
    picture = as_picture(picture)
    size = size or max(11, round(picture.shape[1] / 70))
    return np.concatenate([picture, legend(entries, picture.shape[1], size, background)])
