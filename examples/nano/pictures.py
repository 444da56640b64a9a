"""Sheets to look at: what was asked for, what was drawn, what is real."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.pictures import condition_pictures, labelled, resized, save_picture, tiled
from syntheocc.occupancy.rendering.mpi import SemanticMPI
from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY
from syntheocc.worlds.cache import FrameCache

Row = tuple[str, Sequence[Any]]


def mpi_of(pipe: Any, cache: FrameCache, index: int) -> SemanticMPI:
    """The condition of a frame [V, D, h, w] as the pipeline takes it."""
    return SemanticMPI(
        cache.mpi_labels[index],
        cache.nearest[index],
        cache.nearest_plane[index].to(torch.int16),
        SYNTHEOCC_TAXONOMY,
        pipe.controlnet.plane_spec,
        "center",
        tuple(cache.camera_names),
    )


def sheet(rows: Sequence[Row], path: Path) -> None:
    """One row of six pictures a line (uint8 [H, W, 3] arrays or PIL), the name on the first picture of each."""
    lines = []
    for name, pictures in rows:
        pictures = list(pictures)
        lines.append([labelled(pictures[0], name), *pictures[1:]])
    save_picture(tiled(lines), path)


def real_row(name: str, images: Tensor) -> Row:
    """Row of images uint8 [V, 3, H, W]."""
    return name, [image.movedim(0, -1).cpu().numpy() for image in images]


def condition_row(name: str, mpi: SemanticMPI, size: tuple[int, int]) -> Row:
    """Row of the nearest classes, enlarged to (height, width)."""
    return name, [resized(picture, *size, nearest=True) for picture in condition_pictures(mpi.to("cpu"))]


def draw(pipe: Any, mpi: SemanticMPI, prompt: str, seed: int = 0, **settings: Any) -> list[Any]:
    """The views of a condition, as PIL pictures; the noise depends on the seed alone, not on the device."""
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, mpi=mpi, generator=generator, **settings).images[0]
