"""Several moving averages of one training, each published, so that which one is best can be decided afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from pagoda_bench.nets.features import save_half
from pagoda_bench.recipes.stages import TrainConfig
from pagoda_bench.training.loop import EMA


def averages(net: nn.Module, config: TrainConfig, name: str) -> dict[str, EMA]:
    """The average of a recipe under `name`, and its further ones under "<name>:<decay>"."""
    return {name: EMA(net, config.ema), **{f"{name}:{decay}": EMA(net, decay) for decay in config.emas}}


def save_averages(net: nn.Module, emas: Mapping[str, EMA], out: Path) -> None:
    """`model.safetensors` of the first average and `model-<decay>.safetensors` of each further one, as float16."""
    for name, ema in emas.items():
        _, _, decay = name.partition(":")
        state = {k: v.cpu() for k, v in ema.state(net).items()}
        save_half(state, out / (f"model-{decay}.safetensors" if decay else "model.safetensors"))
