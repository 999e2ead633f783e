"""Counted operations are the same whatever release of PyTorch counts them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils import flop_counter

from pagoda_bench.nets.counting import complete

aten = torch.ops.aten
ON_CPU = (
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
)


def attention() -> int:
    """Operations of one head over 64 places of 16 channels, forward and backward."""
    q, k, v = (torch.randn(1, 1, 64, 16, requires_grad=True) for _ in range(3))
    with flop_counter.FlopCounterMode(display=False) as counter:
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    return int(counter.get_total_flops())


def test_attention_on_a_cpu_counts_in_every_release(monkeypatch: pytest.MonkeyPatch) -> None:
    product = 2 * 64 * 64 * 16  # two of them forward; backward four, and the scores once more
    assert attention() == 7 * product
    for operator in ON_CPU:  # as in releases that do not know them
        monkeypatch.delitem(flop_counter.flop_registry, operator)
    assert attention() == 0
    complete()
    assert attention() == 7 * product


def test_whoever_counts_has_the_counter_complete() -> None:
    """Trainings, pairs and kept states all import the loop, which completes it."""
    import pagoda_bench.training.loop  # noqa: F401

    assert all(operator in flop_counter.flop_registry for operator in ON_CPU)
