"""The one exception type that reaches a user: a single line that says what, where and how to mend it."""

from __future__ import annotations

import difflib
import pickle
import struct
import zipfile
from collections.abc import Iterable

UNREADABLE: tuple[type[Exception], ...] = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
)
"""What a reader of pickles, or of what torch saved, raises of a file that is cut short or changed, or is none of its kind."""


class UserError(Exception):
    """Bad input or a missing resource. The command line prints the message without a traceback and exits with 2."""


class Unavailable(UserError):
    """What a row of a table needs is not here: weights, images, a program, a licence that was not accepted. While a table is
    planned this costs its row; anywhere else it is an error as others."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown `word`: the closest known one, then all known ones, sorted."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"{hint} (known: {', '.join(names)})"
