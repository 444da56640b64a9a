"""Tables in Markdown, JSON without NaN, and strips of pictures side by side."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syntheocc.evaluation.bootstrap import Interval

__all__ = ["markdown_table", "plain", "strip", "write_strip"]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]], digits: int = 3) -> str:
    """A Markdown table; floats with `digits` decimals, intervals as "0.512 [0.490, 0.533]", NaN and None as "-".

    Raises:
        ValueError: a row of another length than the header.

    Example:
        >>> print(markdown_table(["what", "mIoU"], [["real", 0.71234], ["floor", None]]))
        | what | mIoU |
        |---|---:|
        | real | 0.712 |
        | floor | - |
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"the table has {len(header)} columns {list(header)}, a row has {len(row)}: {list(row)}")

    def cell(value: Any) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "-"
        if isinstance(value, Interval):
            if math.isnan(value.value):
                return "-"
            return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(cell(value) for value in row) + " |" for row in rows)])


def plain(value: Any) -> Any:
    """The report in what JSON knows: tensors and tuples become lists, named tuples dicts, NaN and infinity None."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Interval) or hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def strip(rows: Sequence[Tensor], gap: int = 2) -> Tensor:
    """Rows of pictures on one sheet.

    Args:
        rows: each [V, 3, h, w], uint8 or floats in [0, 1]; smaller pictures (conditions) are enlarged, pixel by pixel,
            to the size of the largest.
        gap: white pixels between pictures.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = max(row.shape[-2] for row in rows), max(row.shape[-1] for row in rows)
    views = max(len(row) for row in rows)
    sheet = torch.full((len(rows) * (height + gap) - gap, views * (width + gap) - gap, 3), 255, dtype=torch.uint8)
    for i, row in enumerate(rows):
        row = row.detach().cpu()
        pixels = row if row.dtype == torch.uint8 else (row.float().clamp(0, 1) * 255).round().to(torch.uint8)
        if pixels.shape[-2:] != (height, width):
            pixels = torch.nn.functional.interpolate(pixels, size=(height, width), mode="nearest")
        for j, picture in enumerate(pixels):
            top, left = i * (height + gap), j * (width + gap)
            sheet[top : top + height, left : left + width] = picture.movedim(0, -1)
    return sheet


def write_strip(path: str | Path, rows: Sequence[Tensor]) -> None:
    """Write `strip(rows)` as a picture; the suffix picks the format."""
    from syntheocc.engine.files import atomic_write_image

    options = {"quality": 92} if Path(path).suffix.lower() in (".jpg", ".jpeg") else {}
    atomic_write_image(path, strip(rows).numpy(), **options)
