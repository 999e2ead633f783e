"""Any function of the user's as an extractor, by "module:object".

The object takes uint8 (N, 3, H, W) and returns float (N, d), or a dict of such by name. It may say its `protocol` (a text that
goes into the scores) and bring `weights` (the SHA-256 of what it loaded); without them the source file of its module is hashed.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.extractors.base import Extractor, Precision

FEATURE = "features"


class User(Extractor):
    """A probe of two grey images tells which features there are and how long each is."""

    def __init__(
        self, where: str, device: str | torch.device = "cpu", precision: Precision = "float32", side: int = 32
    ) -> None:
        self._function: Any = imported(where, "extractor", "uint8 (N, 3, H, W) images")
        with torch.inference_mode():
            probe = self._named(torch.full((2, 3, side, side), 128, dtype=torch.uint8, device=device), where)
        dimensions = {name: int(value.shape[1]) for name, value in probe.items()}
        weights = getattr(self._function, "weights", None) or _source_hash(self._function)
        resize = str(getattr(self._function, "protocol", "its own"))
        super().__init__(where, str(weights), resize, dimensions, device, precision)

    @classmethod
    def load(cls, weights: Path | None = None, device: str = "cpu", precision: Precision = "float32", **options: Any) -> User:
        return cls(str(options["where"]), device, precision)

    def extract(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        return self._named(images, self.name)

    def _named(self, images: Tensor, where: str) -> dict[str, Tensor]:
        value = self._function(images)
        found = value if isinstance(value, dict) else {FEATURE: value}
        for name, item in found.items():
            if not isinstance(item, Tensor) or item.ndim != 2 or len(item) != len(images) or not item.is_floating_point():
                got = f"{item.dtype} {tuple(item.shape)}" if isinstance(item, Tensor) else type(item).__name__
                raise UserError(f"extractor {where}: feature '{name}' is {got}, and must be a float tensor (N, d)")
        return found


def imported(where: str, what: str, takes: str) -> Callable[..., Any]:
    """What "module:function" names. `UserError` in the words of `what` it is for, when it is not there or is no function of
    what it `takes`."""
    module, _, name = where.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{what} {where} cannot be imported ({error}): give module:object of an importable module") from None
    if not callable(found):
        raise UserError(f"{what} {where} cannot be called: give a function of {takes}")
    chosen: Callable[..., Any] = found
    return chosen


def _source_hash(function: Any) -> str:
    """Of the file that defines the function: the nearest thing to its identity that is known here."""
    try:
        file = inspect.getsourcefile(function if inspect.isroutine(function) else type(function))
    except TypeError:
        file = None
    content = Path(file).read_bytes() if file else repr(function).encode()
    return hashlib.sha256(content).hexdigest()
