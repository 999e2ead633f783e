"""Feature extractors by name. A network's library is imported only when that network is loaded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.metrics.extractors.base import Extractor, Precision

__all__ = ["EXTRACTORS", "Extractor", "load_extractor"]

_HERE = "pagoda_bench.metrics.extractors"
# name: (module, class, further options of its `load`)
EXTRACTORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "embedded": ("embedded", "Embedded", {}),
    "inception": ("inception", "Inception", {}),
    "clean": ("clean", "Clean", {}),
    "vgg16": ("vgg", "VGG16", {}),
    "lpips-vgg16": ("lpips", "LPIPS", {}),
    "pixels": ("pixels", "Pixels", {}),
    **{f"dinov2-{m}": ("dinov2", "DINOv2", {"model": m}) for m in ("vits14", "vitb14", "vitl14", "vitg14")},
    "dinov2-vitl14-torch": ("dinov2", "DINOv2", {"model": "vitl14", "resize": "torch"}),
    "clip-vit-b-32": ("clip", "CLIP", {"model": "ViT-B-32-quickgelu"}),
    "clip-vit-l-14": ("clip", "CLIP", {"model": "ViT-L-14-quickgelu"}),
    "clip-vit-l-14-336": ("clip", "CLIP", {"model": "ViT-L-14-336-quickgelu"}),
}


def load_extractor(name: str, weights: Path | None = None, device: str = "cpu", precision: Precision = "float32") -> Extractor:
    """The extractor `name`, or the user's own when it is "module:object". Raises `UserError` when it cannot be had."""
    if ":" in name:
        module, kind, options = "user", "User", dict[str, Any](where=name)
    elif name in EXTRACTORS:
        module, kind, options = EXTRACTORS[name]
        options = {**options, "weights": weights}
    else:
        raise UserError(f"unknown extractor '{name}'" + nearest(name, EXTRACTORS) + ", or module:object of your own")
    found: Extractor = getattr(importlib.import_module(f"{_HERE}.{module}"), kind).load(
        device=device, precision=precision, **options
    )
    found.origin = (name, weights, device, precision)
    return found
