"""Network evaluations are counted on the network while it samples, never derived from a setting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Evaluations:
    """What was counted: `calls` of the network's forward, and `images`, the sum of the batch sizes of those calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.images = 0

    def per_image(self, images: int) -> int:
        """Evaluations an image when `images` came out. Raises `ValueError` when they did not all cost the same."""
        nfe, rest = divmod(self.images, images)
        if rest:
            raise ValueError(f"{self.images} evaluations for {images} images: not the same number for each")
        return nfe


@contextmanager
def count_evaluations(net: nn.Module) -> Iterator[Evaluations]:
    """Counts the evaluations of `net` inside the block, by a forward hook; guidance that doubles the batch counts twice.

    The first tensor among the arguments carries the batch. Calls that bypass `net.__call__` are not seen.
    """
    counted = Evaluations()

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        batch = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        counted.calls += 1
        counted.images += len(batch)

    handle = net.register_forward_hook(hook, with_kwargs=True)
    try:
        yield counted
    finally:
        handle.remove()
