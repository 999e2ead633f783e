"""Weights that are loaded whole or refused in one line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pagoda_bench.errors import UserError
from pagoda_bench.nets.features import load_half


def load_whole(net: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Loads every tensor of `net` from `state`, and `state` holds nothing else.

    Raises:
        UserError: a tensor is missing, left over or of another shape; it names the first, how many, and `where`. The network
            is then unchanged.
    """
    _check(net, {name: tuple(value.shape) for name, value in state.items()}, where)
    net.load_state_dict(dict(state), strict=True)


@torch.no_grad()
def load_file_whole(net: nn.Module, path: Path) -> None:
    """`load_whole` from a file that `save_half` wrote, one tensor after the other: beside the network's own memory none is
    taken for a second copy. `UserError` also when there is no such file, or it is damaged."""
    with _readable(path), safe_open(path, framework="pt") as file:
        _check(net, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, str(path))  # noqa: SIM118
        for name, value in net.state_dict().items():
            value.copy_(file.get_tensor(name))


def stored(path: Path) -> Any:
    """What torch saved in a file, on the CPU, read as data: no code of it is run. Raises one of `errors.UNREADABLE`."""
    with warnings.catch_warnings():  # of bytes that are none of its own, the reader says so as well
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def read_weights(path: Path) -> dict[str, Tensor]:
    """What `save_half` wrote, float32. `UserError` when there is no such file, or it is damaged."""
    with _readable(path):
        return load_half(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({str(error).partition(chr(10))[0]}): make that artifact again") from None


def _check(net: nn.Module, state: Mapping[str, Sequence[int]], where: str) -> None:
    own = net.state_dict()
    problems = [f"lacks {name}" for name in own if name not in state]
    problems += [f"has {name}, which the network does not" for name in state if name not in own]
    problems += [
        f"holds {name} as {state[name]}, not {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name] != tuple(value.shape)
    ]
    if problems:
        more = f" (and {len(problems) - 1} more such)" if len(problems) > 1 else ""
        raise UserError(f"{where} does not fit the network: it {problems[0]}{more}; remove that artifact and make it again")
