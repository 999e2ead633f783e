"""Reading images that others made, as data only: nothing in a file is ever executed."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from baselines.samples.recipes import IMAGES, LABELS, FromCommand, GivenImages, digest
from pagoda_bench.errors import UserError


class Given:
    """The sampler of a fixed set of images: no network is called, so evaluations and parameters are not known (0)."""

    parameters = 0

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64] | None, where: str) -> None:
        self.images, self.where, self.resolution = images, where, images.shape[1]
        self.classes = 1 if labels is None else int(labels.max()) + 1
        self._of_class = [np.flatnonzero(labels == k) for k in range(self.classes)] if labels is not None else None

    def sample(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[NDArray[np.uint8], int]:
        """With labels: the (index // classes)-th image of the label. Without: image `index`, whatever the label."""
        if self._of_class is None:
            return self._take(indices), 0
        ranks, found = indices // self.classes, np.empty(len(indices), np.int64)
        for i, (label, rank) in enumerate(zip(labels.tolist(), ranks.tolist(), strict=True)):
            of_class = self._of_class[label]
            if rank >= len(of_class):
                raise UserError(
                    f"{self.where}: {len(of_class)} images of label {label}, number {rank + 1} is asked for: lower n"
                )
            found[i] = of_class[rank]
        return self._take(found), 0

    def _take(self, at: NDArray[np.int64]) -> NDArray[np.uint8]:
        if len(at) and int(at.max()) >= len(self.images):
            raise UserError(f"{self.where} has {len(self.images)} images, number {int(at.max()) + 1} is asked for: lower n")
        taken: NDArray[np.uint8] = self.images[at]
        return taken


def given(config: GivenImages, ctx: Any) -> Given:
    """The loader of `GivenImages`. `UserError` when what lies there now is not what the row was made for."""
    path = Path(config.place)
    if not path.exists():
        raise UserError(f"not available: the images {config.place} are gone: put them back")
    if digest(path) != config.digest:
        raise UserError(f"{config.place} holds other images now than when the table was planned: start again")
    return Given(*read_images(path, config.size), config.place)


def made(config: FromCommand, ctx: Any) -> Given:
    path = ctx.input(config.of) / "images.npz"
    return Given(*read_images(path, config.of.size), config.of.title)


def read_images(path: Path, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """uint8 (N, size, size, 3) and labels (N,) int64 or None, from an npz or a folder.

    Raises:
        UserError: the file is no npz of images, an image is of another size, or there are not as many labels as images.
    """
    images, labels = _from_npz(path) if path.is_file() else _from_folder(path)
    if images.shape[1:] != (size, size, 3):
        raise UserError(f"{path}: images of shape {images.shape[1:]}, the row is at {size} px: give ({size}, {size}, 3)")
    if labels is not None and (len(labels) != len(images) or labels.min() < 0):
        raise UserError(f"{path}: {len(labels)} labels, {len(images)} images: give one label from 0 on for each image")
    return images, labels


def _from_npz(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["arr_0"]
            labels = arrays["arr_1"].astype(np.int64).reshape(-1) if "arr_1" in arrays.files else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no npz with an array 'arr_0' of images ({type(error).__name__}: {error})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise UserError(f"{path}: 'arr_0' is {images.dtype} of shape {images.shape}, not uint8 (N, R, R, 3)")
    return images, labels


def _from_folder(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    found = []
    names = sorted(p.name for p in path.iterdir() if p.suffix.lower() in IMAGES)
    for name in names:
        try:
            with Image.open(path / name) as image:
                found.append(np.asarray(image.convert("RGB")))
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"{path / name} cannot be read as an image ({error}): mend or remove it") from None
        if found[-1].shape != found[0].shape:
            raise UserError(f"{path / name} is {found[-1].shape[:2]}, {names[0]} is {found[0].shape[:2]}: give one size")
    if not found:
        raise UserError(f"{path} holds no images ({', '.join(IMAGES)})")
    return np.stack(found), _labels(path / LABELS)


def _labels(path: Path) -> NDArray[np.int64] | None:
    """Column `label` in the order of the images, which is that of their names."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return np.array([int(line["label"]) for line in csv.DictReader(file)], np.int64)
        except (KeyError, ValueError, TypeError):
            raise UserError(f"{path}: give a column 'label' of whole numbers, one line an image") from None
