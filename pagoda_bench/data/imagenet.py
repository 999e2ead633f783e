"""ImageNet, prepared once: an ILSVRC2012 tree of synset folders to one sharded uint8 array for each size and split.

    <store>/data.json                    digest, classes, counts, crop, decoder
    <store>/<split>/labels.npy           int64, by row
    <store>/<split>/<size>/              shards of uint8 (rows, size, size, 3) and their index
    <store>/<split>/sha256/              shards of the SHA-256 of each row's file, uint8 (rows, 32)
    <store>/.work/                       shards in the making

Every size is cut from the original by ADM's crop (Dhariwal and Nichol 2021), not from a larger size. Rows are in an order in
which every beginning has the classes in proportion, so that a part of the pairs is a fair part. Each file is decoded once for
all sizes that lack it; several processes may prepare one store; an interrupted preparation goes on where it stopped.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from pagoda_bench.artifacts.checkpoint import read_json, save_atomic, write_json
from pagoda_bench.data.containers import BadFile, BadFiles, Source, open_source
from pagoda_bench.data.decode import decode, decoder_version, decoding
from pagoda_bench.data.layout import IMAGE_SUFFIXES, Entry, stratified
from pagoda_bench.data.resize import center_crop_adm
from pagoda_bench.data.shards import INDEX, Layout, Sharded, Writer, identity_of
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.data import PreparedData, Split

ROWS = 512  # images in a shard; at 512 px, 400 MB
DATA = "data.json"
HASHES = "sha256"
CLASSES, TRAIN, VAL_EACH = 1000, 1_281_167, 50  # ILSVRC2012
FEWEST, MOST = 732, 1300  # training images of a class there
SPLITS: tuple[Split, ...] = ("train", "val")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tree:
    """The images of a split in the order of their rows."""

    split: Split
    entries: tuple[Entry, ...]

    def counts(self, classes: Sequence[str]) -> dict[str, int]:
        found = Counter(entry.label for entry in self.entries)
        return {name: found[i] for i, name in enumerate(classes)}

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.array([entry.label for entry in self.entries], np.int64)


def scan(source: Source) -> tuple[tuple[str, ...], list[Tree]]:
    """Class names, sorted, and the splits of a tree: `train/<class>/<file>` and, where it is there, `val/<class>/<file>`; or
    `<class>/<file>` alone, which is all for training. `UserError` for anything else."""
    images = [n for n in source.names if Path(n).suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise UserError(f"{source.path} holds no images: give the folder with train/<synset>/*.JPEG")
    split_folders = any(name.split("/")[0] == "train" for name in images)
    wanted = {split: f"{split}/" if split_folders else "" for split in (SPLITS if split_folders else ("train",))}
    found: dict[Split, list[tuple[str, str]]] = {}
    for split, prefix in wanted.items():
        inside = [name for name in images if name.startswith(prefix)]
        flat = [name for name in inside if name.count("/") != prefix.count("/") + 1]
        if flat:
            raise UserError(
                f"{source.path}: '{flat[0]}' lies in no class folder: use {prefix}<synset>/<file> "
                "(sort the validation images into synset folders first)"
            )
        if inside:
            found[split] = [(name, name[len(prefix) :].split("/")[0]) for name in inside]
    classes = tuple(sorted({label for _, label in found["train"]}))
    index = {label: i for i, label in enumerate(classes)}
    if strange := sorted({label for _, label in found.get("val", [])} - set(classes)):
        raise UserError(f"{source.path}: class '{strange[0]}' is in val and not in train: remove it or add its training images")
    trees = []
    for split, pairs in found.items():
        entries = [Entry(name[len(wanted[split]) :], name, index[label], split) for name, label in pairs]
        trees.append(Tree(split, tuple(stratified(entries))))
    return classes, trees


def check_counts(counts: Mapping[Split, Mapping[str, int]], where: Path) -> None:
    """That these are the images of ILSVRC2012, by their number in each class: `UserError` naming the first that is not."""
    classes = len(counts["train"])
    if classes != CLASSES:
        raise UserError(f"{where} has {classes} classes, ILSVRC2012 has {CLASSES}: complete it, or pass --any-counts")
    for split, found in counts.items():
        low, high = (FEWEST, MOST) if split == "train" else (VAL_EACH, VAL_EACH)
        for name, count in found.items():
            if not low <= count <= high:
                raise UserError(
                    f"{where}: class '{name}' has {count} images in {split}, ILSVRC2012 has "
                    f"{low if low == high else f'{low} to {high}'}: complete it, or pass --any-counts"
                )
    if (count := sum(counts["train"].values())) != TRAIN:
        raise UserError(f"{where} has {count:,} training images, ILSVRC2012 {TRAIN:,}: complete it, or pass --any-counts")


def prepare(
    path: Path,
    store: Path,
    sizes: Sequence[int],
    *,
    any_counts: bool = False,
    rows: int = ROWS,
    workers: int = 8,
    part: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Makes what `store` lacks of the images at `path`; returns what `data.json` says.

    Raises:
        UserError: a tree of another shape, other counts than ILSVRC2012's (unless `any_counts`), files that cannot be
            decoded, or a store of other images.
    """
    with open_source(path) as source, decoding():
        classes, trees = scan(source)
        counts: dict[Split, dict[str, int]] = {tree.split: tree.counts(classes) for tree in trees}
        if not any_counts:
            check_counts(counts, path)
        about: dict[str, Any] = {
            "classes": list(classes),
            "counts": counts,
            "crop": "adm",
            "turned": False,  # EXIF orientation: not applied, as in ADM's loader
            "decoder": decoder_version(),
        }
        digests, sets = {}, [_Set(tree, store, sizes, rows, about["decoder"]) for tree in trees]
        total, done = sum(s.shards for s in sets), 0
        for one in sets:
            for _ in one.make(source, workers, part):
                done += 1
                if progress is not None:
                    progress(done, total)
            digests[one.tree.split] = one.publish()
    known = read_json(store / DATA)
    about["digest"] = identity_of(classes=classes, splits=digests)
    if isinstance(known, dict) and known.get("digest") != about["digest"]:
        raise UserError(f"{store} holds other images than {path} (digest {str(known.get('digest'))[:12]}): give another --to")
    about["sizes"] = sorted({*sizes, *(known or {}).get("sizes", [])})
    write_json(store / DATA, about)
    return about


class _Set:
    """One split in the making: a writer for each size and one for the SHA-256 of the files."""

    def __init__(self, tree: Tree, store: Path, sizes: Sequence[int], rows: int, decoder: str) -> None:
        self.tree, self.folder = tree, store / tree.split
        names = hashlib.sha256("\n".join(f"{e.file} {e.label}" for e in tree.entries).encode()).hexdigest()
        self.about = {"names": names, "crop": "adm", "decoder": decoder}
        self.rows, self.work = rows, store / ".work" / tree.split
        self.writers: dict[str, Writer] = {}
        shapes: dict[str, tuple[int, ...]] = {HASHES: (32,), **{str(size): (size, size, 3) for size in sizes}}
        for name, shape in shapes.items():
            layout = Layout(len(tree.entries), shape, "uint8", rows)
            if not self._published(name):
                folder = self.work / name
                self.writers[name] = Writer(folder, layout, identity_of(**self.about, size=name, shard=rows))
        self.shards = Layout(len(tree.entries), (), "uint8", rows).count if self.writers else 0
        self.bad = BadFiles(store)

    def make(self, source: Source, workers: int, part: tuple[int, int]) -> Any:
        """Yields after each shard number that is through; `UserError` naming all files that cannot be decoded."""
        self.bad.path = source.path
        first = part[0] * self.shards // part[1]
        with ThreadPoolExecutor(max_workers=workers) as pool:
            for number in [*range(first, self.shards), *range(first)]:
                wanted = [name for name, writer in self.writers.items() if not writer.has(number)]
                made: dict[str, NDArray[np.uint8]] = {}

                def rows(start: int, stop: int, name: str, made: Any = made, wanted: Any = wanted) -> NDArray[np.uint8]:
                    if not made:
                        made.update(self._decode(pool, source, start, stop, wanted))
                    return made[name]

                for name in wanted:
                    self.writers[name].make(number, partial(rows, name=name))
                yield number
        self.bad.raise_if_any(len(self.tree.entries))

    def publish(self) -> str:
        """Puts whole arrays in their place; returns the digest of the split."""
        self.work.mkdir(parents=True, exist_ok=True)
        with FileLock(self.work / "publish.lock"):  # another process may have finished too
            for name, writer in self.writers.items():
                if self._published(name):
                    continue
                if bad := writer.damaged():
                    raise UserError(f"{writer.folder}: shard {bad[0]} is damaged: run the same command again")
                writer.publish(self.folder / name, self.about)
                for path in writer.folder.iterdir():
                    path.unlink()
            labels = self.tree.labels
            save_atomic(self.folder / "labels.npy", lambda path: np.save(path, labels))
        hashes = Sharded(self.folder / HASHES)
        digest = hashlib.sha256(labels.astype("<i8").tobytes())
        for number in range(hashes.layout.count):
            digest.update(hashes[np.arange(*hashes.layout.bounds(number))].tobytes())
        return digest.hexdigest()

    def _published(self, name: str) -> bool:
        index = read_json(self.folder / name / INDEX)
        return isinstance(index, dict) and index.get("about") == self.about and index.get("shard") == self.rows

    def _decode(
        self, pool: ThreadPoolExecutor, source: Source, start: int, stop: int, wanted: Sequence[str]
    ) -> dict[str, NDArray[np.uint8]]:
        out = {name: np.zeros((stop - start, *self.writers[name].layout.shape), np.uint8) for name in wanted}

        def one(i: int) -> None:
            entry = self.tree.entries[start + i]
            try:
                data = source.read(entry.file)
                image = decode(data, turn=False)
            except BadFile as error:
                self.bad.add(entry.file, error)
                return
            for name in wanted:
                if name == HASHES:
                    out[name][i] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
                else:
                    out[name][i] = center_crop_adm(image, int(name))

        list(pool.map(one, range(stop - start)))
        # With bad files there is no shard of zeros, only the message that names all that were met.
        self.bad.raise_if_any(len(self.tree.entries))
        return out


def describe(store: Path) -> PreparedData:
    """The data config of a prepared store. `UserError` when it is none."""
    about = _about(store)
    return PreparedData(digest=about["digest"], classes=len(about["classes"]))


class Prepared:
    """A prepared store as a data set (`data.Dataset`)."""

    def __init__(self, config: PreparedData, store: Path) -> None:
        about = _about(store)
        if about["digest"] != config.digest:
            raise UserError(
                f"{store} holds the images of digest {about['digest'][:20]}, the recipe is about '{config.name}' of digest "
                f"{config.digest[:20]}: give the path of those, or make a recipe for these"
            )
        self.config, self.store, self.sizes = config, store, about["sizes"]
        self._classes = tuple(about["classes"])
        self._labels = {s: np.load(store / s / "labels.npy", mmap_mode="r") for s in SPLITS if s in about["counts"]}
        self._arrays: dict[tuple[str, int], Sharded] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    def size(self, split: Split) -> int:
        return len(self._rows(split))

    def images(self, indices: NDArray[np.int64], resolution: int, split: Split) -> NDArray[np.uint8]:
        if resolution not in self.sizes:
            known = ", ".join(map(str, self.sizes))
            raise UserError(f"{self.store} was prepared at {known} px, not at {resolution}: run data prepare with it")
        if (split, resolution) not in self._arrays:
            self._arrays[split, resolution] = Sharded(self.store / split / str(resolution))
        return self._arrays[split, resolution][indices]

    def labels(self, indices: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
        return np.asarray(self._rows(split)[indices])

    def _rows(self, split: Split) -> NDArray[np.int64]:
        if split not in self._labels:
            raise UserError(f"{self.store} has no images of the split '{split}': prepare a tree that has {split}/")
        return self._labels[split]


def _about(store: Path) -> dict[str, Any]:
    about = read_json(store / DATA)
    if not isinstance(about, dict) or not {"digest", "classes", "counts", "sizes"} <= about.keys():
        raise UserError(f"{store} is no prepared data ({DATA} is missing or damaged): run pagoda-bench data prepare")
    return about
