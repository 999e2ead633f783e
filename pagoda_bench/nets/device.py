"""Where networks compute."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from pagoda_bench.artifacts.ranks import place
from pagoda_bench.errors import UserError

DEVICE = "PAGODA_BENCH_DEVICE"


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
