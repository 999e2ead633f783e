"""Images in one file: npz and npy (ADM's and DiT's exchange format), tar (webdataset) and parquet (Hugging Face).

Nothing is unpacked to the disk, no more than a batch is held in memory, and no object is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.data.containers import MAX_BYTES, BadFile
from pagoda_bench.data.decode import decode, decoding
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.extractors.base import optional
from pagoda_bench.metrics.inputs import SUFFIXES, WHOLE, Batch, Crop, Part, Pixels, Stream, check_layout, collect, turned

BOMB_RATIO, BOMB_BYTES = 200, 1 << 26  # no photographs shrink to a 200th; small files may be anything
LABELS = ("arr_1", "labels", "label", "y")
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, KeyError)


class Npz(Stream):
    """The uint8 array `arr_0` (or the only four-dimensional one) of an npz, or an npy, read batch by batch."""

    def __init__(self, path: Path, crop: Crop | None = None) -> None:
        self.where, self.path, self.crop = str(path), path, crop
        self._member: str | None = None
        labels = None
        if path.suffix.lower() == ".npz":
            headers = npz_headers(path)
            wide = [name for name, (shape, _) in headers.items() if len(shape) == 4]
            self._member = "arr_0" if "arr_0" in headers else wide[0] if len(wide) == 1 else None
            if self._member is None:
                raise UserError(f"{path} has no array 'arr_0' of images (it has: {', '.join(sorted(headers)) or 'nothing'})")
            self.shape, dtype = headers[self._member]
            name = next((name for name in LABELS if name in headers), None)
            if name and len(headers[name][0]) == 1 and headers[name][0][0] == self.shape[0]:
                labels = read_npz(path, [name])[name].astype(np.int64)
        else:
            with _reading(path), path.open("rb") as stream:
                self.shape, dtype = npy_header(stream, path.stat().st_size, str(path))
        check_layout(self.shape, dtype, f"{path}{f' ({self._member})' if self._member else ''}")
        self.n, self._labels = self.shape[0], labels

    def digest(self) -> str:
        return _file_digest(self.path, self.crop)

    def batches(self, size: int, part: Part = WHOLE) -> Iterator[Batch]:
        row, shape = int(np.prod(self.shape[1:])), self.shape[1:]
        with _reading(self.path), self._open() as stream:
            npy_header(stream, None, self.where)
            for start in range(0, self.n, size):
                count = min(size, self.n - start)
                data = stream.read(count * row)
                if len(data) != count * row:
                    raise UserError(f"{self.where} is truncated after image {start + len(data) // row}: copy it again")
                if not part.has(start, size):  # read all the same: that is quick, and damage anywhere is found
                    continue
                images = np.frombuffer(data, np.uint8).reshape(count, *shape)
                if self.crop:
                    images = np.stack([self.crop(image) for image in images])
                yield Batch(images, None if self._labels is None else self._labels[start : start + count])

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        if self._member is None:
            with self.path.open("rb") as stream:
                yield stream
        else:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self._member}.npy") as stream:
                yield stream


class Tar(Stream):
    """Images of a tar in its order (webdataset); a member "x.cls" is the label of "x.png"."""

    def __init__(self, path: Path, crop: Crop | None = None) -> None:
        self.where, self.path, self.crop = str(path), path, crop
        self._labels: dict[str, int] = {}
        self.n = 0
        for name, data in self._members():
            if name.lower().endswith(SUFFIXES):
                self.n += 1
            elif name.endswith(".cls"):
                text = data().decode("ascii", "replace").strip()
                if not text.isdecimal():
                    raise UserError(f"{path}: '{name}' is no class number: mend it")
                self._labels[name.removesuffix(".cls")] = int(text)
        if not self.n:
            raise UserError(f"{path} holds no images ({', '.join(SUFFIXES)}): give another tar")

    def digest(self) -> str:
        return _file_digest(self.path, self.crop)

    def texts(self) -> list[str] | None:
        """Of "x.txt" of "x.png"."""
        found: dict[str, str] = {}
        names: list[str] = []
        for name, data in self._members():
            if name.lower().endswith(SUFFIXES):
                names.append(name.rpartition(".")[0])
            elif name.endswith(".txt"):
                found[name.removesuffix(".txt")] = data().decode("utf-8", "replace").strip()
        if not found.keys() & set(names):
            return None
        if missing := [name for name in names if name not in found]:
            raise UserError(f"{self.path} has captions, but no '{missing[0]}.txt': give every image one")
        return [found[name] for name in names]

    def batches(self, size: int, part: Part = WHOLE) -> Iterator[Batch]:
        def images() -> Iterator[tuple[str, Pixels, int | None]]:
            members = ((name, data) for name, data in self._members() if name.lower().endswith(SUFFIXES))
            for number, (name, data) in enumerate(members):
                if part.has(number, size):
                    image = _decoded(self.path, name, data(), self.crop)
                    yield name, self.crop(image) if self.crop else image, self._labels.get(name.rpartition(".")[0])

        with decoding():
            yield from collect(self.where, images(), size)

    def _members(self) -> Iterator[tuple[str, Callable[[], bytes]]]:
        try:
            with tarfile.open(self.path, "r:*") as archive:
                for member in archive:
                    if not member.isfile():
                        continue
                    if member.size > MAX_BYTES:
                        raise UserError(f"{self.path}: '{member.name}' has more than {MAX_BYTES >> 20} MiB: remove it")
                    stream = archive.extractfile(member)
                    if stream is not None:
                        yield member.name, stream.read
                plain = isinstance(archive.fileobj, io.BufferedReader)  # a compressed one says so itself
                if plain and archive.offset >= self.path.stat().st_size:
                    raise tarfile.ReadError("its end is missing")
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            reason = " ".join(str(error).split())[:80]
            raise UserError(f"{self.path} is a truncated or damaged tar ({reason}): copy or make it again") from None


class Parquet(Stream):
    """The column `image` (bytes, or a struct with `bytes`) and, where there is one, `label` of a Hugging Face data set."""

    def __init__(self, path: Path, crop: Crop | None = None) -> None:
        self.where, self.path, self.crop = str(path), path, crop
        parquet: Any = optional("pyarrow.parquet")
        failures = (optional("pyarrow").ArrowException, OSError)
        try:
            self._file = parquet.ParquetFile(path)
        except failures as error:
            reason = " ".join(str(error).split())[:80]
            raise UserError(f"{path} cannot be read as parquet ({reason}): copy or download it again") from None
        self._columns = [name for name in ("image", "img", "label", "fine_label") if name in self._file.schema_arrow.names]
        if not self._columns or self._columns[0] not in ("image", "img"):
            raise UserError(f"{path} has no column 'image' (it has: {', '.join(self._file.schema_arrow.names)})")
        self.n = int(self._file.metadata.num_rows)
        if not self.n:
            raise UserError(f"{path} holds no images")

    def __reduce__(self) -> tuple[Any, ...]:  # another process opens the file for itself
        return Parquet, (self.path, self.crop)

    def digest(self) -> str:
        return _file_digest(self.path, self.crop)

    def texts(self) -> list[str] | None:
        """The column `text` or `caption`."""
        column = next((name for name in ("text", "caption") if name in self._file.schema_arrow.names), None)
        if column is None:
            return None
        found = self._file.read(columns=[column]).column(column).to_pylist()
        if (bad := next((row for row, text in enumerate(found) if not isinstance(text, str)), None)) is not None:
            raise UserError(f"{self.path}: row {bad} of '{column}' holds no text: give every image a caption")
        return [str(text) for text in found]

    def batches(self, size: int, part: Part = WHOLE) -> Iterator[Batch]:
        def images() -> Iterator[tuple[str, Pixels, int | None]]:
            rows = (row for some in self._file.iter_batches(batch_size=size, columns=self._columns) for row in some.to_pylist())
            for row, value in enumerate(rows):
                if part.has(row, size):
                    name, cell = f"row {row}", value[self._columns[0]]
                    data = cell.get("bytes") if isinstance(cell, dict) else cell
                    if not isinstance(data, bytes):
                        raise UserError(
                            f"{self.path}: {name} holds no image bytes: save the images themselves, not their paths"
                        )
                    image = _decoded(self.path, name, data, self.crop)
                    label = value[self._columns[1]] if len(self._columns) > 1 else None
                    yield name, self.crop(image) if self.crop else image, label if isinstance(label, int) else None

        with decoding():
            yield from collect(self.where, images(), size)


def npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of every array of an npz, without reading data. Raises `UserError`, also for what looks like a bomb."""
    found = {}
    with _reading(path), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                continue
            if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * max(1, info.compress_size):
                raise UserError(
                    f"{path}: '{info.filename}' would grow from {info.compress_size:,} to {info.file_size:,} bytes, as a zip "
                    "bomb does: save it with np.savez, uncompressed, if you trust it"
                )
            with archive.open(info) as stream:
                where = f"{path} ({info.filename.removesuffix('.npy')})"
                found[info.filename.removesuffix(".npy")] = npy_header(stream, info.file_size, where)
    return found


def read_npz(path: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """The arrays `names` of an npz whose headers were checked, without pickle."""
    with _reading(path), np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in names}


def npy_header(stream: IO[bytes], size: int | None, where: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype from the start of an npy of `size` bytes; the stream stands at the data then."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise UserError(f"{where} holds pickled objects, which could run code: save plain arrays")
    if fortran and len(shape) > 2:
        raise UserError(f"{where} is in Fortran order: save np.ascontiguousarray of it")
    data = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size is not None and size - stream.tell() != data:
        raise UserError(f"{where} says shape {shape} and has {size - stream.tell():,} bytes, not {data:,}: save it again")
    return shape, dtype


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): it is truncated or damaged; copy or make it again") from None


def _decoded(path: Path, name: str, data: bytes, crop: Crop | None) -> Pixels:
    try:
        return decode(data, turn=turned(crop))
    except BadFile as error:
        raise UserError(f"{path}: '{name}' {error}: replace or remove it") from None


def _file_digest(path: Path, crop: Crop | None) -> str:
    digest = hashlib.sha256(str(crop and crop.identity).encode())
    with path.open("rb") as stream:
        for block in iter(partial(stream.read, 1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


BY_SUFFIX: dict[tuple[str, ...], Callable[[Path, Crop | None], Stream]] = {
    (".npz", ".npy"): Npz,
    (".tar", ".tar.gz", ".tgz"): Tar,
    (".parquet",): Parquet,
}
