"""What a metric gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Value:
    """A metric's value and what is known of it from one set of samples."""

    value: float
    spread: float | None = None  # standard deviation over the metric's own parts, as published beside it
    spread_of: str = ""  # such as "100 subsets": overlapping parts, so no standard error
    stderr: float | None = None  # by the bootstrap, where it is valid
    detail: dict[str, Any] = field(default_factory=dict)  # JSON values
    protocol: dict[str, Any] = field(default_factory=dict)  # what was only decided while it was computed
    marks: tuple[str, ...] = ()  # what a reader must know, such as too few images

    def marked(self, marks: tuple[str, ...]) -> Value:
        return replace(self, marks=(*self.marks, *marks))
