"""Sets of images to be measured, from whatever holds them, as one kind of stream: batches of uint8 (N, H, W, 3) in order.

A stream knows how many images it has, can be read again from its start, and names the file at fault when one cannot be used.
All its images have one size, unless a crop brings them to one.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pagoda_bench.data.containers import BadFile, BadFiles, open_source
from pagoda_bench.data.decode import decode, decoding
from pagoda_bench.data.layout import sort_classes
from pagoda_bench.data.resize import CROPS, center_crop_box
from pagoda_bench.errors import UserError, nearest

Pixels = NDArray[np.uint8]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LARGEST = 8192  # px of a crop: one image has 200 MB then
ONE_SIZE = "bring them to one size, or choose a crop (--crop adm:256, box:64, lanczos:512)"


class Batch(NamedTuple):
    """Consecutive images of a stream."""

    images: Pixels  # (N, H, W, 3)
    labels: NDArray[np.int64] | None  # (N,), where the source says
    first: str = ""  # the name of its first image, where images have names


class Part(NamedTuple):
    """Of the batches of a stream, those with number `first`, `first + of`, ...: the work of one of `of` processes."""

    first: int = 0
    of: int = 1

    def has(self, image: int, size: int) -> bool:
        """Whether image number `image` of the stream is in it, when `size` images are a batch."""
        return image // size % self.of == self.first


WHOLE = Part()


class Crop(NamedTuple):
    """How images of any size become squares; a part of what a reference is."""

    name: str
    resolution: int

    @classmethod
    def parse(cls, text: str) -> Crop:
        """From "name:resolution"."""
        name, _, size = text.partition(":")
        if name not in KNOWN_CROPS:
            raise UserError(f"unknown crop '{name}'" + nearest(name, KNOWN_CROPS))
        pixels = int(size[:9]) if size.isdecimal() else 0
        if not pixels:
            raise UserError(f"crop '{text}' names no resolution: write {name}:256")
        if pixels > LARGEST:
            raise UserError(f"crop '{text[:40]}' is of more than {LARGEST:,} px: choose a smaller one")
        return cls(name, pixels)

    def __call__(self, image: Pixels) -> Pixels:
        return KNOWN_CROPS[self.name](image, self.resolution)

    def __str__(self) -> str:
        return f"{self.name}:{self.resolution}"

    @property
    def identity(self) -> str:
        """What a digest has to know of it."""
        return f"{self} turned" if turned(self) else f"{self} as stored"


def turned(crop: Crop | None) -> bool:
    """Whether the EXIF orientation is applied: not under the crops of published programs, which read pixels as stored."""
    return crop is None or crop.name == "box"


def crop_lanczos(image: Pixels, resolution: int) -> Pixels:
    """uint8 (H, W, 3): the centre square, then PIL's 8-bit Lanczos filter (EDM2's `center-crop`)."""
    height, width = image.shape[:2]
    side = min(height, width)
    square = image[(height - side) // 2 : (height + side) // 2, (width - side) // 2 : (width + side) // 2]
    return np.asarray(Image.fromarray(square).resize((resolution, resolution), Image.Resampling.LANCZOS))


# EDM2's `center-crop-dhariwal` is ADM's crop under another name.
KNOWN_CROPS: dict[str, Callable[[Pixels, int], Pixels]] = {
    "adm": CROPS["adm"],
    "center-crop-dhariwal": CROPS["adm"],
    "box": center_crop_box,
    "lanczos": crop_lanczos,
}


class Stream(ABC):
    """Images in a fixed order. `where` is how errors and provenance call the whole; `n` is how many there are."""

    where: str
    n: int
    crop: Crop | None = None

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 over the content (not the name): what a cache of features is keyed by."""

    def texts(self) -> list[str] | None:
        """The caption of each image, in order, where the source has them. Raises `UserError` where only some have one."""
        return None

    @abstractmethod
    def batches(self, size: int, part: Part = WHOLE) -> Iterator[Batch]:
        """The batches of `part` (default: all) of the images from the first, `size` at a time; the last may be smaller.

        A batch is the same whichever part it is asked in. Streams are pickled to other processes, which read their parts.
        """


def collect(where: str, items: Iterable[tuple[str, Pixels, int | None]], size: int) -> Iterator[Batch]:
    """Batches of images that come one by one as (name, pixels, label). Raises `UserError` for one of another size."""
    first, shape = "", None
    items = iter(items)
    while block := list(islice(items, size)):
        for name, image, _ in block:
            if shape is None:
                first, shape = name, image.shape
            if image.shape != shape:
                raise unlike(where, name, image.shape, first, shape)
        labels = [label for _, _, label in block]
        known = None if any(label is None for label in labels) else np.array(labels, np.int64)
        yield Batch(np.stack([image for _, image, _ in block]), known, block[0][0])


def unlike(where: str, name: str, shape: tuple[int, ...], first: str, its: tuple[int, ...]) -> UserError:
    """The error of an image of `shape` (H, W, ...) in a set whose first image has another."""
    return UserError(f"{where}: '{name}' is {shape[1]} x {shape[0]} px and '{first}' is {its[1]} x {its[0]}: {ONE_SIZE}")


class Array(Stream):
    """uint8 (N, H, W, 3) in memory."""

    def __init__(self, images: Any, where: str = "images", labels: NDArray[np.int64] | None = None) -> None:
        check_layout(images.shape, images.dtype, where)
        self.where, self.n, self._images, self._labels = where, len(images), images, labels

    def digest(self) -> str:
        found = hashlib.sha256(repr(self._images.shape).encode())
        for start in range(0, self.n, 256):
            found.update(np.ascontiguousarray(self._images[start : start + 256]).data)
        return found.hexdigest()

    def batches(self, size: int, part: Part = WHOLE) -> Iterator[Batch]:
        for start in range(part.first * size, self.n, part.of * size):
            labels = None if self._labels is None else self._labels[start : start + size]
            yield Batch(np.asarray(self._images[start : start + size]), labels)

    def save(self, path: Path) -> None:
        """An npz that holds the same images and labels."""
        arrays: dict[str, Any] = {"arr_0": self._images}
        if self._labels is not None:
            arrays["labels"] = self._labels
        np.savez(path, **arrays)


class Files(Stream):
    """Image files of a folder or a zip, sorted by name. Where every file lies in a folder, the top folders are the classes, in
    the order that they have as training data, so that "10" is label 10 here as in the labels of generators and npz files."""

    def __init__(self, path: Path, crop: Crop | None = None) -> None:
        self.where, self.path, self.crop = str(path), path, crop
        with open_source(path) as source:
            self.names = [name for name in source.names if name.lower().endswith(SUFFIXES)]
        if not self.names:
            raise UserError(f"{path} holds no images ({', '.join(SUFFIXES)}): give another folder or zip")
        self.n = len(self.names)
        tops = sort_classes({name.partition("/")[0] for name in self.names})
        self._classes = {top: i for i, top in enumerate(tops)} if all("/" in name for name in self.names) else {}

    def digest(self) -> str:
        found, bad = hashlib.sha256(str(self.crop and self.crop.identity).encode()), BadFiles(self.path)
        with open_source(self.path) as source:
            for name in self.names:
                try:
                    found.update(hashlib.sha256(source.read(name)).digest())
                except BadFile as error:
                    bad.add(name, error)
        bad.raise_if_any(self.n)
        return found.hexdigest()

    def texts(self) -> list[str] | None:
        """Of "x.txt" beside "x.png"."""
        with open_source(self.path) as source:
            there = set(source.names)
            names = [f"{name.rpartition('.')[0]}.txt" for name in self.names]
            if not there & set(names):
                return None
            if missing := [name for name in names if name not in there]:
                raise UserError(f"{self.path} has captions, but no '{missing[0]}': give every image one")
            try:
                return [source.read(name).decode("utf-8", "replace").strip() for name in names]
            except BadFile as error:
                raise UserError(f"{self.path}: a caption {error}: replace it") from None

    def batches(self, size: int, part: Part = WHOLE) -> Iterator[Batch]:
        threads = max(1, (os.cpu_count() or 1) // part.of)
        with open_source(self.path) as source, decoding(), ThreadPoolExecutor(max_workers=threads) as pool:

            def read(name: str) -> Pixels | BadFile:
                try:
                    image = decode(source.read(name), turn=turned(self.crop))
                except BadFile as error:
                    return error
                return self.crop(image) if self.crop else image

            def images() -> Iterator[tuple[str, Pixels, int | None]]:
                for start in range(part.first * size, self.n, part.of * size):
                    names, bad = self.names[start : start + size], BadFiles(self.path)
                    for name, image in zip(names, list(pool.map(read, names)), strict=True):
                        if isinstance(image, BadFile):
                            bad.add(name, image)
                        else:
                            yield name, image, self._classes.get(name.partition("/")[0])
                    bad.raise_if_any(len(names))

            yield from collect(self.where, images(), size)


def check_layout(shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
    """Raises `UserError` unless an array of images is uint8 (N, H, W, 3) with N, H, W >= 1."""
    if dtype.hasobject:
        raise UserError(f"{where} holds pickled objects, which could run code: save a plain uint8 array")
    if dtype != np.uint8:
        range_ = "round them to [0, 255] first" if dtype.kind == "f" else "save them as uint8"
        raise UserError(f"{where} is {dtype} and must be uint8: {range_}")
    if len(shape) != 4:
        raise UserError(f"{where} has shape {shape} and must be (N, H, W, 3)")
    if shape[0] == 0:
        raise UserError(f"{where} holds no images")
    if shape[3] != 3:
        hint = "transpose it to channels last" if shape[1] == 3 else "convert it to RGB"
        raise UserError(f"{where} has {shape[3]} channels, shape {shape}, and must be (N, H, W, 3): {hint}")
    if not shape[1] or not shape[2]:
        raise UserError(f"{where} has images without pixels, shape {shape}")
