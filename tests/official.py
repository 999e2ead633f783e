"""The official fixtures: their networks, their formula weights, and how to read them."""

from __future__ import annotations

import csv
import gzip
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.stages import UNetConfig

OFFICIAL = Path(__file__).parent / "fixtures" / "official"
ATOL = 2e-5  # twice the distance of the official float32 outputs from float64

TINY = UNetConfig(resolution=16, channels=32, encoder=(1, 2), blocks=1, attention=(8,), head_channels=16, classes=5)
NETS = {
    "base_r1": TINY,
    "base_r2": TINY.model_copy(update={"blocks": 2}),
    "grown1_r1": TINY.model_copy(update={"decoder": (1, 1, 2)}),
    "grown1_r2": TINY.model_copy(update={"decoder": (1, 1, 2), "blocks": 2}),
    "grown1_ssn": TINY.model_copy(update={"decoder": (1, 1, 2), "scale_shift_grown": True}),
    "grown2_r1": TINY.model_copy(update={"decoder": (1, 1, 1, 2)}),
    "grown2_half": TINY.model_copy(update={"decoder": (0.5, 1, 1, 2), "channels": 64}),
}
ADM64 = UNetConfig(
    resolution=64, channels=192, encoder=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), head_channels=64, classes=1000
)
FULL = {
    "64to64": ADM64,
    "64to128": ADM64.model_copy(update={"decoder": (1, 1, 2, 3, 4)}),
    "64to256": ADM64.model_copy(update={"decoder": (1, 1, 1, 2, 3, 4)}),
    "64to512_default": ADM64.model_copy(update={"decoder": (0.5, 1, 1, 1, 1, 2, 4)}),
    "64to512_consistent": ADM64.model_copy(update={"decoder": (0.5, 1, 1, 1, 2, 3, 4)}),
    "32to32": ADM64.model_copy(update={"resolution": 32, "channels": 256, "encoder": (1, 2, 4), "attention": (16, 8)}),
}
SMALL = UNetConfig(resolution=8, channels=16, head_channels=8, decoder=(0.5, 1, 1, 2), blocks=1, classes=3, grown_blocks=1)


def fill_rule(key: str, shape: tuple[int, ...]) -> str:
    if key.endswith(("label_emb.weight", "embed.weight", "embed_proj.weight")):
        return "plain"
    if len(shape) >= 2:
        return "half" if shape[0] == 1 else "fan"
    return "gain" if key.endswith(("weight", "running_var")) else "bias"


def fill(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The formula weights of the fixtures: sin(i + k^2), i = place of the key in code-point order, k = flat index."""
    filled = {}
    for i, key in enumerate(sorted(state)):
        shape, count = tuple(state[key].shape), state[key].numel()
        s = np.sin(i + np.arange(count, dtype=np.float64) ** 2)
        fan = math.sqrt(2 * shape[0] / count)
        value = {"plain": s, "half": 0.5 * s, "fan": fan * s, "gain": 1 + 0.25 * s, "bias": 0.25 * s}[fill_rule(key, shape)]
        filled[key] = torch.from_numpy(value.astype(np.float32).reshape(shape))
    return filled


def filled_net(config: UNetConfig) -> UNet:
    net = UNet(config)
    net.load_state_dict(fill(net.state_dict()))
    return net.eval()


@cache
def small_net() -> UNet:
    return filled_net(SMALL)


@cache
def meta_net(name: str) -> UNet:
    with torch.device("meta"):
        return UNet(FULL[name])


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(OFFICIAL / f"{name}.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def rows(name: str) -> list[list[str]]:
    with gzip.open(OFFICIAL / f"{name}.tsv.gz", "rt") as file:
        return list(csv.reader(file, delimiter="\t"))


def shape_text(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def one_step(net: UNet, z: Tensor, labels: Tensor, sigma: float = 80.0) -> Tensor:
    with torch.no_grad():
        return net(z / math.sqrt(sigma**2 + 0.25), sigma, labels)


def largest(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a.double() - b.double()).abs().max())
