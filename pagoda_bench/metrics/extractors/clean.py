"""The clean-fid protocol (Parmar et al. 2022): antialiased bicubic to 299 on float, clipped, not rounded, then Inception.

clean-fid resizes with PIL on the processor, a channel at a time. The same numbers come from one call on the tensor's own
device: PIL's bicubic filter and PyTorch's antialiased one are both Keys' kernel with a = -0.5 stretched by the scale. The clip
is not optional, since the filter overshoots at edges.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.extractors.base import Extractor, Precision
from pagoda_bench.metrics.extractors.inception import SIZE, network
from pagoda_bench.metrics.extractors.weights import ORIGINALS, Found


def clean_resize(images: Tensor, size: int = SIZE) -> Tensor:
    """uint8 or float (N, 3, H, W) to float32 (N, 3, size, size) in [0, 255]."""
    images = images.float()
    if images.shape[-2:] != (size, size):  # PIL returns an image of the right size as it is, too
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return images.clamp(0, 255)


class Clean(Extractor):
    """From NVIDIA's TorchScript file, which clean-fid uses, or from a state dict in torch-fidelity's names."""

    original = "clean"

    def __init__(self, found: Found, device: str | torch.device = "cpu", precision: Precision = "float32") -> None:
        super().__init__(
            "inception-v3 2015 (clean)",
            found.sha256,
            "antialiased bicubic to 299 on float, clipped, not rounded",
            {"pool3": 2048},
            device,
            precision,
        )
        self._scripted = found.path.suffix == ".pt"
        self.network: Any = _script(found, device) if self._scripted else network(found, device)

    def extract(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        x = clean_resize(images)
        if self._scripted:
            return {"pool3": self.network.layers.forward((x - 128) / 128).reshape(len(x), -1)}
        found: dict[str, Tensor] = self.network(x, wanted)
        return found


def _script(found: Found, device: str | torch.device) -> Any:
    try:
        return torch.jit.load(found.path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"{found.path} is no TorchScript file ({reason}): give {ORIGINALS['clean'].file}, or a state dict as .pth"
        ) from None
