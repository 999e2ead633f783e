"""Growth (PaGoDA, Stage 3): the next network takes over what fits, and only its top trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from pagoda_bench.errors import UserError
from pagoda_bench.nets.unet import UNet

TrainFrom = int | Literal["new"]


def train_start(net: UNet, train_from: TrainFrom) -> int:
    """The index of the first output block that trains: `stop` of the frozen `UNet.trunk`, `start` of `UNet.finish`.

    "new" is the first block of the last grown level. `UserError` when there is no such block.
    """
    blocks = len(net.output_blocks)
    if train_from == "new":
        if blocks == net.base_blocks:
            raise UserError("train_from: 'new' needs a grown level, but the decoder is as long as the encoder: give an index")
        return blocks - 1 - net.config.grown_blocks
    if not 0 <= train_from < blocks:
        raise UserError(f"train_from: there is no output block {train_from}: give an index from 0 to {blocks - 1}, or 'new'")
    return train_from


def trainable_keys(net: UNet, train_from: TrainFrom) -> list[str]:
    """The state-dict keys that train, in order: those of the output blocks from `train_from` on, and of the head `out`.

    9 is what the official Stage 3 scripts use; there it covers the upper part of the base decoder as well.
    """
    start = train_start(net, train_from)
    return [key for key in net.state_dict() if _trains(key, start)]


def grow(
    base: Mapping[str, Tensor], net: UNet, *, train_from: TrainFrom = "new", allow_frozen_fresh: bool = False
) -> list[str]:
    """Copies into `net` every tensor of the state dict `base` that has its name and shape there. Gives the keys left fresh.

    Half-precision tensors, as mixed-precision checkpoints hold, are cast up. Raises `UserError`, and copies nothing, when
    `base` holds a tensor whose name `net` does not have, or when a tensor would stay fresh that does not train:
    it would keep its random values for ever. The official default multipliers at 512 px do just that; `allow_frozen_fresh`
    lets them.
    """
    state = net.state_dict()
    if unknown := [key for key in base if key not in state]:
        raise UserError(
            f"grow: the base holds '{unknown[0]}', which the grown network has not ({_count(unknown)}): "
            "grow from a network with the same base config"
        )
    fresh = [key for key, value in state.items() if key not in base or base[key].shape != value.shape]
    start = train_start(net, train_from)
    frozen = [key for key in fresh if not _trains(key, start)]
    if frozen and not allow_frozen_fresh:
        first = frozen[0]
        here, there = tuple(state[first].shape), tuple(base[first].shape) if first in base else "nothing"
        raise UserError(
            f"grow: '{first}' is {here}, the base has {there}, and it does not train ({_count(frozen)} would stay random): "
            "keep the base's decoder multipliers, lower train_from, or allow it with allow_frozen_fresh"
        )
    with torch.no_grad():
        for key in state.keys() - set(fresh):
            state[key].copy_(base[key])
    return fresh


def _trains(key: str, start: int) -> bool:
    part, index = key.split(".")[:2]
    return part == "out" or (part == "output_blocks" and int(index) >= start)


def _count(keys: list[str]) -> str:
    return f"{len(keys)} tensor{'s' if len(keys) > 1 else ''}"
