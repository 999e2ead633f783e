"""What is said of a method beside making its generator: where it comes from, what checks it, and how small it can be tried.

A method is a function `(scale, resolution) -> Generator`. `describe` attaches a `MethodFacts` to it, which `pagoda-bench
methods` lists; with `toy`, the conformance test trains, resumes, samples and reloads the method like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
UNKNOWN = "not said"


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """One line a fact, in words for a reader. `toy` holds the values of `methods.<name>` at a size that trains in seconds
    (an empty mapping where the method needs none), None for a method that trains nothing."""

    title: str
    paper: str = ""
    reference: str = UNKNOWN  # the code that implements it here
    weights: str = "none"  # released weights that can be loaded
    licence: str = UNKNOWN  # of those weights and of the published code
    tested: str = UNKNOWN  # the oracle that its tests hold it against
    toy: Mapping[str, Any] | None = field(default=None, compare=False)
    at: Literal["base", "grown", "top", "all"] = "top"  # the resolutions of a scale that it makes


def describe(**facts: Any) -> Callable[[F], F]:
    """Decorates a method with its facts: `@describe(title=..., toy={...})`."""

    def attach(method: F) -> F:
        method.facts = MethodFacts(**facts)  # type: ignore[attr-defined]
        return method

    return attach


def facts_of(method: Callable[..., Any]) -> MethodFacts:
    """The facts of a method; of one that says nothing, its name alone."""
    found = getattr(method, "facts", None)
    return found if isinstance(found, MethodFacts) else MethodFacts(title=getattr(method, "__name__", str(method)))
