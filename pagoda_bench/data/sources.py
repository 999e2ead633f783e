"""What images a path holds: their digest, classes and counts, found once and remembered.

The digest identifies the data whatever they lie in: it is the SHA-256 of the lines that `sha256sum` prints for the used images
and the labels file, sorted by name in the C locale. It is remembered in the user's cache folder under the path, with the size
and modification time of the zip, or of every file of the folder, so that asking again reads no image.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pagoda_bench.data.containers import BadFile, BadFiles, Source, open_source
from pagoda_bench.data.layout import Layout, arrange
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.data import ImageData

Progress = Callable[..., None]
FACTS_VERSION = 1  # of the rules by which a layout is read and a digest is made


@dataclass(frozen=True)
class Facts:
    """What is known of a source without decoding it."""

    digest: str  # 64 hex digits
    classes: tuple[str, ...]
    train: int
    val: int


def describe(path: Path, master: int, name: str = "images", progress: Progress | None = None) -> ImageData:
    """The data config of the images at `path`, to be used at `master` px under the human name `name`.

    Raises `UserError` for a missing or unusable source, a layout without classes, or files that cannot be read.
    """
    facts = facts_of(path, progress)
    return ImageData(digest=facts.digest, master=master, classes=facts.classes, name=name)


def facts_of(path: Path, progress: Progress | None = None) -> Facts:
    """Digest, classes and counts of the source at `path`, from the cache when nothing has changed."""
    with open_source(path) as source:
        memo = cache_folder() / "sources" / f"{hashlib.sha256(os.fsencode(source.path.resolve())).hexdigest()[:20]}.json"
        stamp = f"{FACTS_VERSION} {source.stamp()}"
        if (known := _remembered(memo, stamp)) is not None:
            return known
        layout = layout_of(source)
        facts = Facts(_digest(source, layout, progress), layout.classes, layout.size("train"), layout.size("val"))
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        write_atomically(memo, json.dumps({"stamp": stamp, **asdict(facts)}).encode())
    return facts


def layout_of(source: Source) -> Layout:
    """The classes and splits of a source's files. Raises `UserError`."""

    def read(name: str) -> bytes:
        try:
            return source.read(name)
        except BadFile as error:
            raise UserError(f"{source.path}: '{name}' {error}: replace it") from None

    return arrange(source.names, source.folders, read, source.path)


def digest_of(hashes: Mapping[str, str]) -> str:
    """SHA-256 of the lines "<SHA-256 of the content>  <name>", sorted by the bytes of the name. `hashes` is by name."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes, key=str.encode))
    return hashlib.sha256(lines.encode()).hexdigest()


def cache_folder() -> Path:
    """Where digests and decoded pixels are kept: $PAGODA_BENCH_CACHE, else `pagoda-bench` in the user's cache folder."""
    if own := os.environ.get("PAGODA_BENCH_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        base = Path("~/Library/Caches").expanduser()
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "pagoda-bench"


def write_atomically(file: Path, content: bytes) -> None:
    """`file` is there whole or as it was before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def _digest(source: Source, layout: Layout, progress: Progress | None) -> str:
    files = [(entry.name, entry.file) for entry in layout.entries]
    if layout.labels_file:
        files.append((layout.labels_file.rpartition("/")[2], layout.labels_file))
    hashes: dict[str, str] = {}
    bad = BadFiles(source.path)

    def hash_block(block: list[tuple[str, str]]) -> None:
        for name, file in block:
            try:
                hashes[name] = hashlib.sha256(source.read(file)).hexdigest()
            except BadFile as error:
                bad.add(file, error)

    blocks = [files[start : start + 512] for start in range(0, len(files), 512)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        for done, _ in enumerate(pool.map(hash_block, blocks) if source.slow else map(hash_block, blocks), 1):
            if progress is not None:
                progress(min(512 * done, len(files)), len(files), what="hashing images")
    bad.raise_if_any(len(files))
    return digest_of(hashes)


def _remembered(memo: Path, stamp: str) -> Facts | None:
    try:
        value: dict[str, Any] = json.loads(memo.read_text())
        if value.pop("stamp") != stamp:
            return None
        return Facts(**{**value, "classes": tuple(value["classes"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no memo, or a damaged one: made again
        return None
