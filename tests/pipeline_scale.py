"""A scale up to 32 px for rows of published weights, and what their tests have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from toy_scale import VALUES

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.recipes.stages import Generator
from pagoda_bench.sampling.generators import load
from pagoda_bench.tables.scales import Scale


def scale(classes: int = 10, **methods: Any) -> Scale:
    """8, 16 and 32 px of embedded data; of prepared data with more classes, which are not there."""
    data = {"kind": "embedded", "master": 32} if classes == 10 else {"kind": "prepared", "digest": "0" * 64, "classes": classes}
    sections = {name.replace("_", "-"): values for name, values in methods.items()}
    values = {**VALUES, "data": data, "grown": [16, 32], "grow": VALUES["grow"] * 2, "methods": sections}
    return Scale.load(values, "scale of pipelines")


def ctx() -> StageContext:
    return StageContext(Path(), Path())


def sampled(generator: Generator, indices: Sequence[int]) -> tuple[np.ndarray, int, Any]:
    """Images of the indices with balanced labels, evaluations an image, and the sampler."""
    source = load(generator, ctx())
    numbers = np.array(indices, np.int64)
    images, nfe = source.sample(numbers, numbers % 10)
    assert images.shape == (len(indices), generator.resolution, generator.resolution, 3)
    assert images.dtype == np.uint8
    return images, nfe, source
