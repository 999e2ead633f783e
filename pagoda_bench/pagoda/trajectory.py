"""CTM's network with the end of its trajectories fixed, which is an ADM U-Net with other biases.

CTM (Kim et al. 2024, arXiv 2310.02279; sony/ctm) conditions the network of ImageNet 64 on two noise levels: sigma, where it
stands, and `end`, where it is to go. The second one has a time embedding of its own, and in every residual block a linear
layer of its own, whose output is added to that of the first. One step always goes to SIGMA_MIN: of the same value for every
image, the second embedding makes every such output a constant, which the bias of the first layer takes in. Exactly so, up to
rounding; what is lost is going anywhere else, as CTM's samplers of several steps do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_bench.diffusion.edm import SIGMA_MIN
from pagoda_bench.nets.unet import time_waves

FIRST, SECOND = "emb_layers.", "emb_layers_s."  # of a residual block: of the level where it stands, of that where it goes
EMBED = "time_embed_s."


def has_end(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any tensor is of the second noise level."""
    return any(key.startswith(EMBED) or SECOND in key for key in tensors)


def fixed_end(tensors: Mapping[str, Tensor], end: float = SIGMA_MIN) -> tuple[dict[str, Tensor], list[str]]:
    """`tensors` of CTM's network (float32, by key) as those of an ADM U-Net that always goes to `end`, and what is wrong with
    those of the second noise level, one line each; the first dictionary is of use only where there is nothing wrong."""
    rest = {key: value for key, value in tensors.items() if not key.startswith(EMBED) and SECOND not in key}
    # A residual block needs a second layer of the shapes of its first.
    shapes = {k.replace(FIRST, SECOND): v.shape for k, v in rest.items() if FIRST in k}
    if width := next((v.shape[1] for k, v in rest.items() if k.endswith("time_embed.0.weight")), None):
        shapes |= {k.replace("time_embed.", EMBED): v.shape for k, v in rest.items() if k.startswith("time_embed.")}
    wrong = [f"missing: {key} {_text(shape)}" for key, shape in shapes.items() if key not in tensors]
    wrong += [f"extra: {k} {_text(v.shape)}" for k, v in tensors.items() if k not in shapes and k not in rest]
    wrong += [
        f"shape: {key} is {_text(tensors[key].shape)}, expected {_text(shape)}"
        for key, shape in shapes.items()
        if key in tensors and tensors[key].shape != shape
    ]
    if wrong or width is None:
        return rest, wrong

    def layer(name: str, x: Tensor) -> Tensor:
        return F.linear(x, tensors[f"{name}weight"].double(), tensors[f"{name}bias"].double())

    device = tensors[f"{EMBED}0.weight"].device
    waves = time_waves(torch.tensor([end], dtype=torch.float64, device=device), width, torch.float32).double()
    embedding = F.silu(layer(f"{EMBED}2.", F.silu(layer(f"{EMBED}0.", waves))))
    for key in [key for key in rest if FIRST in key and key.endswith(".bias")]:
        second = key.replace(FIRST, SECOND).removesuffix("bias")
        rest[key] = (rest[key].double() + layer(second, embedding)[0]).to(rest[key].dtype)
    return rest, []


def _text(shape: torch.Size) -> str:
    return "x".join(map(str, shape))
