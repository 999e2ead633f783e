"""Data parallelism inside a step: several processes, each with its part of every batch, that do what one would do alone.

Random numbers belong to (seed, step) and are drawn for the whole batch on every process, which then takes its slice: so the
batch, and the sample position after a resume, do not depend on how many processes there are. Gradients are averaged after
the last backward pass of a step; `SyncedBatchNorm` makes batch statistics those of the whole batch. The processes meet in
`distributed.group`; outside it there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pagoda_bench.errors import UserError
from pagoda_bench.nets.device import compute_device
from pagoda_bench.training.distributed import average


def rank() -> int:
    return dist.get_rank() if _together() else 0


def world() -> int:
    return dist.get_world_size() if _together() else 1


def parts(batch: int, accumulate: int = 1) -> Iterator[slice]:
    """This process's slices of a batch, one for each backward pass. `UserError` when the batch does not divide evenly."""
    whole = world() * accumulate
    if batch % whole:
        raise UserError(
            f"a batch of {batch} does not divide into {world()} processes times {accumulate} passes: change train.batch, "
            "train.accumulate or the number of processes"
        )
    size = batch // whole
    for i in range(accumulate):
        begin = (rank() * accumulate + i) * size
        yield slice(begin, begin + size)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """The mean over processes in the place of every gradient; parameters without one stay so. One message for all. Those of
    sharded parameters are means already."""
    gradients = [p.grad for p in parameters if p.grad is not None and not hasattr(p, "full_tensor")]
    if world() == 1 or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    average([flat])
    for g, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        g.copy_(mean.view_as(g))


def averaged(values: dict[str, float]) -> dict[str, float]:
    """The mean of each value over processes."""
    if world() == 1 or not values:
        return values
    message = torch.tensor(list(values.values()), dtype=torch.float64, device=compute_device())
    average([message])
    return dict(zip(values, message.tolist(), strict=True))


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over processes, without a graph; itself when there is one process."""
    if world() == 1:
        return value
    out = value.detach().clone()
    average([out])
    return out


def anywhere(flag: bool) -> bool:
    """Whether the flag is up in any process."""
    return most(int(flag)) > 0


def most(level: int) -> int:
    """The largest of a number over processes."""
    if world() == 1:
        return level
    top = torch.tensor(float(level), device=compute_device())
    dist.all_reduce(top, dist.ReduceOp.MAX)
    return int(top)


def from_first(values: dict[str, float]) -> dict[str, float]:
    """The values that the first process has, in all of them."""
    if world() == 1:
        return values
    message: list[dict[str, float]] = [values]
    dist.broadcast_object_list(message, src=0)
    return message[0]


def gathered(value: Tensor) -> list[Tensor]:
    """A tensor of each process, all of one shape, in the order of ranks."""
    if world() == 1:
        return [value]
    mine = value.to(compute_device()).contiguous()
    parts = [torch.empty_like(mine) for _ in range(world())]
    dist.all_gather(parts, mine)
    return parts


class _Mean(torch.autograd.Function):
    """The mean of a tensor over processes; the gradients of all of them come back to each as their mean."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return mean(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return mean(gradient)


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes, also on CPUs; the names and the numbers of `nn.BatchNorm2d`, and its types:
    beside autocast it computes in float32 and gives what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        if world() == 1 or not self.training:
            return super().forward(x)
        # All processes hold equally many images, so the mean of means is the mean. Two messages: E[x^2] - E[x]^2 would take
        # one, and lose the variance of channels whose mean is large beside it.
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        first = _Mean.apply(exact.mean((0, 2, 3)))
        centred = exact - first[:, None, None]
        variance = _Mean.apply(centred.square().mean((0, 2, 3)))
        count = x.numel() // x.shape[1] * world()
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(first, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        y = centred * (variance + self.eps).rsqrt()[:, None, None]
        return (y * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


Net = TypeVar("Net", bound=nn.Module)


def synced(net: Net) -> Net:
    """`net` with its batch norms over all processes; unchanged when there is one process."""
    if world() == 1:
        return net
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm
    return net


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
