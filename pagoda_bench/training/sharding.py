"""Sharded training (FSDP2): of several processes each holds a part of the weights, of their averages and of the optimiser's
state, and a block of the network is whole only while it computes.

`shard` changes a network in place; from then on its parameters are `DTensor`s. The rest of this module is what the loop needs
to treat both kinds alike. In a checkpoint each process writes its part of them (`divided`), and as many processes read each
their own; another number of processes, sharded or not, puts one tensor after the other together (`Parts`). The
discriminators stay whole: they are small beside a generator, and their batch norms are those of `parallel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pagoda_bench.errors import UserError
from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.unet import UNet
from pagoda_bench.training import parallel


def shard(net: UNet, asked: bool, fill: Callable[[nn.Module], None] | None = None) -> None:
    """Puts `net` on the device of this process, with its parameters divided over all of them, block by block; alone, or when
    not asked to divide, whole.

    Call it when it is said what trains, and before optimisers and averages are made; with a network on the meta device and
    `fill`, which gives it its values when it has memory (`building.build`), or with one in the memory of the host, so that a
    device never holds more of it than its part and one block.
    """
    if not asked or parallel.world() == 1:
        net.to(compute_device())
        return
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    except ImportError:
        raise UserError(f"train.shard needs PyTorch 2.6 or later, here is {torch.__version__}: set it to false") from None
    mesh = init_device_mesh(compute_device().type, (parallel.world(),))
    for block in [*net.input_blocks, net.middle_block, *net.output_blocks]:
        fully_shard(block, mesh=mesh)
    # Embeddings and head. By default the outermost part stays whole after a forward pass, until a backward pass comes; where
    # none comes, as when samples are drawn with averaged weights, the next step would compute with what was left there.
    fully_shard(net, mesh=mesh, reshard_after_forward=True)
    for name in ("trunk", "finish"):  # the ways into the network beside `forward`
        register_fsdp_forward_method(net, name)
    if fill is not None:
        net.to_empty(device=compute_device())
        fill(net)


def is_sharded(value: object) -> bool:
    return hasattr(value, "full_tensor")


def any_sharded(values: Iterable[object]) -> bool:
    return any(is_sharded(value) for value in values)


def whole(value: Tensor | Parts) -> Tensor:
    """A sharded tensor made whole, in every process, all of which must ask for it; one in parts put together; another one as it
    is."""
    if isinstance(value, Parts):
        return value.joined()
    return value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]


class Parts:
    """A tensor of a checkpoint that lies in parts along its first dimension, in the order of the processes that wrote them.
    A part that is not here, because its process reads it, is None."""

    def __init__(self, shape: Sequence[int], parts: Sequence[Tensor | None]) -> None:
        self.shape, self.parts = torch.Size(shape), parts

    def own(self) -> Tensor | None:
        """This process's part, where as many processes read as wrote."""
        return self.parts[parallel.rank()] if len(self.parts) == parallel.world() else None

    def joined(self) -> Tensor:
        here = [part for part in self.parts if part is not None]
        assert len(here) == len(self.parts), "parts of this tensor were left to other processes"
        return torch.cat(here)


MARK = "sharded"  # stands for a tensor that lies in parts: {MARK: its path, "shape": that of the whole}


def divided(value: Any, path: str = "") -> tuple[Any, dict[str, Tensor]]:
    """A nested state in two: what is alike in all processes, with a mark in the place of each sharded tensor; and this
    process's parts of those by path, in the memory of the host."""
    if is_sharded(value):
        from torch.distributed.tensor import Shard

        assert tuple(value.placements) == (Shard(0),), "FSDP2 divides along the first dimension"
        return {MARK: path, "shape": list(value.shape)}, {path: value.to_local().detach().to("cpu", copy=True)}
    if not isinstance(value, (dict, list)):
        return value, {}
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found = {k: divided(v, f"{path}/{k}") for k, v in entries}
    own = {name: tensor for _, parts in found.values() for name, tensor in parts.items()}
    rest = {k: v for k, (v, _) in found.items()}
    return (rest if isinstance(value, dict) else list(rest.values())), own


def united(value: Any, parts: Sequence[Mapping[str, Tensor] | None]) -> Any:
    """What `divided` gave, with a `Parts` in the place of each mark. `KeyError` where a part lacks a tensor."""
    if isinstance(value, dict):
        if isinstance(path := value.get(MARK), str):
            return Parts(value["shape"], [None if part is None else part[path] for part in parts])
        return {k: united(v, parts) for k, v in value.items()}
    return [united(v, parts) for v in value] if isinstance(value, list) else value


def part(value: Tensor | Parts, target: Tensor) -> Tensor:
    """A tensor that all processes have, whole or in parts, laid out as `target` is; itself where nothing is to be divided."""
    if not is_sharded(target):
        return value.joined() if isinstance(value, Parts) else value
    if is_sharded(value):
        assert isinstance(value, Tensor)
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    if isinstance(value, Parts):
        if (own := value.own()) is not None:
            here = own.to(target.device)
            return DTensor.from_local(
                here, target.device_mesh, target.placements, run_check=False, shape=target.shape, stride=target.stride()
            )
        value = value.joined()
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def load_net(net: nn.Module, state: dict[str, Tensor | Parts]) -> None:
    """`net.load_state_dict` of tensors that are whole or in parts."""
    own = net.state_dict()
    net.load_state_dict({k: part(v, own[k]) if k in own else whole(v) for k, v in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict` of tensors that are whole or in parts: what has the shape of its parameter is laid out as
    that is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = {}
    for index, entry in state["state"].items():
        own = parameters[index]
        entries[index] = {
            k: part(v, own) if isinstance(v, (Tensor, Parts)) and v.shape == own.shape and len(v.shape) else v
            for k, v in entry.items()
        }
    optimizer.load_state_dict({**state, "state": entries})
