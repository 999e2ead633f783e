"""Pickles of numbers, read without running code: only containers, numbers, texts and plain numpy arrays come out.

Published reference statistics are pickles (EDM2 among them). A pickle is a program that may call anything by name; this reader
knows five names, all of numpy, and refuses every other before it is called.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pagoda_bench.errors import UNREADABLE, UserError

MAX_BYTES = 1 << 30


class Refused(pickle.UnpicklingError):
    """The pickle asks for something that is not a number."""


def _dtype(text: Any, *flags: Any) -> np.dtype[Any]:
    found = np.dtype(text, *flags) if isinstance(text, str) else None
    if found is None or found.kind not in "biuf":
        raise Refused(f"arrays of '{text}'")
    return found


def _scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    if not isinstance(data, bytes) or dtype.kind not in "biuf":
        raise Refused("a scalar that is no number")
    return np.frombuffer(data, dtype, count=1)[0]


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray[Any, Any]:
    """An empty array, which the pickle fills in its next step."""
    if kind is not ARRAY or shape != (0,):
        raise Refused("an array of an unusual kind")
    return np.ndarray((0,), np.uint8)


def _from_buffer(data: Any, dtype: np.dtype[Any], shape: Any, order: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")


def _latin1(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("a text in another encoding")
    return text.encode("latin1")


ARRAY = object()  # stands for the class, which a pickle could call with a size of its own
KNOWN: dict[tuple[str, str], Callable[..., Any] | object] = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): ARRAY,
}
for _core in ("numpy.core", "numpy._core"):
    KNOWN[(f"{_core}.multiarray", "_reconstruct")] = _reconstruct
    KNOWN[(f"{_core}.multiarray", "scalar")] = _scalar
    KNOWN[(f"{_core}.numeric", "_frombuffer")] = _from_buffer


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return KNOWN[(module, name)]
        except KeyError:
            raise Refused(f"'{module}.{name}'") from None

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("an object kept elsewhere")


def read_pickle(path: Path) -> Any:
    """Dictionaries, lists, numbers, texts and arrays of numbers. Raises `UserError` for anything else and for damage."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"{path} has more than {MAX_BYTES >> 20} MiB, which no reference statistics have: give another file"
            )
        value = _Reader(io.BytesIO(path.read_bytes())).load()
        _check(value, depth=8)
    except Refused as error:
        raise UserError(
            f"{path} is a pickle that asks for {error}: only numbers are read; save the statistics as npz"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({(error.strerror or str(error)).lower()})") from None
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise UserError(f"{path} is no readable pickle ({reason}): copy or download it again") from None
    return value


def _check(value: Any, depth: int) -> None:
    """The opcodes that set an object's state could have put other things into an array: look at what came out."""
    if not depth:
        raise Refused("containers nested too deep")
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise Refused(f"arrays of '{value.dtype}'")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(key, depth - 1)
            _check(item, depth - 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check(item, depth - 1)
    elif not isinstance(value, (str, bytes, int, float, bool, np.number, np.bool_, type(None))):
        raise Refused(f"'{type(value).__name__}'")
