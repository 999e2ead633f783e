"""Networks that will be sharded are built without memory, and get their values one tensor after the other.

PyTorch initialises a network while it builds it, from one sequence of random numbers. On the meta device nothing is drawn; so
what would have been is written down, and done again when each process has memory for its part: the values are those of a
network that was built whole from the same seed, bit by bit, and no process ever holds more than one tensor of it whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pagoda_bench.nets.features import load_half
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.stages import UNetConfig
from pagoda_bench.training import parallel
from pagoda_bench.training.sharding import part

aten = torch.ops.aten
FILLS = (aten.uniform_.default, aten.normal_.default, aten.zero_.default, aten.fill_.Scalar)
"""By which layers are initialised: each gives every element of a tensor a new value, whatever was there."""


class _Noted(TorchDispatchMode):
    """Writes down the fills, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.fills: list[tuple[Tensor, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FILLS:
            self.fills.append((args[0], func, args[1:], kwargs or {}))
        return func(*args, **(kwargs or {}))


class Values:
    """What a network on the meta device is to hold, by calling this when it has memory: the initial values of PyTorch's
    generator as it is now, and over them tensors of files (`take`). Making this leaves the generator where building the network
    whole would have left it, since what is built next (a discriminator) goes on from there."""

    def __init__(self, net: nn.Module, noted: _Noted) -> None:
        names = {id(tensor): name for name, tensor in (*net.named_parameters(), *net.named_buffers())}
        self.fills = [(names[id(tensor)], tensor.shape, *rest) for tensor, *rest in noted.fills]
        self.state, self.files = torch.get_rng_state(), dict[str, Path]()
        unfilled = net.state_dict().keys() - {name for name, *_ in self.fills}
        assert not unfilled, f"{sorted(unfilled)} get their values in a way that building.FILLS does not know"
        for _ in self._drawn():
            pass

    def take(self, path: Path, found: Mapping[str, Tensor]) -> None:
        """Tensors come from a file that `save_half` wrote, where `found`, its tensors, has their name and shape."""
        shapes = {name: shape for name, shape, *_ in self.fills}
        self.files |= {name: path for name, value in found.items() if shapes.get(name) == value.shape}

    def _drawn(self) -> Iterator[tuple[str, Tensor]]:
        """Every fill in turn: the name of its tensor, and the values. The last one of a name is what the tensor holds."""
        for name, shape, fill, args, kwargs in self.fills:
            yield name, fill(torch.empty(shape), *args, **kwargs)

    @torch.no_grad()
    def __call__(self, net: nn.Module) -> None:
        own = net.state_dict()
        if own.keys() - self.files.keys():  # all is drawn, since what comes later depends on it
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(self.state)
                for name, value in self._drawn():
                    if name not in self.files:
                        own[name].copy_(part(value, own[name]))
        for path in dict.fromkeys(self.files.values()):
            with safe_open(path, framework="pt") as file:
                for name in (name for name, of in self.files.items() if of == path):
                    own[name].copy_(part(file.get_tensor(name).to(own[name].dtype), own[name]))


def build(config: UNetConfig, shard: bool) -> tuple[UNet, Values | None]:
    """A U-Net with initial values from PyTorch's generator; to be sharded by several processes, without memory, and what it is
    to hold, for `sharding.shard`."""
    if not shard or parallel.world() == 1:
        return UNet(config), None
    with torch.device("meta"), _Noted() as noted:
        net = UNet(config)
    return net, Values(net, noted)


def weights(path: Path, values: Values | None) -> dict[str, Tensor]:
    """The tensors of a file that `save_half` wrote, float32, for a network of `build` to start from. For one without memory
    they are on the meta device, names and shapes alone, and `values` takes those that fit."""
    if values is None:
        return load_half(path)
    with safe_open(path, framework="pt") as file:
        found = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
    values.take(path, found)
    return found
