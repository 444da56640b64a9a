"""Files that appear whole or not at all, and numpy and JSON files read with errors that name them.

A file is written under a temporary name in its own folder and renamed over the target, so a reader (or a job that
resumes) never meets half a file. The rename is atomic within a file system; nothing is flushed to the disk by force,
because what is lost with the power is written again by the resumed job.
"""

import json
import os
import secrets
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

# Commands import this module before they know what to do: numpy is imported where arrays are.
if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "atomic_path",
    "atomic_write_bytes",
    "atomic_write_image",
    "atomic_write_json",
    "atomic_write_npy",
    "atomic_write_npz",
    "atomic_write_text",
    "not_opened",
    "read_json",
    "read_npy",
    "read_npz",
]

# What numpy, zipfile and zlib raise over a damaged file: a flipped bit in a zip can ask for encryption (RuntimeError)
# or an unknown compression (NotImplementedError), in a header spoil the literal (TokenError) or the array's size.
_DAMAGED = (ValueError, OSError, EOFError, BadZipFile, zlib.error, RuntimeError, TokenError, MemoryError)


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends without an exception.

    The temporary name starts with a dot and keeps the target's suffix (writers such as `np.save` and pillow look at
    it). Missing parent folders are made. After an exception the temporary file is removed and `path` is untouched.

    Example:
        >>> with atomic_path("out/labels.npz") as temporary:
        ...     np.savez_compressed(temporary, semantics=labels)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to `path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path` as UTF-8."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | os.PathLike, value: Any, indent: int | None = 2) -> None:
    """Write a JSON document. NaN and infinities are refused, because JSON has no spelling for them."""
    try:
        text = json.dumps(value, indent=indent, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: the value cannot be written as JSON ({error}); JSON has no NaN, infinities or other objects"
        ) from error
    atomic_write_text(path, text + "\n")


def atomic_write_npy(path: str | os.PathLike, array: "np.ndarray") -> None:
    """Write one array as `.npy`, never as a pickle."""
    import numpy as np

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def atomic_write_npz(path: str | os.PathLike, **arrays: "np.ndarray") -> None:
    """Write named arrays as a compressed `.npz`, never as pickles."""
    import numpy as np

    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise ValueError(
                f"{path}: array {name!r} holds Python objects; give numbers, booleans or fixed-length text"
            )
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def atomic_write_image(path: str | os.PathLike, pixels: "np.ndarray", **save_options: Any) -> None:
    """Write a picture; the suffix picks the format.

    Args:
        path: target with a suffix that pillow knows (.png, .jpg).
        pixels: uint8 `[H, W]` or `[H, W, 3]`.
        save_options: passed to `PIL.Image.Image.save`, e.g. `quality=95`.
    """
    import numpy as np
    from PIL import Image

    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(f"{path}: a picture is uint8 [H, W] or [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, **save_options)


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON document. A missing or damaged file is a ValueError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise not_opened(path, error) from error
    except ValueError as error:
        raise ValueError(
            f"{path}: not a JSON document ({error}); it is damaged or truncated, copy it again"
        ) from error


def read_npy(path: str | os.PathLike) -> "np.ndarray":
    """Read one array from a `.npy` file without ever unpickling."""
    import numpy as np

    array = _load(path)
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path}: an .npz archive where a single .npy array is expected; check the file's kind")
    return array


def read_npz(path: str | os.PathLike, required: Sequence[str]) -> "dict[str, np.ndarray]":
    """Read all arrays of an `.npz` archive without ever unpickling; `required` names must be among them."""
    import numpy as np

    archive = _load(path)
    if isinstance(archive, np.ndarray):
        raise ValueError(f"{path}: a single .npy array where an .npz archive is expected; check the file's kind")
    with archive:
        missing = [name for name in required if name not in archive.files]
        if missing:
            raise ValueError(f"{path}: lacks array(s) {missing}, has {archive.files}; check that it is the right kind")
        try:
            return {name: archive[name] for name in archive.files}
        except _DAMAGED as error:
            raise _damaged(path, error) from error


def not_opened(path: str | os.PathLike, error: OSError) -> ValueError:
    """The error of every reader for a file that is not there, is a folder or may not be read."""
    return ValueError(f"{path}: {(error.strerror or str(error)).lower()}; check the path")


def _load(path: str | os.PathLike) -> Any:
    """`np.load` without pickles, its many exceptions turned into one that names the file."""
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise not_opened(path, error) from error
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _damaged(path: str | os.PathLike, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: cannot be read as numpy data ({error}); it is truncated, of another kind or holds pickled objects: "
        "copy or make it again"
    )
