"""Several processes that compute one stage together: torch.distributed, started from what SLURM or torchrun says.

A runner that uses this belongs to a recipe with `distributed = True`. Rank 0 alone writes checkpoints and records facts; all
ranks read the work folder, after a `barrier`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from pagoda_bench.artifacts.ranks import Place, place
from pagoda_bench.errors import UserError

MINUTES = 10.0


@contextmanager
def group(minutes: float = MINUTES) -> Iterator[Place]:
    """Joins the processes of this stage for the body, and yields which of them this one is; alone it starts nothing.

    NCCL where there is a GPU (that of the local rank becomes the current one), gloo elsewhere. `minutes`: how long one waits
    for the others before it gives up.

    Raises:
        UserError: the others do not come, or a rank has no GPU of its own.
    """
    here = place()
    if here.size == 1:
        yield here
        return
    cuda = torch.cuda.is_available()
    if cuda:
        if here.local_rank >= torch.cuda.device_count():
            raise UserError(f"task {here.local_rank} of this node has no GPU: ask for as many gpus as tasks")
        torch.cuda.set_device(here.local_rank)
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            init_method=f"tcp://{here.address}:{here.port}",
            world_size=here.size,
            rank=here.rank,
            timeout=timedelta(minutes=minutes),
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        said = str(error).partition("\n")[0][:200]
        raise UserError(
            f"rank {here.rank} of {here.size} cannot meet the others at {here.address}:{here.port} ({said}): is that port "
            "free and reachable? MASTER_ADDR and MASTER_PORT choose another"
        ) from error
    try:
        yield here
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for all ranks; alone it does nothing."""
    if dist.is_initialized():
        dist.barrier()


@torch.no_grad()
def average(tensors: Iterable[Tensor | None]) -> None:
    """Replaces each tensor, in place, by its mean over the ranks (None is passed over): after `backward`, the gradients of
    the loss averaged over all ranks' batches. Every rank must give the same shapes in the same order."""
    if not dist.is_initialized():
        return
    count = dist.get_world_size()
    for tensor in tensors:
        if tensor is not None:
            dist.all_reduce(tensor)  # a sum, which every backend has
            tensor /= count


def share(rows: int, here: Place) -> slice:
    """Which of `rows` rows of a batch rank `here.rank` computes: shares differ by one row at most, and cover all rows."""
    return slice(rows * here.rank // here.size, rows * (here.rank + 1) // here.size)
