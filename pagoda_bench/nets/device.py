"""Where networks compute."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

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
def fast_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16. Without them PyTorch's kernels still give results, but a
    convolution takes some fifty times as long as in float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest PyTorch allowed
    known = ("avx512_bf16", "amx_bf16", "bf16")  # the last is ARM's name
    return any(capabilities.get(name) for name in known) and torch.backends.mkldnn.is_available()


def computed_precision(precision: str, kind: str = "cpu") -> str:
    """The precision that a recipe's is computed in on a device of this kind: bfloat16 asks for speed, so a processor without
    instructions for it computes in float32."""
    return "fp32" if precision == "bf16" and kind == "cpu" and not fast_bfloat16() else precision


@cache
def training_format() -> torch.memory_format:
    """The memory format in which a U-Net trains soonest on this processor, measured at 64 px: with AVX2 channels-last (by a
    twentieth; convolutions take tensors as they are), with AVX-512 contiguous (by a tenth: the backward pass of group norm).
    """
    return torch.contiguous_format if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else torch.channels_last


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
