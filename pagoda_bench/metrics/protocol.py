"""What must agree before two scores may be compared."""

from __future__ import annotations

from typing import Any

from pagoda_bench.recipes.base import Config

_NAMES = {
    "weights": "extractor weights",
    "resize": "resize before the extractor",
    "n": "N",
    "reference_n": "N of the reference",
    "k": "k of the neighbourhoods",
    "rim": "points on the rim",
}


class Protocol(Config):
    """How a score was measured. A field that a metric does not use is None in that metric's protocol."""

    extractor: str  # family of the feature network
    weights: str  # SHA-256 of its weights
    resize: str  # what is done to an image before it enters the network
    resolution: int  # of the images that were measured
    reference: str | None  # key of the reference recipe
    reference_n: int | None
    n: int
    labels: str  # how the classes of the samples were chosen
    rounding: str  # from the network's real values to uint8
    guidance: str = "none"
    precision: str = "float32 features, float64 statistics"
    frechet: str | None = None  # form of the Frechet distance
    k: int | None = None
    rim: str | None = None  # whether a point at exactly the radius is inside: "<=" or "<"
    splits: int | None = None  # of the Inception Score

    def of(self, metric: str) -> Protocol:
        """The part that `metric` ("fd", "precision", "recall", "density", "coverage", "is") depends on."""
        unused: dict[str, Any] = {}
        if metric != "fd":
            unused["frechet"] = None
        if metric not in ("precision", "recall", "density", "coverage"):
            unused |= {"k": None, "rim": None}
        if metric == "is":
            unused |= {"reference": None, "reference_n": None}
        else:
            unused["splits"] = None
        return self.model_copy(update=unused)


def differences(a: Protocol, b: Protocol) -> list[str]:
    """What differs, in field order, such as "N 1,000 vs 10,000"; empty when the scores may be compared."""
    found = []
    for field in Protocol.model_fields:
        left, right = getattr(a, field), getattr(b, field)
        if left != right:
            found.append(f"{_NAMES.get(field, field)} {_text(left)} vs {_text(right)}")
    return found


def _text(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, int):
        return f"{value:,}"
    text = str(value)
    return text[:12] if len(text) == 64 else text
