"""Pickles read without running code: numpy arrays, numpy scalars and plain containers, nothing else.

A pickle is a program. `safe_load` answers only the handful of globals that numpy arrays and builtin containers need
and refuses every other one by name, so an info file from the net can be opened. numpy 1 and 2 differ in the module
that their pickles name (`numpy.core`, `numpy._core`); both are known.

numpy's own reconstruction trusts the pickle: a dtype whose stored flags deny that it holds objects makes the array's
bytes into pointers. Hence the pickle meets stand-ins of ours (`_DType`, `_Array`) that take from it no more than a
kind, a width, a byte order, a shape and the data, and give numpy only what fits together.
"""

import collections
import math
import os
import pickle
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from syntheocc.engine.files import not_opened

__all__ = ["safe_load"]

# Booleans, numbers, bytes, text and object arrays; records, dates and what numpy may add are no plain data.
_PLAIN_DTYPE = re.compile(r"[?biufcSUO]\d*")
# What a pickle gets for the class `numpy.ndarray`: it is only ever handed back to `_reconstruct`, never called.
_NDARRAY = "numpy.ndarray"


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    """`_codecs.encode` for the one use pickle protocol 2 makes of it: bytes written as latin-1 text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "utf8"):
        raise pickle.UnpicklingError(f"_codecs.encode of a {type(text).__name__} as {encoding!r}")
    return text.encode(encoding)


class _DType:
    """A dtype as a pickle describes it: the name in the constructor, the byte order in the state."""

    __slots__ = ("value",)

    def __init__(self, name: str, align: bool = False, copy: bool = False):
        if not isinstance(name, str) or not _PLAIN_DTYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"a numpy array or scalar of type {name!r}")
        self.value = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        # Of the rest (fields, width, flags) the name says as much as is true.
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that is filled by a pickle; it is pickled again as the plain array that it otherwise is."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if self.size or not isinstance(dtype, _DType) or not all(type(n) is int and n >= 0 for n in shape):
            raise pickle.UnpicklingError("a numpy array with the state of something else")
        if dtype.value.hasobject and (not isinstance(data, list) or len(data) != math.prod(shape)):
            raise pickle.UnpicklingError(f"an object array of shape {shape} without its objects")
        plain: Any = (1, shape, dtype.value, bool(fortran), data)
        super().__setstate__(plain)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _reconstruct(subtype: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The empty array that `_Array.__setstate__` then fills."""
    if subtype != _NDARRAY:
        raise pickle.UnpicklingError(f"an array of type {subtype!r}")
    return np.empty(0, np.uint8).view(_Array)


def _frombuffer(buffer: Any, dtype: _DType, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    """How protocol 5 stores a contiguous array; copied, because a buffer of bytes is read-only."""
    return np.frombuffer(buffer, dtype=dtype.value).reshape(shape, order=order).copy(order="K").view(_Array)


def _scalar(dtype: _DType, data: bytes) -> np.generic:
    """A numpy scalar from its bytes."""
    if dtype.value.hasobject:
        raise pickle.UnpicklingError("a numpy scalar that holds a Python object")
    return np.frombuffer(data, dtype=dtype.value, count=1)[0]


_ALLOWED: dict[tuple[str, str], Callable | str] = {
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DType,
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

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedGlobal(f"{module}.{name}") from None


class _RefusedGlobal(pickle.UnpicklingError):
    """A pickle asked for something that is not plain data."""


# What the C unpickler and numpy raise over bytes that are no pickle, or a cut or altered one (a length may have become
# more than any memory holds).
_DAMAGED = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, MemoryError,
)  # fmt: skip


def safe_load(path: str | os.PathLike) -> Any:
    """Read a pickle of plain containers, numbers, text and numpy arrays.

    Args:
        path: the pickle, of any protocol, written under numpy 1 or 2.

    Returns:
        The stored object; its arrays are writable. Nothing in the file is executed.

    Raises:
        ValueError: the file is missing, truncated or no pickle, or it wants a global beyond numpy's reconstruction,
            `_codecs.encode` and plain containers; the message names the file, the global and what to do.
    """
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file).load()
    except OSError as error:
        raise not_opened(path, error) from error
    except _RefusedGlobal as error:
        raise ValueError(
            f"{path}: this pickle wants the global {str(error)!r}, which is more than plain data: not opened; "
            "save it again with only dicts, lists, numbers, text and numpy arrays, in an environment you trust it in"
        ) from error
    except _DAMAGED as error:
        raise ValueError(
            f"{path}: cannot be read as a pickle of plain data ({type(error).__name__}: {error}); it is truncated or "
            "of another kind: copy or make it again"
        ) from error
