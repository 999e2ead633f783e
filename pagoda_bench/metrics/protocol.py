"""What must agree before two scores may be compared."""

from __future__ import annotations

from typing import Any

from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Config

NOT_STATED = "not stated"  # of images that somebody made: labels, guidance

_NAMES = {
    "weights": "extractor weights",
    "resize": "resize before the extractor",
    "n": "N",
    "reference_n": "N of the reference",
    "k": "k of the neighbourhoods",
    "rim": "points on the rim",
    "part": "images a part",
    "shuffle": "seed of the shuffle",
    "seed": "seed of the metric",
    "crop": "crop and resize to the resolution",
    "batch": "batch of the extractor",
    "distances": "precision of the distances",
    "subset": "images a subset",
}

_FRECHET = {"fd", "fid", "sfid", "fd_dinov2", "fid_infinity", "per_class_fid"}
_NEIGHBOURS = {"precision", "recall", "density", "coverage"}
# The metrics that depend on a field; a field that is not here belongs to all of them.
_ONLY = {
    "frechet": _FRECHET,
    "k": _NEIGHBOURS,
    "rim": _NEIGHBOURS,
    "distances": _NEIGHBOURS | {"authenticity"},
    "splits": {"is"},
    "part": {"is"},
    "shuffle": {"is"},
    "subsets": {"kid"},
    "subset": {"kid"},
    "projections": {"mind"},
    "points": {"fid_infinity"},
    "kernel": {"kid", "cmmd", "vendi"},
    "convention": {"clip_score", "cas"},
    "prompts": {"clip_score"},
    "pairs": {"lpips_diversity"},
    "seed": {"kid", "mind", "fid_infinity", "lpips_diversity", "cas"},
}
_WITHOUT_REFERENCE = {"is", "alignment", "vendi", "clip_score", "lpips_diversity"}


class Protocol(Config):
    """How a score was measured. A field that a metric does not use is None in that metric's protocol."""

    extractor: str  # family of the feature network
    weights: str  # SHA-256 of its weights
    resize: str  # what is done to an image before it enters the network
    resolution: int  # of the images that were measured
    reference: str | None  # key of the reference recipe, or SHA-256 of the file
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
    crop: str | None = None  # what brought the real images to the resolution: crop and filter
    batch: int | None = None  # of the feature network: float32 rounds differently at another one
    distances: str | None = None  # dtype of the distances between features
    part: int | None = None  # images in a part of the Inception Score, where that is given instead of the splits
    shuffle: int | None = None  # seed of the order of the images for the Inception Score
    subsets: int | None = None  # of KID
    subset: int | None = None  # images in each
    kernel: str | None = None
    projections: int | None = None  # of MIND
    points: int | None = None  # of the line of FID-infinity
    convention: str | None = None  # of the CLIP score; which classifier, trained how, of the classifier accuracy score
    prompts: str | None = None  # SHA-256 of the texts
    pairs: int | None = None  # of the diversity
    seed: int | None = None  # of what a metric draws itself

    def of(self, metric: str) -> Protocol:
        """The part that `metric` depends on: a name of the metric table, or "fd", "nfe" or "parameters"."""
        unused: dict[str, Any] = {field: None for field, metrics in _ONLY.items() if metric not in metrics}
        if metric in _WITHOUT_REFERENCE:
            unused |= {"reference": None, "reference_n": None, "crop": None}
        return self.model_copy(update=unused)


def differences(a: Protocol, b: Protocol) -> list[str]:
    """What differs, in field order, such as "N 1,000 vs 10,000"; empty when the scores may be compared."""
    found = []
    for field in Protocol.model_fields:
        left, right = getattr(a, field), getattr(b, field)
        if left != right:
            found.append(f"{_NAMES.get(field, field)} {_text(left)} vs {_text(right)}")
    return found


def check_comparable(a: Protocol, b: Protocol, what: str) -> None:
    """Raises `UserError`, which says everything that differs, unless scores of `a` and `b` may be subtracted."""
    if apart := differences(a, b):
        raise UserError(f"{what}: these scores cannot be compared, their protocols differ: {'; '.join(apart)}")


def _text(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, int):
        return f"{value:,}"
    text = str(value)
    return text[:12] if len(text) == 64 else text
