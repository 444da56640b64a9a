"""Pictures of 16 bits a pixel: how KITTI and NYU store depth."""

import os
from typing import Any

import numpy as np

from syntheocc.engine.files import atomic_path, not_opened

__all__ = ["read_png16", "write_png16"]


def read_png16(path: str | os.PathLike) -> np.ndarray:
    """Read a one-channel 16-bit `.png` as uint16 [H, W]; ValueError for a damaged file or another kind of picture."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise not_opened(path, error) from error
    # Pillow answers damaged chunks with SyntaxError and lengths beyond memory with its own bomb error.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error}); it is damaged, copy it again") from error
    if pixels.ndim != 2 or not mode.startswith("I"):
        raise ValueError(f"{path}: a picture of mode {mode!r}; depth is stored as one channel of 16 bits")
    return pixels.astype(np.uint16)


def write_png16(pixels: Any, path: str | os.PathLike) -> None:
    """Write uint16 [H, W] as a `.png`; the file appears by rename."""
    from PIL import Image

    pixels = np.ascontiguousarray(pixels)
    if pixels.dtype != np.uint16 or pixels.ndim != 2:
        raise ValueError(f"{path}: a 16-bit picture is uint16 [H, W], got {pixels.dtype} {list(pixels.shape)}")
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
