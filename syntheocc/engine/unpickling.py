"""Pickles read without running code: numpy arrays, numpy scalars and plain containers, nothing else.

A pickle is a program. `safe_load` answers only the handful of globals that numpy arrays and builtin containers need
and refuses every other one by name, so an info file from the net can be opened. numpy 1 and 2 differ in the module
that their pickles name (`numpy.core`, `numpy._core`); both are known.
"""

import collections
import os
import pickle
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

__all__ = ["safe_load"]


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    """`_codecs.encode` for the one use pickle protocol 2 makes of it: bytes written as latin-1 text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "utf8"):
        raise pickle.UnpicklingError(f"_codecs.encode of a {type(text).__name__} as {encoding!r}")
    return text.encode(encoding)


def _reconstruct(subtype: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The empty array that numpy's `__setstate__` then fills."""
    if subtype is not np.ndarray:
        raise pickle.UnpicklingError(f"an array of type {subtype!r}")
    return np.ndarray.__new__(subtype, shape, dtype)


def _frombuffer(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    """How protocol 5 stores a contiguous array; copied, because a buffer of bytes is read-only."""
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order).copy(order="K")


def _scalar(dtype: np.dtype, data: bytes) -> np.generic:
    """A numpy scalar from its bytes."""
    if dtype.hasobject:
        raise pickle.UnpicklingError("a numpy scalar that holds a Python object")
    return np.frombuffer(data, dtype=dtype, count=1)[0]


_ALLOWED: dict[tuple[str, str], Callable] = {
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _frombuffer
for _builtins in ("builtins", "__builtin__"):
    for _type in (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset):
        _ALLOWED[_builtins, _type.__name__] = _type


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that finds only what `_ALLOWED` holds."""

    def find_class(self, module: str, name: str) -> Callable:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedGlobal(f"{module}.{name}") from None


class _RefusedGlobal(pickle.UnpicklingError):
    """A pickle asked for something that is not plain data."""


def safe_load(path: str | os.PathLike) -> Any:
    """Read a pickle of plain containers, numbers, text and numpy arrays.

    Args:
        path: the pickle, of any protocol, written under numpy 1 or 2.

    Returns:
        The stored object. Nothing in the file is executed.

    Raises:
        ValueError: the file is missing, truncated or no pickle, or it wants a global beyond numpy's reconstruction,
            `_codecs.encode` and plain containers; the message names the file, the global and what to do.
    """
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file).load()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; check the path") from error
    except _RefusedGlobal as error:
        raise ValueError(
            f"{path}: this pickle wants the global {str(error)!r}, which is more than plain data: not opened; "
            "save it again with only dicts, lists, numbers, text and numpy arrays, in an environment you trust it in"
        ) from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(
            f"{path}: cannot be read as a pickle of plain data ({type(error).__name__}: {error}); it is truncated or "
            "of another kind: copy or make it again"
        ) from error
