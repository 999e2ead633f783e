"""How a training computes what it computes: activation checkpointing and `torch.compile`, of any method on a U-Net."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pagoda_bench.errors import UserError
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.stages import TrainConfig
from pagoda_bench.training import sharding

PARTS = ("encode_from", "decode", "head")  # of a U-Net: every way through it, frozen prefix or not, consists of these


@contextmanager
def checkpointed(nets: Iterable[nn.Module], config: TrainConfig, *, counting: bool = False) -> Iterator[Recomputed]:
    """The U-Nets among `nets` keep what goes into each block alone, if `config.checkpoint` asks for it; afterwards as before.

    What they compute a second time is no part of a step's work: with `counting` it is counted, to be taken off.
    """
    again = Recomputed()
    unets = _unets(nets, "checkpoint") if config.checkpoint else []
    try:
        for net in unets:
            net.checkpointing = {"context_fn": again.contexts} if counting else {}
        yield again
    finally:
        for net in unets:
            net.checkpointing = None


class Recomputed:
    """Adds up the floating-point operations of what is computed within it, however often it is entered."""

    def __init__(self) -> None:
        self.flops = 0

    def contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """For the first computation and for the second, as `torch.utils.checkpoint` takes them."""
        return nullcontext(), self

    def __enter__(self) -> None:
        self._counter = FlopCounterMode(display=False)
        self._counter.__enter__()

    def __exit__(self, *raised: Any) -> None:  # the second computation ends in an exception, once it has what was asked for
        self._counter.__exit__(*raised)
        self.flops += self._counter.get_total_flops()


@contextmanager
def compiled(nets: Iterable[nn.Module], config: TrainConfig) -> Iterator[None]:
    """The parts of the U-Nets among `nets` are compiled, if `config.compile` asks for it; afterwards as before.

    `UserError` when there is no U-Net, no compiler, or a sharded network.
    """
    if not config.compile:
        yield
        return
    unets = _unets(nets, "compile")
    if any(sharding.any_sharded(net.parameters()) for net in unets):
        raise UserError("train.compile does not go with train.shard: set one of them to false")
    on_cpu = any(p.device.type == "cpu" for net in unets for p in net.parameters())
    if on_cpu and not any(shutil.which(c) for c in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise UserError("train.compile needs a C++ compiler on a CPU, and none is on the path: install one, or set it to false")
    from torch._functorch import config as functorch

    with ExitStack() as after:
        # Two losses at one image walk back through the same graph, so its buffers must outlive the first.
        after.enter_context(functorch.patch(donated_buffer=False))
        for net in unets:
            for part in PARTS:
                setattr(net, part, torch.compile(getattr(net, part)))
                after.callback(delattr, net, part)
        yield


def _unets(nets: Iterable[nn.Module], option: str) -> list[UNet]:
    """Discriminators and feature networks are left alone."""
    found = [m for net in nets for m in net.modules() if isinstance(m, UNet)]
    if not found:
        raise UserError(f"train.{option}: there is no U-Net in this training, and it is for these: set it to false")
    return found
