"""The size of a picture, without decoding it."""

import os
import struct

from syntheocc.engine.files import not_opened

__all__ = ["picture_size", "png_size"]


def png_size(path: str | os.PathLike) -> tuple[int, int]:
    """(height, width) from a `.png`'s header; ValueError for anything else."""
    try:
        with open(path, "rb") as file:
            head = file.read(24)
    except OSError as error:
        raise not_opened(path, error) from error
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path}: not a .png picture; it is damaged, copy it again")
    width, height = struct.unpack(">II", head[16:24])
    return height, width


def picture_size(path: str | os.PathLike) -> tuple[int, int]:
    """(height, width) of any picture that Pillow knows; ValueError for a missing or damaged file."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise not_opened(path, error) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error}); it is damaged, copy it again") from error
