"""DINOv2 vision transformers (Oquab et al. 2023) through timm, with the features of dgm-eval (Stein et al. 2023) or EDM2.

timm and the original hub model resample the position embedding of the 37 x 37 training grid differently. The hub's way is
followed: bicubic without antialiasing, with the scale (16 + 0.1) / 37 itself, not the ratio of the sizes, as the step.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.metrics.extractors.base import Extractor, Precision, frozen, normalised, optional
from pagoda_bench.metrics.extractors.weights import ORIGINALS, Found, find, load_into, state_dict

SIZE, PATCH, OFFSET = 224, 14, 0.1
MODELS = {
    "vits14": ("vit_small_patch14_dinov2", 384),
    "vitb14": ("vit_base_patch14_dinov2", 768),
    "vitl14": ("vit_large_patch14_dinov2", 1024),
    "vitg14": ("vit_giant_patch14_dinov2", 1536),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Resize = Literal["pil", "torch"]
RESIZES = {
    "pil": "PIL uint8 bicubic to 224 x 224, aspect not kept",  # dgm-eval; EDM2's resize_mode='pil'
    "torch": "antialiased bicubic to 224 x 224 on float, neither clipped nor rounded",  # EDM2's default
}


def resample_positions(positions: Tensor, side: int) -> Tensor:
    """(1, 1 + g^2, d) of a g x g grid behind one class token to (1, 1 + side^2, d), as the hub model does it."""
    token, grid = positions[:, :1], positions[:, 1:]
    size = round(grid.shape[1] ** 0.5)
    if size == side:
        return positions
    plane = grid.float().reshape(1, size, size, -1).permute(0, 3, 1, 2)
    scale = (side + OFFSET) / size
    plane = F.interpolate(plane, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    if plane.shape[-2:] != (side, side):
        raise ValueError(f"resampling a {size} x {size} grid gave {tuple(plane.shape[-2:])}, not {side} x {side}")
    return torch.cat([token.float(), plane.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def pil_bicubic(images: Tensor, size: int = SIZE) -> Tensor:
    """uint8 (N, 3, H, W) to uint8 (N, 3, size, size) by PIL's 8-bit bicubic, which rounds and clips between its passes."""
    if images.shape[-2:] == (size, size):
        return images
    planes = images.permute(0, 2, 3, 1).cpu().numpy()
    resized = [np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)) for p in planes]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).to(images.device)


class DINOv2(Extractor):
    """`cls`: the class token after the final norm."""

    def __init__(
        self,
        found: Found,
        model: str = "vitl14",
        resize: Resize = "pil",
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
    ) -> None:
        name, width = MODELS[model]
        super().__init__(f"dinov2-{model}", found.sha256, RESIZES[resize], {"cls": width}, device, precision)
        self._how = resize
        timm: Any = optional("timm")
        network = timm.create_model(name, pretrained=False, img_size=SIZE, num_classes=0)
        state = _timm_names(found, optional("timm.models.vision_transformer"), network)
        state["pos_embed"] = resample_positions(state["pos_embed"], SIZE // PATCH)
        load_into(network, state, found, f"DINOv2 {model}")
        self.network = frozen(network, device)

    @classmethod
    def found(cls, weights: Path | None, **options: Any) -> Found:
        model = options.get("model", "vitl14")
        if model not in MODELS:
            raise UserError(f"unknown DINOv2 model '{model}'" + nearest(model, MODELS))
        return find(ORIGINALS[f"dinov2-{model}"], weights)

    def extract(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        if self._how == "pil":
            x = pil_bicubic(images).float()
        else:
            x = images.float()
            if x.shape[-2:] != (SIZE, SIZE):
                x = F.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True)
        return {"cls": self.network(normalised(x, MEAN, STD))}


def _timm_names(found: Found, vit: Any, network: Any) -> dict[str, Tensor]:
    """A hub checkpoint (it has a `mask_token`) under timm's names; timm's own checkpoint as it is."""
    state = state_dict(found)
    if "pos_embed" not in state:
        raise UserError(f"{found.path} has no 'pos_embed', which DINOv2 has: give the file of that network")
    if "mask_token" not in state:
        return dict(state)
    positions = state["pos_embed"]
    converted: dict[str, Tensor] = vit._convert_dinov2(dict(state), network)
    return converted | {"pos_embed": positions}
