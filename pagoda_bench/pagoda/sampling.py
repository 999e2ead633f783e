"""Samples of any generator, to a folder of PNG files or one npz file: resumable, and with what they are written beside them.

A folder holds `000000.png` ... by sample index, `labels.csv` and `samples.json`. An npz holds `arr_0` (uint8 NHWC) and
`arr_1` (int64 labels), as the field's evaluators read them, and `protocol`, the JSON text of `samples.json`.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pagoda_bench.artifacts.checkpoint import read_json, save_atomic, write_json
from pagoda_bench.diffusion.edm import SIGMA_MAX
from pagoda_bench.errors import UserError
from pagoda_bench.nets.features import from_network
from pagoda_bench.pagoda.generate import NoiseSampler
from pagoda_bench.pagoda.rejection import Rejected, classifier
from pagoda_bench.recipes.imported import Rounding, SampleProtocol, Samples
from pagoda_bench.recipes.stages import Generator
from pagoda_bench.sampling.counting import count_evaluations
from pagoda_bench.sampling.generators import Sampler, load
from pagoda_bench.sampling.noise import noise

BATCH = 64
LABEL_STREAM = 2**63  # keeps the streams of labels apart from those of noise, whatever the seed
SAMPLES = "samples.json"

Progress = Callable[..., None]


class Drawn:
    """A noise sampler under a protocol: its own seed and rounding, on a device and in a precision."""

    def __init__(self, inner: NoiseSampler, protocol: SampleProtocol, device: str = "cpu") -> None:
        self.net = inner.net.to(device=device, dtype=getattr(torch, protocol.precision))
        self.draw, self.protocol, self.device = inner.draw, protocol, device
        self.resolution, self.classes, self.parameters = inner.resolution, inner.classes, inner.parameters

    def sample(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[NDArray[np.uint8], int]:
        """Images uint8 (N, R, R, 3), and the network evaluations each of them took, counted."""
        size = self.net.config.resolution
        z = torch.from_numpy(noise(indices, (3, size, size), self.protocol.seed)).to(self.device) * SIGMA_MAX
        with torch.inference_mode(), count_evaluations(self.net) as counter:
            x = self.draw(z, torch.from_numpy(labels).to(self.device))
        return to_bytes(x.cpu(), self.protocol.rounding), counter.per_image(len(indices))


def to_bytes(x: Tensor, rounding: Rounding) -> NDArray[np.uint8]:
    """float NCHW in [-1, 1] to uint8 NHWC: to the nearest value, or cut off below it as the official script does, which
    makes images darker by half a step on average. Values outside are clipped."""
    if rounding == "nearest":
        return from_network(x)
    return ((x.float() + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def sampler(generator: Generator, protocol: SampleProtocol, ctx: Any, device: str = "cpu") -> Sampler:
    """The generator's sampler under the protocol. `UserError` where it is not one that the protocol's options reach."""
    found = load(generator, ctx)
    if isinstance(found, NoiseSampler):
        found = Drawn(found, protocol, device)
    elif protocol != SampleProtocol(labels=protocol.labels, reject=protocol.reject) or device != "cpu":
        raise UserError(
            f"generator '{generator.kind}' rounds to nearest, in float32 on the CPU, from seed 0: leave these options away"
        )
    return found if protocol.reject is None else Rejected(found, protocol.reject, classifier(protocol.reject, ctx))


def labels_of(indices: NDArray[np.int64], classes: int, protocol: SampleProtocol) -> NDArray[np.int64]:
    """Labels (N,), each a function of its index (and the seed) alone: index mod classes, or drawn uniformly."""
    if protocol.labels == "balanced":
        return indices % classes
    keys = [np.array([LABEL_STREAM + protocol.seed, index], np.uint64) for index in indices.tolist()]
    return np.array([np.random.Generator(np.random.Philox(key=key)).integers(classes) for key in keys], np.int64)


def run(recipe: Samples, ctx: Any) -> None:
    """The stage: a folder of images as the artifact's payload."""
    to_folder(recipe, sampler(recipe.generator, recipe.protocol, ctx), ctx.out, ctx.progress)


def to_folder(recipe: Samples, source: Sampler, folder: Path, progress: Progress) -> None:
    """PNG files; those that are there already, from an interrupted run of the same recipe, are kept.

    Raises:
        UserError: the folder holds something else.
    """
    _make(folder)
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    before = read_json(folder / SAMPLES)
    if others and (not isinstance(before, dict) or before.get("key") != recipe.key):
        raise UserError(f"{folder} holds other files ({min(others)}): give an empty folder, or the same command as before")
    width = max(6, len(str(recipe.first + recipe.n - 1)))
    if before is None:
        write_json(folder / SAMPLES, _facts(recipe, source, nfe=None))
    counted = isinstance(before, dict) and before.get("nfe") is not None
    nfe: int | None = None
    classes = source.classes
    with_labels: list[tuple[int, int]] = []
    for indices in _batches(recipe, source):
        labels = labels_of(indices, classes, recipe.protocol)
        paths = [folder / f"{index:0{width}d}.png" for index in indices.tolist()]
        if not all(path.exists() for path in paths):  # a batch is made whole, as it would have been the first time
            images, nfe = source.sample(indices, labels)
            for path, image in zip(paths, images, strict=True):
                save_atomic(path, partial(Image.fromarray(image).save, format="PNG"))
        with_labels += zip(indices.tolist(), labels.tolist(), strict=True)
        progress(len(with_labels), recipe.n)
    save_atomic(folder / "labels.csv", lambda path: _write_labels(path, sorted(with_labels)))
    if nfe is None and not counted:  # stopped after the last image, before it was written what one takes
        _, nfe = source.sample(indices, labels)
    if nfe is not None:
        write_json(folder / SAMPLES, _facts(recipe, source, nfe=nfe))


def to_npz(recipe: Samples, source: Sampler, path: Path, progress: Progress) -> None:
    """One npz, through a memory-mapped file beside it, from which an interrupted run of the same recipe goes on."""
    _make(path.parent)
    state, part = path.with_name(f".{path.name}.json"), path.with_name(f".{path.name}.part.npy")
    shape = (recipe.n, source.resolution, source.resolution, 3)
    before = read_json(state)
    done, nfe = 0, None
    if isinstance(before, dict) and before.get("key") == recipe.key and part.is_file():
        done, nfe = int(before["done"]), before["nfe"]
        images = np.lib.format.open_memmap(part, mode="r+")
    else:
        if (needed := math.prod(shape)) > (free := shutil.disk_usage(path.parent).free):
            raise UserError(f"{path} takes {needed:.1e} bytes and the disk has {free:.1e} free: make fewer images at a time")
        images = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
    end = 0  # in the order of the batches
    for indices in _batches(recipe, source):
        end += len(indices)
        if end > done:
            labels = labels_of(indices, source.classes, recipe.protocol)
            images[indices - recipe.first], nfe = source.sample(indices, labels)
            images.flush()
            done = end
            write_json(state, {"key": recipe.key, "done": done, "nfe": nfe})
        progress(done, recipe.n)
    everything = np.arange(recipe.first, recipe.first + recipe.n, dtype=np.int64)
    small: dict[str, NDArray[Any]] = {
        "arr_1": labels_of(everything, source.classes, recipe.protocol),
        "protocol": np.array(json.dumps(_facts(recipe, source, nfe=nfe), sort_keys=True)),
    }
    del images
    save_atomic(path, lambda temporary: _pack(temporary, part, small))
    part.unlink()
    state.unlink()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {folder} cannot be made ({error.strerror}): choose another place") from None


def _pack(path: Path, images: Path, small: dict[str, NDArray[Any]]) -> None:
    """An uncompressed npz whose large array is copied from a file, never held in memory."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.write(images, "arr_0.npy")
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _facts(recipe: Samples, source: Sampler, nfe: float | None) -> dict[str, Any]:
    """What is recorded beside samples: the recipe with its key, the protocol in words, and what was counted."""
    words: dict[str, Any] = {
        "labels": f"{recipe.protocol.labels} over {source.classes} classes",
        "rounding": recipe.protocol.rounding,
        "noise": f"one stream for each index, seed {recipe.protocol.seed}",
        "precision": recipe.protocol.precision,
        "device": getattr(source, "device", "cpu"),
        "batch": BATCH,
    }
    if isinstance(source, Rejected):
        words["rejection"] = source.words
        if nfe is not None:  # what was rejected was evaluated too
            words["candidates"] = source.candidates(recipe.first, recipe.n)
            nfe = nfe * words["candidates"] / recipe.n
    return {
        "key": recipe.key,
        "recipe": recipe.to_dict(),
        "protocol": words,
        "nfe": nfe,
        "parameters": source.parameters,
        "resolution": source.resolution,
        "torch": str(torch.__version__),
    }


def _batches(recipe: Samples, source: Sampler) -> Iterator[NDArray[np.int64]]:
    """Always the same batches: float32 networks round differently at another batch size."""
    if isinstance(source, Rejected):
        yield from source.groups(recipe.first, recipe.n)
        return
    for start in range(recipe.first, recipe.first + recipe.n, BATCH):
        yield np.arange(start, min(start + BATCH, recipe.first + recipe.n), dtype=np.int64)


def _write_labels(path: Path, rows: list[tuple[int, int]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator=os.linesep).writerows([("index", "label"), *rows])
