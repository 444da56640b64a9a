"""One sheet a frame of ``syntheocc loop``: every stage, and the score of every arrow.

The upper part has a column for each camera: photographs, what the network is told, what it draws. The lower part has
the grids in 3D: label, prediction, what was asked for, what is read from the generated views.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.pictures import (
    Viewpoint,
    class_legend,
    labelled,
    legend,
    oblique_picture,
    strip,
    tiled,
)

__all__ = ["Stages", "loop_sheet"]

PAPER = (255, 255, 255)
GAP = 4


@dataclass
class Stages:
    """What there is to see of a frame; what is left out was not part of the loop.

    Args:
        names: cameras, in view order.
        photos: the images [V].
        condition: the condition's classes [V].
        views: the generated views [V].
        grids: title -> grid, in the order of the loop.
        scores: title -> lines below it.
    """

    names: Sequence[str]
    photos: Sequence[Any] = ()
    condition: Sequence[Any] = ()
    views: Sequence[Any] = ()
    grids: Mapping[str, OccupancyGrid] = field(default_factory=dict)
    scores: Mapping[str, Sequence[str]] = field(default_factory=dict)


def loop_sheet(stages: Stages, size: tuple[int, int] = (224, 400)) -> np.ndarray:
    """Draw the sheet.

    Args:
        stages: what there is.
        size: height and width of a view.

    Returns:
        uint8 [H, W, 3].
    """
    rows = {"images": stages.photos, "condition (MPI)": stages.condition, "generated": stages.views}
    top = strip(rows, stages.names, size=size, nearest_rows=("condition (MPI)",), gap=GAP)
    width = top.shape[1]
    parts = [top]
    if stages.grids:
        count = len(stages.grids)
        wide = (width - GAP * (count - 1)) // count
        tall = round(0.62 * min(wide, 900))
        tiles = []
        most = max((len(lines) for lines in stages.scores.values()), default=0)
        for number, (title, grid) in enumerate(stages.grids.items(), 1):
            picture = oblique_picture(grid, Viewpoint(), height=tall, width=wide)
            picture = labelled(picture, f"{number}  {title}")
            texts = [*stages.scores.get(title, ()), *[""] * most][:most]
            tiles.append(np.concatenate([picture, *(_line(text, wide) for text in texts)]))
        row = tiled([tiles], gap=GAP, background=PAPER)
        parts += [_padded(row, width), _padded(_legend(list(stages.grids.values()), width), width)]
    return np.concatenate([part for piece in parts for part in (piece, np.full((GAP, width, 3), 255, np.uint8))][:-1])


def _line(text: str, width: int, height: int = 28) -> np.ndarray:
    """A line of dark text on paper."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, height), PAPER)
    font = ImageFont.load_default(size=17)
    ImageDraw.Draw(image).text((8, height / 2), text, font=font, fill=(30, 30, 30), anchor="lm")
    return np.asarray(image)


def _legend(grids: list[OccupancyGrid], width: int) -> np.ndarray:
    taxonomy = grids[0].taxonomy
    own = [grid for grid in grids if grid.taxonomy == taxonomy]
    return legend(class_legend(taxonomy, *own), width, 20)


def _padded(picture: np.ndarray, width: int) -> np.ndarray:
    """The picture on paper of this width."""
    if picture.shape[1] >= width:
        return picture[:, :width]
    sheet = np.full((picture.shape[0], width, 3), 255, dtype=np.uint8)
    sheet[:, : picture.shape[1]] = picture
    return sheet
