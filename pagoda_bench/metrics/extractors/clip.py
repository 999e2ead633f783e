"""CLIP image and text towers (Radford et al. 2021) through open_clip: CLIP score, CMMD, Frechet distance in CLIP's space.

OpenAI's weights were trained with QuickGELU, x * sigmoid(1.702 x). Loaded into a model with the exact GELU they give features
that look right and are not, so a mismatch is an error here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.metrics.extractors.base import Extractor, Precision, frozen, normalised, optional
from pagoda_bench.metrics.extractors.weights import ORIGINALS, Found, find, load_into, state_dict

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NOT_PARAMETERS = ("input_resolution", "context_length", "vocab_size")  # stored beside OpenAI's tensors
QUICK = "-quickgelu"


def crop_and_resize(images: Tensor, size: int) -> Tensor:
    """uint8 (N, 3, H, W) to uint8 (N, 3, size, size): shorter side to `size` by PIL's bicubic, then the centre square."""
    height, width = images.shape[-2:]
    # In whole numbers, as torchvision has it: a factor of floats loses a pixel of the longer side for some sizes (480 x 650).
    target = (size * width // min(height, width), size * height // min(height, width))
    top, left = round((target[1] - size) / 2), round((target[0] - size) / 2)
    out = []
    for plane in images.permute(0, 2, 3, 1).cpu().numpy():
        picture = Image.fromarray(plane)
        if picture.size != target:
            picture = picture.resize(target, Image.Resampling.BICUBIC)
        out.append(np.asarray(picture)[top : top + size, left : left + size])
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).to(images.device)


class CLIP(Extractor):
    """`image`: the projected image embedding, not normalised. `text(prompts)` gives the other tower's.

    `tag` is open_clip's name of the training run whose weights these are ("openai", "datacomp_xl_s13b_b90k", ...); it decides
    the activation. Weights under no tag are taken with the activation that `model` has by itself.
    """

    def __init__(
        self,
        found: Found,
        model: str = "ViT-L-14-quickgelu",
        tag: str | None = "openai",
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
    ) -> None:
        clip: Any = optional("open_clip")
        config = clip.get_model_config(model)
        if config is None:
            raise UserError(f"unknown CLIP model '{model}'" + nearest(model, clip.list_models()))
        check_activation(model, bool(config.get("quick_gelu", False)), _needs_quick_gelu(clip, model, tag), tag)
        self.size = int(config["vision_cfg"]["image_size"])
        super().__init__(
            f"clip {model}{f' {tag}' if tag else ''}",
            found.sha256,
            f"PIL uint8 bicubic, shorter side to {self.size}, centre crop",
            {"image": int(config["embed_dim"])},
            device,
            precision,
        )
        network = clip.create_model(model, pretrained=None, device="cpu")
        state = {name: value for name, value in _state(found).items() if name not in NOT_PARAMETERS}
        load_into(network, state, found, f"CLIP {model}")
        self.network: Any = frozen(network.float(), device)
        self._tokenize: Any = clip.get_tokenizer(model)

    @classmethod
    def found(cls, weights: Path | None, **options: Any) -> Found:
        model, tag = options.get("model", "ViT-L-14-quickgelu"), options.get("tag", "openai")
        original = ORIGINALS.get(f"clip-{model.removesuffix(QUICK).lower()}") if tag == "openai" else None
        if weights is None and original is None:
            raise UserError(f"no published file is known for CLIP '{model}' '{tag}': give its weights by path")
        return find(original or ORIGINALS["clip-vit-l-14"], weights)

    def extract(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        x = normalised(crop_and_resize(images, self.size).float(), MEAN, STD)
        return {"image": self.network.encode_image(x)}

    @torch.inference_mode()
    def text(self, prompts: Sequence[str]) -> Tensor:
        """float32 (N, d) of N prompts; longer ones are cut at the model's context length."""
        found: Tensor = self.network.encode_text(self._tokenize(list(prompts)).to(self.device)).float()
        return found


def check_activation(model: str, has: bool, needs: bool | None, tag: str | None) -> None:
    """Raises `UserError` when weights trained with one GELU would go into a model with the other."""
    if needs is None or has == needs:
        return
    right = f"{model}{QUICK}" if needs else model.removesuffix(QUICK)
    kind = "QuickGELU" if needs else "the exact GELU"
    raise UserError(f"CLIP weights '{tag}' were trained with {kind} and model '{model}' has the other: use '{right}'")


def _needs_quick_gelu(clip: Any, model: str, tag: str | None) -> bool | None:
    """None when it is not known what the weights were trained with."""
    if tag is None:
        return None
    config = clip.get_pretrained_cfg(model, tag) or clip.get_pretrained_cfg(model.removesuffix(QUICK), tag)
    if config:
        return bool(config.get("quick_gelu", False))
    return True if tag == "openai" else None


def _state(found: Found) -> dict[str, Any]:
    """Also from OpenAI's own files, which are TorchScript archives: their graph is not run, only its tensors are read."""
    if found.path.suffix == ".pt":
        try:
            state: dict[str, Any] = torch.jit.load(found.path, map_location="cpu").state_dict()
            return state
        except RuntimeError:  # no archive: an ordinary state dict
            pass
    return state_dict(found)
