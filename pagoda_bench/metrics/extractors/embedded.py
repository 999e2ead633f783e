"""The embedded feature network as an extractor: "FD-embedded", precision, recall and a score like IS without any download."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.extractors.base import Extractor, Precision, frozen
from pagoda_bench.metrics.extractors.lpips import map_distance
from pagoda_bench.metrics.extractors.weights import FOLDER, Found, Original, find, state_dict
from pagoda_bench.nets.features import FEATURES, FeatureModel
from pagoda_bench.resources import released_roots

FILE = "features.safetensors"


class Embedded(Extractor):
    """`features`: the 128 penultimate features; `logits`: of its classes. Width, classes and resolution are in the file."""

    def __init__(self, found: Found, device: str | torch.device = "cpu", precision: Precision = "float32") -> None:
        state = state_dict(found)
        try:
            width = len(state["stages.0.0.weight"])
            classes, dimensions = state["classifier.weight"].shape
            inputs = state["features_layer.weight"].shape[1]
        except (KeyError, ValueError):
            raise UserError(f"{found.path} is no embedded feature network: give the {FILE} of a features artifact") from None
        resolution = _resolution(inputs, width)
        super().__init__(
            "embedded feature network",
            found.sha256,
            f"pixel repetition to {resolution}",
            {"features": dimensions, "logits": classes},
            device,
            precision,
        )
        if dimensions != FEATURES or resolution is None:
            raise UserError(f"{found.path} is an embedded feature network of another release: make it again")
        self.resolution = resolution
        self.network: Any = frozen(FeatureModel.load(found.path, classes, width, resolution), device)

    @classmethod
    def found(cls, weights: Path | None, **options: Any) -> Found:
        if weights is not None and Path(weights).is_dir():
            weights = Path(weights) / FILE
        if weights is None:
            weights = _released()
        return find(Original(FILE, "", None), weights)

    def extract(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        features, logits = self.network(self._scaled(images))
        return {"features": features, "logits": logits}

    def unlikeness(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS's form on the maps of this network, all channels alike: no judgements of people stand behind it."""
        maps = zip(*(self.network.maps(self._scaled(images)) for images in (a, b)), strict=True)
        return torch.stack([map_distance(x, y) for x, y in maps]).sum(0)

    def _scaled(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height != width or self.resolution % width:
            raise UserError(
                f"the embedded network wants square images whose side divides {self.resolution}, not {width} x {height}: "
                "crop or resize them first"
            )
        return (images.float() / 127.5 - 1).contiguous()


def _resolution(inputs: int, width: int) -> int | None:
    """Of the network whose feature layer reads `inputs` numbers; None when there is none such."""
    last, finer = width * 4, width + width * 3 // 2 + width * 3
    pixels, rest = divmod(inputs - finer, last)
    side = round(max(pixels, 0) ** 0.5)
    return side * 16 if not rest and side and side * side == pixels else None


def _released() -> Path | None:
    """The one network among the released artifacts; a `UserError` when there are none or several."""
    found = sorted(path for root in released_roots() for path in root.glob(f"features/*/{FILE}"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.parent.name[:8] for path in found)
        raise UserError(f"several embedded feature networks are released ({names}): choose one with --weights embedded=PATH")
    raise UserError(
        f"no embedded feature network came with this installation: give its {FILE} with --weights embedded=PATH "
        f"(a features artifact has one; {FOLDER} is not searched for it)"
    )
