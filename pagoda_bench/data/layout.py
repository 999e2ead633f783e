"""Which class and which split each image of a source belongs to.

Classes come from the folder that an image lies in (`.../<class>/<file>`) or from one labels file at the top (see labels.py),
which must name every image once.

Splits come from a labels file's `split`, or from the first folder: `train`, `val` (`valid`, `validation`) and `test`. Where
there is `val`, `test` is not used at all; otherwise `test` is the validation split. Without splits, every tenth image of a
class (at least one) is for validation, chosen by the SHA-256 of its name.

A folder around everything (`cifar/train/...`) is not part of the names. Classes are sorted by name, or by value when all
are whole numbers; the label is the index.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pagoda_bench.data.labels import LABELS_FILES, SPLIT_NAMES, Row, parse_labels, suffix
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.data import Split

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
OTHER_IMAGES = frozenset({".tif", ".tiff", ".bmp", ".gif", ".avif", ".heic", ".jp2", ".jxl", ".ppm", ".pgm", ".exr", ".hdr"})


class Entry(NamedTuple):
    name: str  # without the folder around everything
    file: str  # what the source calls it
    label: int
    split: Split


@dataclass(frozen=True)
class Layout:
    """All used images, in the order of the source's names."""

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    labels_file: str | None  # what the source calls it

    def size(self, split: Split) -> int:
        return sum(entry.split == split for entry in self.entries)

    def ordered(self) -> tuple[Entry, ...]:
        """The order of indices: the training split, then the validation split, each by `stratified`."""
        return tuple(entry for split in ("train", "val") for entry in stratified(e for e in self.entries if e.split == split))


def arrange(names: Collection[str], folders: Iterable[str], read: Callable[[str], bytes], where: Path) -> Layout:
    """The layout of the files `names` of the source at `where`. Raises `UserError` for whatever does not fit together."""
    images = [name for name in names if suffix(name) in IMAGE_SUFFIXES]
    if not images:
        other = sorted(name for name in names if suffix(name) in OTHER_IMAGES)
        found = f" ('{other[0]}' is of a kind that is not read)" if other else ""
        raise UserError(f"{where} holds no JPEG, PNG or WebP images{found}: give the folder or zip that does")
    present = set(names)
    wrapper = _wrapper(present, images)
    labels_files = [wrapper + name for name in LABELS_FILES if wrapper + name in present]
    if len(labels_files) > 1:
        raise UserError(f"{where} holds {' and '.join(labels_files)}: keep one labels file")
    rows = parse_labels(read(labels_files[0]), labels_files[0]) if labels_files else []
    named = _folder_splits(images, wrapper, bool(labels_files)) | {wrapper + row.file: row.split for row in rows if row.split}
    unread = {name for name in names if suffix(name) in OTHER_IMAGES and name.startswith(wrapper)}
    if "val" in named.values():  # then `test` is not used, and may be unlabelled
        unread = {name for name in unread if _top(name, wrapper) != "test"}
        images = [name for name in images if named.get(name) != "test"]
    if unread:
        raise UserError(
            f"{where}: {len(unread)} images are of a kind that is not read, the first '{min(unread)}': convert them to PNG"
        )
    splits = _settled({name: named[name] for name in images if name in named}, images, where)
    if rows:
        labels = _labels_of(images, present, wrapper, rows, where)
    else:
        labels = {name: _folder_class(name, wrapper, where) for name in images}
        _refuse_empty_folders(images, folders, wrapper, where)
        _refuse_same_class_folders(images, wrapper, where)
    classes = sort_classes({labels[name] for name in images})
    index = {label: i for i, label in enumerate(classes)}
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in images:
        by_class[labels[name]].append(name)
    if not splits:
        splits = _hash_split(by_class, len(wrapper), where)
    for split in ("train", "val"):
        for label, members in by_class.items():
            if not any(splits[name] == split for name in members):
                raise UserError(f"{where}: class '{label}' has no images in the split '{split}': add some or remove the class")
    skip = len(wrapper)
    entries = tuple(Entry(name[skip:], name, index[labels[name]], splits[name]) for name in images)
    return Layout(entries, classes, labels_files[0] if labels_files else None)


def stratified(entries: Iterable[Entry]) -> list[Entry]:
    """An order that depends on names alone and in which every beginning has the classes in proportion.

    Within a class by the SHA-256 of the name; the i-th of n comes at (i + 1/2) / n, ties by label.
    """
    by_label: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_label[entry.label].append(entry)
    placed = []
    for label, members in by_label.items():
        members.sort(key=lambda entry: name_hash(entry.name))
        placed += [((2 * i + 1) / (2 * len(members)), label, entry) for i, entry in enumerate(members)]
    return [entry for _, _, entry in sorted(placed, key=lambda item: item[:2])]


def name_hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def sort_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """By value when all are whole numbers (so that '10' follows '9'), else by name."""
    found = list(labels)
    if all(label.isascii() and label.isdecimal() for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))


def _labels_of(images: list[str], present: Collection[str], wrapper: str, rows: list[Row], where: Path) -> dict[str, str]:
    labels: dict[str, str] = {}
    for row in rows:
        name = wrapper + row.file
        if name not in present or suffix(name) not in IMAGE_SUFFIXES:
            raise UserError(f"{where}: {row.where}: there is no image '{row.file}': mend the name or remove the entry")
        if name in labels:
            raise UserError(f"{where}: {row.where}: '{row.file}' is named twice: keep one entry")
        labels[name] = row.label
    missing = sorted(name for name in images if name not in labels)
    if missing:
        raise UserError(f"{where}: {len(missing)} images have no entry in the labels file, the first '{missing[0]}': add them")
    return labels


def _top(name: str, wrapper: str) -> str | None:
    first, slash, _ = name[len(wrapper) :].partition("/")
    return SPLIT_NAMES.get(first.lower()) if slash else None


def _folder_splits(images: list[str], wrapper: str, labelled: bool) -> dict[str, str]:
    """By the first folder. Without labels it counts only where class folders lie in it: `train` alone may be a class."""
    if not labelled and not any(name.count("/", len(wrapper)) >= 2 and _top(name, wrapper) for name in images):
        return {}
    return {name: split for name in images if (split := _top(name, wrapper))}


def _wrapper(names: set[str], images: list[str]) -> str:
    """The folders around everything, with the last '/', or nothing: never a split folder, never a class folder."""
    wrapper = ""
    while True:
        rest = images[0][len(wrapper) :]
        first, slash, _ = rest.partition("/")
        outer = f"{wrapper}{first}/"
        labelled = any(wrapper + name in names for name in LABELS_FILES)
        if not slash or labelled or first.lower() in SPLIT_NAMES or not all(name.startswith(outer) for name in images):
            return wrapper
        if not any(outer + name in names for name in LABELS_FILES) and any("/" not in name[len(outer) :] for name in images):
            return wrapper
        wrapper = outer


def _settled(splits: dict[str, str], images: list[str], where: Path) -> dict[str, Split]:
    """The split of every image with `test` as `val`, or nothing when the images are to be split here."""
    if not splits:
        return {}
    if len(splits) < len(images):
        first = min(set(images) - set(splits))
        raise UserError(f"{where}: '{first}' is in none of the splits train, val and test: move it or label its split")
    if "train" not in splits.values():
        raise UserError(f"{where} has the split {' and '.join(sorted(set(splits.values())))} but no train: add it")
    if set(splits.values()) == {"train"}:
        return {}
    return {name: "train" if split == "train" else "val" for name, split in splits.items()}


def _folder_class(name: str, wrapper: str, where: Path) -> str:
    parts = name[len(wrapper) :].split("/")
    if len(parts) < 2:
        raise UserError(f"{where}: '{name}' lies in no class folder: use <class>/<file>, or a labels.csv (file,label)")
    return parts[-2]


def _refuse_empty_folders(images: list[str], folders: Iterable[str], wrapper: str, where: Path) -> None:
    """A folder that holds neither images nor folders is a class without images."""
    every = {folder for folder in folders if folder.startswith(wrapper)}
    above = {folder.rpartition("/")[0] for folder in every}
    filled = {name.rpartition("/")[0] for name in images}
    test_used = any(_top(name, wrapper) == "test" for name in images)
    empty = sorted(f for f in every - above - filled if test_used or _top(f + "/", wrapper) != "test")
    if empty:
        raise UserError(f"{where}: {len(empty)} class folders hold no images, the first '{empty[0]}': fill them or remove them")


def _refuse_same_class_folders(images: list[str], wrapper: str, where: Path) -> None:
    """Two folders of one name in different places, which would be taken for one class; split folders without classes."""
    folders = sorted({name[len(wrapper) :].rpartition("/")[0] for name in images})
    if all(folder.lower() in SPLIT_NAMES for folder in folders):
        raise UserError(f"{where}: '{folders[0]}' has no class folders: use {folders[0]}/<class>/<file>, or a labels.csv")
    split = all(_top(folder + "/", "") for folder in folders)
    seen: dict[str, str] = {}
    for folder in folders:
        place = folder.split("/", 1)[1] if split and "/" in folder else folder
        label = posixpath.basename(folder)
        if split and "/" not in folder:
            raise UserError(f"{where}: images in '{folder}' lie in no class folder: move them into {folder}/<class>")
        if seen.setdefault(label, place) != place:
            raise UserError(f"{where}: folders '{seen[label]}' and '{place}' would be one class '{label}': rename one")


def _hash_split(by_class: dict[str, list[str]], skip: int, where: Path) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    for label, members in by_class.items():
        if len(members) < 2:
            raise UserError(f"{where}: class '{label}' has one image, and training and validation want one each: add some")
        ordered = sorted(members, key=lambda name: name_hash("split:" + name[skip:]))
        count = max(1, round(len(ordered) / 10))
        splits |= {name: "val" if i < count else "train" for i, name in enumerate(ordered)}
    return splits
