"""Photographs as a data set: every image decoded once into an array on disk, then read at random.

The array lies in the user's cache folder under the digest of the data, the master resolution and the versions of the decoder.
It appears whole or not at all. Decoding that was cut off goes on where it stopped; two processes that want the same array
share the work, the second waits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from pagoda_bench.data.containers import BadFile, BadFiles, Source, open_source
from pagoda_bench.data.decode import decode, decoder_version, decoding
from pagoda_bench.data.layout import Entry
from pagoda_bench.data.resize import CROPS, box_down
from pagoda_bench.data.sources import Progress, cache_folder, facts_of, layout_of
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.data import ImageData, Split

PIXELS_VERSION = 1  # of the conversions in decode.py, the crop and the order of the rows
CHUNK_BYTES = 32 << 20  # of pixels between two writes
BLOCK = 64  # images a worker takes at once
log = logging.getLogger(__name__)


class Images:
    """The images at `path` as `config` identifies them: squares of `config.master` px, in the order of layout.stratified.

    Raises `UserError` when the path holds other images than `config` says, when files cannot be decoded (all of them in one
    message), and when the cache folder cannot be written.
    """

    def __init__(
        self, config: ImageData, path: Path, *, crop: str = "box", workers: int | None = None, progress: Progress | None = None
    ) -> None:
        if config.master < 1:
            raise UserError(f"the master resolution of '{config.name}' is {config.master} px: give at least 1")
        facts = facts_of(path, progress)
        if facts.digest != config.digest:
            raise UserError(
                f"{path} holds the images of digest {facts.digest[:20]}, the recipe is about '{config.name}' of digest "
                f"{config.digest[:20]}: give the path of those, or make a recipe for these"
            )
        if facts.classes != config.classes:
            raise UserError(f"{path} has the classes {', '.join(facts.classes)}; the recipe says {', '.join(config.classes)}")
        self.config = config
        self.protocol: dict[str, Any] = {
            "digest": config.digest,
            "master": config.master,
            "crop": crop,
            "transparency": "on white",
            "decoder": decoder_version(),
            "version": PIXELS_VERSION,
        }
        self._sizes: dict[Split, int] = {"train": facts.train, "val": facts.val}
        self._folder = _array_folder(self.protocol)
        try:
            if _fault(self._folder, self.protocol, sum(self._sizes.values())):
                self._make(path, workers or os.cpu_count() or 1, progress)
        except OSError as error:
            raise UserError(
                f"decoded images cannot be written to {self._folder.parent} ({(error.strerror or str(error)).lower()}): "
                "free space there, or set PAGODA_BENCH_CACHE to another folder"
            ) from None
        self._pixels: NDArray[np.uint8] = np.load(self._folder / "images.npy", mmap_mode="r")
        self._labels: NDArray[np.int64] = np.load(self._folder / "labels.npy")

    @property
    def classes(self) -> tuple[str, ...]:
        return self.config.classes

    def size(self, split: Split) -> int:
        return self._sizes[split]

    def images(self, indices: NDArray[np.int64], resolution: int, split: Split) -> NDArray[np.uint8]:
        """uint8 (N, resolution, resolution, 3), box means of the master-resolution images, rounded half to even."""
        if resolution > self.config.master:
            raise UserError(f"'{self.config.name}' is kept at {self.config.master} px, not at {resolution} px: raise master")
        return box_down(self._pixels[self._rows(indices, split)], resolution)

    def labels(self, indices: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
        """int64 (N,): indices into `classes`."""
        return self._labels[self._rows(indices, split)]

    def verify(self) -> bool:
        """Reads the whole array and compares its SHA-256 with the one taken when it was made."""
        digest = hashlib.sha256()
        for start in range(0, len(self._pixels), 1024):
            digest.update(np.ascontiguousarray(self._pixels[start : start + 1024]).data)
        stored: str = json.loads((self._folder / "meta.json").read_text())["pixels_sha256"]
        return digest.hexdigest() == stored

    def _rows(self, indices: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
        rows = np.asarray(indices, dtype=np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < self._sizes[split]):
            wrong = int(rows.min()) if rows.min() < 0 else int(rows.max())
            raise UserError(
                f"'{self.config.name}' has no image {wrong} in the split '{split}' ({self._sizes[split]} images): ask for fewer"
            )
        return rows + (self._sizes["train"] if split == "val" else 0)

    def _make(self, path: Path, workers: int, progress: Progress | None) -> None:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._folder}.lock"):
            fault = _fault(self._folder, self.protocol, sum(self._sizes.values()))
            if not fault:  # another process made it while this one waited
                return
            if self._folder.exists():
                log.warning("the cached pixels in %s are damaged (%s) and are made again", self._folder, fault)
                shutil.rmtree(self._folder)
            partial = self._folder.with_name(self._folder.name + ".partial")
            partial.mkdir(exist_ok=True)
            with open_source(path) as source:
                entries = layout_of(source).ordered()
                digest = _write_pixels(partial / "images.npy", source, entries, self.protocol, workers, progress)
            np.save(partial / "labels.npy", np.array([entry.label for entry in entries], dtype=np.int64))
            meta = {"protocol": self.protocol, "count": len(entries), "pixels_sha256": digest}
            (partial / "meta.json").write_text(json.dumps(meta))
            os.replace(partial, self._folder)


def _array_folder(protocol: dict[str, Any]) -> Path:
    identity = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "pixels" / f"{protocol['digest'][:12]}-{protocol['master']}px-{identity[:12]}"


def _fault(folder: Path, protocol: dict[str, Any], count: int) -> str:
    """What is wrong with a cached array, by its description and its sizes alone; empty when nothing is."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        pixels = np.load(folder / "images.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy", mmap_mode="r")
        if meta["protocol"] != protocol or meta["count"] != count:
            return "it describes other images"
    except FileNotFoundError:
        return "it is incomplete"
    except (ValueError, KeyError, TypeError, EOFError) as error:
        return f"it cannot be read: {error}"
    shape = (count, protocol["master"], protocol["master"], 3)
    if pixels.shape != shape or pixels.dtype != np.uint8 or labels.shape != (count,) or labels.dtype != np.int64:
        return "it has another shape"
    return ""


def _write_pixels(
    file: Path,
    source: Source,
    entries: tuple[Entry, ...],
    protocol: dict[str, Any],
    workers: int,
    progress: Progress | None,
) -> str:
    """Appends the images that `file` lacks, flushed chunk by chunk; returns the SHA-256 of all pixels.

    Plain writes rather than a writable memory map: on a full disk they fail with an error, a map with a signal.
    """
    resolution = protocol["master"]
    row = resolution * resolution * 3
    with file.open("a+b") as stream:
        digest, done = _resume(file, stream, (len(entries), resolution, resolution, 3))
        bad = BadFiles(source.path)
        chunk = min(2048, max(workers, CHUNK_BYTES // row))
        first = done == 0
        with decoding(), ThreadPoolExecutor(max_workers=workers) as pool:
            while done < len(entries):
                part = entries[done : done + chunk]
                pixels = np.zeros((len(part), resolution, resolution, 3), dtype=np.uint8)
                largest = _decode_chunk(pool, source, part, pixels, CROPS[protocol["crop"]], bad)
                if first and not bad.found and largest < resolution:
                    raise UserError(
                        f"{source.path}: the shorter side of its images is at most {largest} px, so that {resolution} px would "
                        f"only enlarge them: use a master resolution of at most {largest}"
                    )
                first = False
                done += len(part)
                if not bad.found:  # with bad files there will be no array, only the message that names all of them
                    stream.write(pixels.data)
                    stream.flush()
                    os.fsync(stream.fileno())
                    digest.update(pixels.data)
                if progress is not None:
                    progress(done, len(entries), what="decoding images")
        bad.raise_if_any(len(entries))
    return str(digest.hexdigest())


def _resume(file: Path, stream: Any, shape: tuple[int, ...]) -> tuple[Any, int]:
    """Keeps the header and the whole rows that are there; returns the running SHA-256 of these rows and their number."""
    digest = hashlib.sha256()
    row = int(np.prod(shape[1:]))
    stream.seek(0)
    try:
        version = np.lib.format.read_magic(stream)
        found = np.lib.format.read_array_header_1_0(stream) if version == (1, 0) else None
    except ValueError:
        found = None
    if found != (shape, False, np.dtype(np.uint8)):
        stream.truncate(0)
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        stream.flush()
        return digest, 0
    begin = stream.tell()
    done = min((file.stat().st_size - begin) // row, shape[0])
    stream.truncate(begin + done * row)
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest, done


def _decode_chunk(
    pool: ThreadPoolExecutor, source: Source, part: tuple[Entry, ...], pixels: NDArray[np.uint8], crop: Any, bad: BadFiles
) -> int:
    """Fills `pixels`; returns the largest shorter side that was met."""
    resolution = pixels.shape[1]

    def decode_block(start: int) -> int:
        largest = 0
        for i in range(start, min(start + BLOCK, len(part))):
            try:
                image = decode(source.read(part[i].file))
            except BadFile as error:
                bad.add(part[i].file, error)
                continue
            largest = max(largest, min(image.shape[:2]))
            pixels[i] = crop(image, resolution)
        return largest

    return max(pool.map(decode_block, range(0, len(part), BLOCK)))
