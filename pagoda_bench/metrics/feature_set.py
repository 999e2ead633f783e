"""What is known of a set of images when the networks have seen it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.frechet import Gaussian
from pagoda_bench.metrics.moments import Moments
from pagoda_bench.metrics.uncertainty import blocks


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureSet:
    """Of N images, by one extractor. What is absent is None; arrays may be memory-mapped."""

    features: NDArray[np.floating] | None = None  # (N, d)
    moments: Moments | None = None  # of the features; enough for a Frechet distance
    logits: NDArray[np.floating] | None = None  # (N, classes)
    texts: NDArray[np.floating] | None = None  # (N, d), embeddings of each image's own text
    labels: NDArray[np.integer] | None = None  # (N,)
    images: NDArray[np.uint8] | None = None  # (N, H, W, 3)
    distance: Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.floating]] | None = None  # of pairs of images

    def __post_init__(self) -> None:
        sizes = {name: len(value) for name, value in self._arrays().items()}
        if self.moments is not None:
            sizes["moments"] = self.moments.n
        if len(set(sizes.values())) > 1:
            raise UserError(
                f"a set of images has {', '.join(f'{n} {name}' for name, n in sizes.items())}: they must be as many"
            )
        if not sizes:
            raise UserError("a set of images needs features, moments, logits or the images themselves")

    @property
    def n(self) -> int:
        for value in self._arrays().values():
            return len(value)
        assert self.moments is not None
        return self.moments.n

    @cached_property
    def gaussian(self) -> Gaussian:
        """Fitted to the features; from `moments` where they are known."""
        moments = self.moments
        if moments is None:
            moments = Moments(self.need("features").shape[1])
            for start in range(0, self.n, 4096):
                moments.add(self.need("features")[start : start + 4096])
        return Gaussian(moments.mean, moments.covariance)

    def has(self, need: str) -> bool:
        """Whether a field is there; of "a|b", one of them."""
        return any(getattr(self, name) is not None for name in need.split("|"))

    def names(self) -> str:
        return ", ".join(each.name for each in fields(self) if getattr(self, each.name) is not None)

    def need(self, name: str) -> Any:
        """A field that must be there."""
        value = getattr(self, name)
        if value is None:
            raise UserError(f"a set of images lacks its {name} (has: {self.names()})")
        return value

    def parts(self, count: int) -> list[FeatureSet]:
        """`count` disjoint consecutive parts, whose moments come from their own features."""
        arrays = self._arrays()
        if not arrays:
            raise UserError("moments alone cannot be divided into blocks: keep the features")
        found = []
        for rows in blocks(self.n, count):
            cut: dict[str, Any] = {name: value[rows] for name, value in arrays.items()}
            found.append(replace(self, moments=None, **cut))
        return found

    def _arrays(self) -> dict[str, NDArray[Any]]:
        named = {name: getattr(self, name) for name in ("features", "logits", "texts", "labels", "images")}
        return {name: value for name, value in named.items() if value is not None}
