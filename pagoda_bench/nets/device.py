"""Where networks compute."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

import torch
import torch.distributed as dist

from pagoda_bench.artifacts.ranks import place
from pagoda_bench.errors import UserError

DEVICE = "PAGODA_BENCH_DEVICE"
MALLOPT = {-4: 0, -1: 2**31 - 1, -2: 2**28}  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h


def compute_device() -> torch.device:
    """$PAGODA_BENCH_DEVICE, e.g. "cuda"; else the GPU of this process in a group of GPUs, else the CPU."""
    chosen = os.environ.get(DEVICE)
    if chosen is None:
        together = dist.is_available() and dist.is_initialized()
        chosen = "cuda" if together and dist.get_backend() == "nccl" else "cpu"
    try:
        device = torch.device(chosen)
    except RuntimeError:
        raise UserError(f"{DEVICE}={chosen} is no device: use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{DEVICE}={chosen}, but PyTorch sees no GPU here: leave it away, or use cpu")
    return torch.device("cuda", place().local_rank) if str(device) == "cuda" else device


@cache
def keep_freed_memory() -> bool:
    """Tells glibc to give freed memory to the next tensor instead of to the system; False where there is another C library.

    A step on a CPU frees and asks for the same large blocks again and again. By default each comes from the system page by
    page, and comes back zeroed: a sixth of the time of a training step at 64 px.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return all(mallopt(parameter, value) for parameter, value in MALLOPT.items())
