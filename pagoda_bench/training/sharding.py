"""Sharded training (FSDP2): of several processes each holds a part of the weights, of their averages and of the optimiser's
state, and a block of the network is whole only while it computes.

`shard` changes a network in place; from then on its parameters are `DTensor`s. The rest of this module is what the loop needs
to treat both kinds alike. A checkpoint holds whole tensors, so that any number of processes goes on from it, sharded or not.
The discriminators stay whole: they are small beside a generator, and their batch norms are those of `parallel`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pagoda_bench.errors import UserError
from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.unet import UNet
from pagoda_bench.training import parallel


def shard(net: UNet, asked: bool) -> None:
    """Divides the parameters of `net` over all processes, block by block; alone, or when not asked to, it does nothing.

    Call it when the network is on its device and it is said what trains, and before optimisers and averages are made.
    """
    if not asked or parallel.world() == 1:
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


def is_sharded(value: object) -> bool:
    return hasattr(value, "full_tensor")


def any_sharded(values: Iterable[object]) -> bool:
    return any(is_sharded(value) for value in values)


def whole(value: Tensor) -> Tensor:
    """A sharded tensor made whole, in every process, all of which must ask for it; another one as it is."""
    return value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]


def collected(value: Any) -> Any:
    """As `whole`, in the memory of the host and in the first process alone, one tensor after the other; the others have None in
    the place of each."""
    if is_sharded(value):
        tensor = value.full_tensor()
        return tensor.cpu() if parallel.rank() == 0 else None
    if isinstance(value, dict):
        return {k: collected(v) for k, v in value.items()}
    if isinstance(value, list):
        return [collected(v) for v in value]
    return value


def part(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, which all processes have, laid out as `target` is; itself where nothing is to be divided."""
    if not is_sharded(target) or is_sharded(value):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def load_net(net: nn.Module, state: dict[str, Tensor]) -> None:
    """`net.load_state_dict` of whole tensors."""
    own = net.state_dict()
    net.load_state_dict({k: part(v, own[k]) if k in own else v for k, v in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict` of whole tensors: what has the shape of its parameter is divided as that is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if any_sharded(parameters):
        entries = {}
        for index, entry in state["state"].items():
            own = parameters[index]
            entries[index] = {
                k: part(v, own) if isinstance(v, Tensor) and v.shape == own.shape and v.ndim else v for k, v in entry.items()
            }
        state = {**state, "state": entries}
    optimizer.load_state_dict(state)
