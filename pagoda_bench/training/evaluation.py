"""Evaluation during a training, through the same `evaluate` that measures any other images.

Held against images from the far end of the validation split, on noise of its own: what a score of a table is measured with
(the near end, samples from index 0) is not used to choose weights, as long as the split is large enough for both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pagoda_bench.data import Dataset
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.computations import least
from pagoda_bench.metrics.evaluate import evaluate
from pagoda_bench.metrics.extractors import load_extractor
from pagoda_bench.metrics.extractors.base import Extractor
from pagoda_bench.metrics.inputs import WHOLE, Array, Batch, Part, Stream
from pagoda_bench.metrics.suite import measures
from pagoda_bench.nets.device import compute_device
from pagoda_bench.recipes.base import canonical
from pagoda_bench.recipes.data import DataConfig
from pagoda_bench.recipes.stages import TrainConfig
from pagoda_bench.sampling.generators import ByClass
from pagoda_bench.training import parallel

FIRST = 2**31  # index of the first sample
BATCH = 64  # samples drawn at once by a process, always as many: networks round differently at another batch size

Draw = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.uint8]]
"""(indices, labels) to images, uint8 (N, R, R, 3)."""


class Validation(Stream):
    """The first `n` images of the validation split from its far end, classes in turn."""

    def __init__(self, config: DataConfig, data: Dataset, resolution: int, n: int) -> None:
        self.where, self.n, self.data, self.resolution = f"validation images of {config.describe()}", n, data, resolution
        self.indices = ByClass(data, "val").balanced(np.arange(n), "far")
        self._identity = f"{canonical(config)} {resolution} {n}"

    def digest(self) -> str:
        """Of the config of the data, which identifies them."""
        return hashlib.sha256(self._identity.encode()).hexdigest()

    def batches(self, size: int, part: Part = WHOLE) -> Iterator[Batch]:
        for start in range(part.first * size, self.n, part.of * size):
            indices = self.indices[start : start + size]
            yield Batch(self.data.images(indices, self.resolution, "val"), self.data.labels(indices, "val"))


class Evaluation:
    """Called at a milestone it gives the metrics of a recipe, by name; `lower`: whether less is better, of the first one.

    All processes sample; the first one measures. `weights` are the files of extractors that the recipe itself brings.
    Raises `UserError` when it is made, before the training, for metrics or networks that cannot be had and for too few images.
    """

    def __init__(
        self,
        config: TrainConfig,
        of: DataConfig,
        data: Dataset,
        resolution: int,
        draw: Draw,
        work: Path,
        weights: Mapping[str, Path] | None = None,
    ) -> None:
        self.metrics, self.protocol, self.n = config.evaluate_metrics, config.evaluate_protocol, config.evaluate_n
        self.draw, self.classes, self.cache = draw, len(data.classes), work / "evaluation"
        chosen = measures(self.protocol, self.metrics)
        needed = max(least(m.metric, m.line.least, m.settings) for m in chosen)
        if self.n < needed:
            raise UserError(f"train.evaluate_n: {self.n} images are too few for {', '.join(self.metrics)}: at least {needed}")
        self.lower = chosen[0].line.better == "lower"
        self.reference = Validation(of, data, resolution, self.n)
        self.device = str(compute_device())
        self.networks: dict[str, Extractor] = {}
        if parallel.rank() == 0:
            for name in dict.fromkeys(measure.extractor for measure in chosen):
                self.networks[name] = load_extractor(name, (weights or {}).get(name), self.device)

    def __call__(self) -> dict[str, float]:
        images = self.images()
        found: dict[str, float] = {}
        if parallel.rank() == 0:
            scores = evaluate(
                Array(images, "samples of the training"),
                self.reference,
                self.metrics,
                protocol=self.protocol,
                n=self.n,
                extractors=self.networks,
                device=self.device,
                cache=self.cache,
                labels=f"balanced over {self.classes} classes",
            )
            found = {score.metric: float(score.value) for score in scores}
        return parallel.from_first(found)

    def images(self) -> NDArray[np.uint8]:
        """uint8 (n, R, R, 3) in the first process, none in the others; which of them drew an image does not change it."""
        world, parts = parallel.world(), []
        for start in range(0, self.n, BATCH * world):
            own = start + parallel.rank() * BATCH + np.arange(BATCH, dtype=np.int64)
            drawn = self.draw(FIRST + own, own % self.classes)
            everyone = parallel.gathered(torch.from_numpy(drawn))
            if parallel.rank() == 0:
                parts += [part.cpu().numpy() for part in everyone]
        found: NDArray[Any] = np.concatenate(parts)[: self.n] if parts else drawn[:0]
        return found
