"""The images themselves: what a metric with a network of its own asks for."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagoda_bench.metrics.extractors.base import Extractor, Precision


class Pixels(Extractor):
    """No network and no features."""

    def __init__(self, device: str | torch.device = "cpu", precision: Precision = "float32") -> None:
        super().__init__("the images themselves", "none", "none", {}, device, precision)

    @classmethod
    def load(cls, weights: Path | None = None, device: str = "cpu", precision: Precision = "float32", **options: Any) -> Pixels:
        return cls(device, precision)

    def extract(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        return {}
