"""PyTorch's counter of operations, with what some releases leave out of it.

Before it learnt so, attention on a CPU counted as nothing (PyTorch 2.6 and 2.7), while the same network on a GPU had all of its
work: equal work would have been more steps for the method with more attention, a fourteenth for greedy growing's core.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def complete() -> None:
    """Counts attention on a CPU by the formulas of the same attention on a GPU, forward and backward, where none are there."""
    for here, elsewhere in (
        (aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention),
        (aten._scaled_dot_product_flash_attention_for_cpu_backward, aten._scaled_dot_product_flash_attention_backward),
    ):
        flop_registry.setdefault(here, flop_registry[elsewhere])
