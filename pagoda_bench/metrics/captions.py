"""Where the texts of a CLIP score come from: the images' own source, a file, or the embedded data."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pagoda_bench.data.embedded import Embedded
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.inputs import Stream
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.sampling.generators import ByClass

EMBEDDED = "embedded"
GIVE = "a .txt of one caption a line, or a .json of a list or of captions by file name"


def captions_of(stream: Stream, given: str | os.PathLike[str] | Sequence[str] | None, n: int) -> list[str]:
    """The captions of the first `n` images of `stream`.

    `given`: None for the source's own ("x.txt" beside "x.png" in a folder, zip or tar; a column `text` or `caption`); a path
    (`GIVE`), in the order of the images where it has no names; a list; or "embedded", the captions of the validation images of
    the embedded data that stand for real ones, sample by sample. Raises `UserError` unless every image has one.
    """
    if given is None:
        found = stream.texts()
        if found is None:
            raise UserError(f"{stream.where} has no captions, which a CLIP score compares with: give {GIVE}")
        where = stream.where
    elif isinstance(given, str) and given == EMBEDDED:
        first = getattr(stream, "first", 0)
        data = Embedded(EmbeddedData())
        found = data.captions(ByClass(data, "val").balanced(np.arange(first, first + n, dtype=np.int64), "far"), "val")
        where = EMBEDDED
    elif isinstance(given, (str, os.PathLike)):
        where, found = str(given), _read(Path(given).expanduser(), stream)
    else:
        where, found = "captions", list(given)
    if len(found) < n:
        raise UserError(f"{where} has {len(found):,} captions and {stream.where} has {n:,} images to measure: give one each")
    if (empty := next((i for i in range(n) if not found[i].strip()), None)) is not None:
        raise UserError(f"{where}: the caption of image {empty} is empty: write one")
    return found[:n]


def _read(path: Path, stream: Stream) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:80]
        raise UserError(f"captions {path} cannot be read ({reason}): give {GIVE}") from None
    if path.suffix.lower() != ".json":
        return text.splitlines()
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"captions {path} are no JSON ({' '.join(str(error).split())[:80]}): give {GIVE}") from None
    names = getattr(stream, "names", None)
    if isinstance(value, dict):
        if names is None:
            raise UserError(f"captions {path} are by file name, and the images of {stream.where} have none: give a list")
        if missing := [name for name in names if name not in value]:
            raise UserError(f"captions {path} have none for '{missing[0]}': give every image one")
        value = [value[name] for name in names]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"captions {path} hold something else than texts: give {GIVE}")
    return value
