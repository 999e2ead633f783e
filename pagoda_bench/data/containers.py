"""The two containers of image files, a folder tree and a zip, read the same way and safe to read from several threads.

Names are relative, with '/', in Unicode's composed form (NFC), so that the same files in a folder and in a zip have the same
names on every system. Hidden files (a part of the path that starts with a dot) and what systems leave behind (`__MACOSX`,
`@eaDir`, `Thumbs.db`, `desktop.ini`) are not there. Links are followed; a link to a folder that contains it is not.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Protocol

from pagoda_bench.errors import UserError

MAX_BYTES = 1 << 28  # of one file; far above any photograph, far below a zip bomb
PLAIN = re.compile(r"(?:[A-Za-z0-9][\w. -]*/)*[A-Za-z0-9][\w. -]*\.(?:jpe?g|png|webp)", re.ASCII | re.IGNORECASE)
LITTER = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini"})


class BadFile(ValueError):
    """One file that cannot be used. The message continues a sentence that starts with its name: "is truncated"."""


class Source(Protocol):
    """Named files. `read` raises `BadFile`; `names` and `folders` raise `UserError` when the whole is unusable."""

    path: Path
    slow: bool  # reading gains from many requests at once

    @property
    def names(self) -> list[str]:
        """All files, sorted."""

    @property
    def folders(self) -> set[str]:
        """All folders below the top, with those that hold no file."""

    def stamp(self) -> str:
        """Changes when the content may have changed; costs no reading of files."""

    def read(self, name: str) -> bytes:
        """The whole content of one of `names`."""


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """The folder or zip at `path`, open while the context lasts. Raises `UserError` when it is neither."""
    path = Path(path).expanduser()
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({_reason(error)})"
        raise UserError(f"{path} {reason}: give the folder or zip that holds the images") from None
    if stat.S_ISDIR(mode):
        yield Folder(path)
    elif stat.S_ISREG(mode):
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({_reason(error)}): grant access, or give another path") from None
        try:
            yield Zip(path, handle)
        finally:
            os.close(handle)
    else:
        raise UserError(f"{path} is neither a folder nor a zip file: give the folder or zip that holds the images")


class Folder:
    """A folder tree."""

    slow = True  # often on a network file system

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _tree(self) -> tuple[dict[str, tuple[Path, os.stat_result | None]], set[str]]:
        files: dict[str, tuple[Path, os.stat_result | None]] = {}
        folders: set[str] = set()
        pending: list[tuple[Path, str, tuple[tuple[int, int], ...]]] = [(self.path, "", ())]
        while pending:
            folder, prefix, above = pending.pop()
            try:
                info = folder.stat()
                entries = list(os.scandir(folder))
            except OSError as error:
                raise UserError(f"folder {folder} cannot be read ({_reason(error)}): grant access or remove it") from None
            here = (info.st_dev, info.st_ino)
            if here in above:
                continue
            if prefix:
                folders.add(prefix[:-1])
            for entry in entries:
                if _litter(entry.name):
                    continue
                name = _clean(prefix + entry.name, self.path)
                try:
                    found: os.stat_result | None = entry.stat()
                except OSError:  # a dangling link: `read` will say so if it is an image
                    found = None
                if found is not None and stat.S_ISDIR(found.st_mode):
                    pending.append((Path(entry.path), name + "/", (*above, here)))
                elif name in files:
                    raise UserError(f"{self.path} holds '{name}' twice, in two Unicode spellings: remove one")
                else:
                    files[name] = (Path(entry.path), found)
        return files, folders

    @property
    def names(self) -> list[str]:
        return sorted(self._tree[0])

    @property
    def folders(self) -> set[str]:
        return self._tree[1]

    def stamp(self) -> str:
        digest = hashlib.sha256()
        for name, (_, info) in sorted(self._tree[0].items()):
            state = (info.st_size, info.st_mtime_ns) if info else None
            digest.update(f"{name}\0{state}\n".encode())
        for name in sorted(self.folders):
            digest.update(f"{name}/\n".encode())
        return digest.hexdigest()

    def read(self, name: str) -> bytes:
        file, info = self._tree[0][name]
        if info is None:
            raise BadFile("is a link to nothing")
        if not stat.S_ISREG(info.st_mode):  # a pipe would wait for ever
            raise BadFile("is no regular file")
        if info.st_size > MAX_BYTES:
            raise BadFile(f"has more than {MAX_BYTES >> 20} MiB")
        try:
            return file.read_bytes()
        except OSError as error:
            raise BadFile(f"cannot be read ({_reason(error)})") from None


class Zip:
    """A zip, read in place by offset: several times as fast as `zipfile` on many small files, and without its lock."""

    slow = False

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._handle = path, handle

    @cached_property
    def _tree(self) -> tuple[dict[str, zipfile.ZipInfo], set[str]]:
        start = os.pread(self._handle, 4, 0)
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, struct.error, NotImplementedError) as error:
            if start == b"PK\3\4":
                raise UserError(f"{self.path} is a truncated or damaged zip: copy or download it again") from None
            reason = "is not a zip file" if isinstance(error, zipfile.BadZipFile) else f"cannot be read ({_reason(error)})"
            raise UserError(f"{self.path} {reason}: give a folder of images or a zip of it") from None
        files: dict[str, zipfile.ZipInfo] = {}
        folders: set[str] = set()
        for info in members:
            raw = info.filename
            if PLAIN.fullmatch(raw):  # most members of most archives, without the cost of the rest
                name, folder = raw, raw.rpartition("/")[0]
            else:
                raw = raw.replace("\\", "/")
                parts = raw.split("/")
                if raw.startswith("/") or ".." in parts or raw[1:2] == ":":
                    raise UserError(f"{self.path} holds the unsafe name '{_shown(raw)}': pack it again with relative names")
                parts = [part for part in parts if part not in ("", ".")]
                if any(_litter(part) for part in parts):
                    continue
                name = _clean("/".join(parts), self.path)
                folder = name if raw.endswith("/") else name.rpartition("/")[0]
            while folder and folder not in folders:
                folders.add(folder)
                folder = folder.rpartition("/")[0]
            if raw.endswith("/"):
                continue
            if name in files:
                raise UserError(f"{self.path} holds '{name}' twice: pack it again with each file once")
            files[name] = info
        return files, folders

    @property
    def names(self) -> list[str]:
        return sorted(self._tree[0])

    @property
    def folders(self) -> set[str]:
        return self._tree[1]

    def stamp(self) -> str:
        info = os.fstat(self._handle)
        return f"{info.st_size} {info.st_mtime_ns}"

    def read(self, name: str) -> bytes:
        info = self._tree[0][name]
        if info.flag_bits & 1:
            raise BadFile("is encrypted")
        if max(info.file_size, info.compress_size) > MAX_BYTES:
            raise BadFile(f"has more than {MAX_BYTES >> 20} MiB")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadFile(f"is packed with zip method {info.compress_type}, not stored or deflated")
        try:
            # One call reads the local header and, nearly always, all of the data behind its name and extra field.
            handle, guess = self._handle, 30 + len(info.filename.encode()) + 64 + info.compress_size
            data = os.pread(handle, guess, info.header_offset)
            if data[:4] != b"PK\3\4" or len(data) < 30:
                raise BadFile("has no header at its place in the zip")
            begin = 30 + sum(struct.unpack_from("<HH", data, 26))
            data = data[begin : begin + info.compress_size]
            if len(data) < info.compress_size:
                data = os.pread(handle, info.compress_size, info.header_offset + begin)
            if info.compress_type == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-15).decompress(data, info.file_size + 1)
        except OSError as error:
            raise BadFile(f"cannot be read ({_reason(error)})") from None
        except zlib.error:
            raise BadFile("is damaged inside the zip") from None
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise BadFile("is damaged inside the zip (its check sum differs)")
        return data


class BadFiles:
    """Collects every file that cannot be used, so that one message names them all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[tuple[str, str]] = []

    def add(self, name: str, reason: BadFile | str) -> None:
        self.found.append((name, str(reason)))

    def raise_if_any(self, total: int, remedy: str = "replace or remove them") -> None:
        """A `UserError` of one line with the first five by name, the number of all and the remedy."""
        if self.found:
            first = ", ".join(f"'{name}' {reason}" for name, reason in sorted(self.found)[:5])
            more = f", and {len(self.found) - 5} more" if len(self.found) > 5 else ""
            raise UserError(f"{self.path}: {len(self.found)} of {total} files cannot be used: {first}{more}: {remedy}")


def _litter(part: str) -> bool:
    return part.startswith(".") or part.lower() in LITTER


def _clean(name: str, where: Path) -> str:
    if name.isascii() and name.isprintable():
        return name
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where} holds a name that is not UTF-8, '{_shown(name)}': rename it") from None
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        raise UserError(f"{where} holds a name with a control character, '{_shown(name)}': rename it")
    return unicodedata.normalize("NFC", name)


def _shown(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
