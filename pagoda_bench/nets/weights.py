"""Weights that are loaded whole or refused in one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from pagoda_bench.errors import UserError
from pagoda_bench.nets.features import load_half


def load_whole(net: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Loads every tensor of `net` from `state`, and `state` holds nothing else.

    Raises:
        UserError: a tensor is missing, left over or of another shape; it names the first, how many, and `where`. The network
            is then unchanged.
    """
    own = net.state_dict()
    problems = [f"lacks {name}" for name in own if name not in state]
    problems += [f"has {name}, which the network does not" for name in state if name not in own]
    problems += [
        f"holds {name} as {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more such)" if len(problems) > 1 else ""
        raise UserError(f"{where} does not fit the network: it {problems[0]}{more}; remove that artifact and make it again")
    net.load_state_dict(dict(state), strict=True)


def load_file_whole(net: nn.Module, path: Path) -> None:
    """`load_whole` from a file that `save_half` wrote. `UserError` also when there is no such file, or it is damaged."""
    load_whole(net, read_weights(path), str(path))


def read_weights(path: Path) -> dict[str, Tensor]:
    """What `save_half` wrote, float32. `UserError` when there is no such file, or it is damaged."""
    try:
        return load_half(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({str(error).partition(chr(10))[0]}): make that artifact again") from None
