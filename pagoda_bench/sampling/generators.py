"""Generators at run time: what turns sample indices and labels into images, and says what it really cost."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.data import Dataset, open_dataset
from pagoda_bench.data.resize import upsample
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.data import Split
from pagoda_bench.recipes.stages import Generator, RealImages, Upsampled

FAR = 2**31  # where the far end of a data set without an end is


class Sampler(Protocol):
    """A loaded generator. The image of (index, label) is the same in any batch, up to the rounding of the arithmetic."""

    @property
    def resolution(self) -> int: ...

    @property
    def classes(self) -> int: ...

    @property
    def parameters(self) -> int: ...

    def sample(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[NDArray[np.uint8], int]:
        """uint8 images (N, resolution, resolution, 3) and the network evaluations an image, counted on the network."""


Loader = Callable[[Any, StageContext], Sampler]


def load(config: Generator, ctx: StageContext) -> Sampler:
    """The sampler of a generator config, through the loader that its class names as "module:function"."""
    module, _, function = config.loader.partition(":")
    if not function:
        raise UserError(f"generator '{config.kind}' names no loader: set `loader = \"module:function\"` in its class")
    try:
        loader: Loader = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the loader {config.loader} of generator '{config.kind}' cannot be imported: {error}") from None
    return loader(config, ctx)


class ByClass:
    """Images of a split by (label, rank): rank r is the r-th image of that class, from the near or from the far end.

    With balanced labels, index mod classes, the near end of one data set holds the reference and the far end what is held
    against it. The embedded data set never ends: its class l is the indices that are l mod classes, and its far end starts
    at `FAR`.
    """

    def __init__(self, data: Dataset, split: Split) -> None:
        self.data, self.split, self.classes = data, split, len(data.classes)
        size = data.size(split)
        self._of_class: list[NDArray[np.int64]] | None = None
        if size is not None:
            labels = data.labels(np.arange(size, dtype=np.int64), split)
            self._of_class = [np.flatnonzero(labels == label) for label in range(self.classes)]

    def indices(self, labels: NDArray[np.int64], ranks: NDArray[np.int64], end: Literal["near", "far"]) -> NDArray[np.int64]:
        """(N,) indices into the split. Raises `UserError` when a class has no image of that rank."""
        if self._of_class is None:
            base = FAR // self.classes if end == "far" else 0
            return (base + ranks) * self.classes + labels
        found = np.empty(len(labels), np.int64)
        for i, (label, rank) in enumerate(zip(labels.tolist(), ranks.tolist(), strict=True)):
            of_class = self._of_class[label]
            if rank >= len(of_class):
                raise UserError(
                    f"class '{self.data.classes[label]}' has {len(of_class)} {self.split} images and number {rank + 1} is "
                    "asked for: take a smaller n or another split"
                )
            found[i] = of_class[rank if end == "near" else -1 - rank]
        return found

    def balanced(self, positions: NDArray[np.int64], end: Literal["near", "far"]) -> NDArray[np.int64]:
        """The indices at `positions` when classes take turns: position p is image p // classes of class p mod classes."""
        return self.indices(positions % self.classes, positions // self.classes, end)

    def check_disjoint(self, near: int, far: int) -> None:
        """Raises `UserError` when the first `near` balanced positions of one end meet the first `far` of the other."""
        if self._of_class is None:
            if max(near, far) >= FAR:
                raise UserError(f"no more than {FAR:,} images of the embedded data can be compared")
            return
        for label, of_class in enumerate(self._of_class):
            taken = sum((count - label + self.classes - 1) // self.classes for count in (near, far))
            if taken > len(of_class):
                raise UserError(
                    f"class '{self.data.classes[label]}' has {len(of_class)} {self.split} images; {near:,} reference images "
                    f"and {far:,} to hold against them need {taken}: take a smaller n or another split"
                )


class _Upsampled:
    def __init__(self, config: Upsampled, inner: Sampler) -> None:
        self.config, self.inner = config, inner
        self.resolution, self.classes, self.parameters = config.to, inner.classes, inner.parameters

    def sample(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[NDArray[np.uint8], int]:
        images, nfe = self.inner.sample(indices, labels)
        return upsample(images, self.config.to, self.config.filter), nfe


class _Real:
    parameters = 0

    def __init__(self, config: RealImages, data: Dataset) -> None:
        self.resolution, self.classes = config.at, len(data.classes)
        self.data, self.split, self.by_class = data, config.split, ByClass(data, config.split)

    def sample(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[NDArray[np.uint8], int]:
        images = self.by_class.indices(labels, indices // self.classes, "far")
        return self.data.images(images, self.resolution, self.split), 0


def upsampled(config: Upsampled, ctx: StageContext) -> Sampler:
    """Another generator's images, enlarged; evaluations and parameters are that generator's."""
    return _Upsampled(config, load(config.of, ctx))


def real(config: RealImages, ctx: StageContext) -> Sampler:
    """Images of the data: sample i of label l is image i // classes of that class, counted from the far end of the split.

    So two indices share an image only where i // classes and the label agree: never with balanced labels.
    """
    return _Real(config, open_dataset(config.data, ctx.data_path))
