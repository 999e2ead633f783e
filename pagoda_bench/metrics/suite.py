"""Which metric looks through which network under which protocol, so that the same word gives the number that the program of
that protocol would give. What the metrics are, and their parameters, is in `registry` and `settings`.

A metric that a protocol does not define is taken from its home: the implementation that made it known. The score says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.metrics.registry import METRICS, Metric
from pagoda_bench.metrics.settings import PROTOCOLS, Settings

NEIGHBOURS = ("precision", "recall", "density", "coverage")
GROUPS = {"prdc": NEIGHBOURS, "pr": NEIGHBOURS[:2]}


@dataclass(frozen=True)
class Measure:
    """One metric on one feature of one network, with its parameters."""

    metric: str
    extractor: str
    feature: str
    preset: str
    settings: Settings

    @property
    def line(self) -> Metric:
        """Of the table of metrics."""
        return METRICS[self.metric]

    @property
    def key(self) -> tuple[str, str]:
        return self.extractor, self.feature


# By protocol: the network and feature of each metric; "*" is where any feature space will do.
PLACES: dict[str, dict[str, tuple[str, str]]] = {
    "embedded": {
        "*": ("embedded", "features"),
        "is": ("embedded", "logits"),
        "lpips_diversity": ("embedded", "distance"),
    },
    "adm": {
        "*": ("inception", "pool3"),
        "fid": ("inception", "pool3"),
        "sfid": ("inception", "spatial"),
        "is": ("inception", "logits_unbiased"),
    },
    "edm": {"*": ("inception", "pool3"), "fid": ("inception", "pool3"), "fd_dinov2": ("dinov2-vitl14-torch", "cls")},
    "clean": {"*": ("clean", "pool3"), "fid": ("clean", "pool3")},
    "dgm-eval": {"*": ("dinov2-vitl14", "cls"), "fd_dinov2": ("dinov2-vitl14", "cls")},
    "torch-fidelity": {
        "*": ("inception", "pool3"),
        "fid": ("inception", "pool3"),
        "is": ("inception", "logits_unbiased"),
        "precision": ("vgg16", "fc2_relu"),
        "recall": ("vgg16", "fc2_relu"),
    },
}
USUAL = {
    "embedded": ("fd", "precision", "recall", "is"),
    "adm": ("is", "fid", "sfid", "precision", "recall"),
    "edm": ("fid", "fd_dinov2"),
    "clean": ("fid",),
    "dgm-eval": ("fd", *NEIGHBOURS),
    "torch-fidelity": ("fid", "kid", "is", "precision", "recall"),
}
HOMES = {"fid": "torch-fidelity", "sfid": "adm", "fd_dinov2": "dgm-eval", "is": "torch-fidelity"}
ANYWHERE = ("fd", *NEIGHBOURS, "kid", "mind", "vendi", "authenticity", "fid_infinity", "per_class_fid")
# Metrics that are the same under every protocol, except where it places them itself.
ELSEWHERE = {
    "cmmd": ("clip-vit-l-14-336", "image"),
    "clip_score": ("clip-vit-l-14", "image"),
    "lpips_diversity": ("lpips-vgg16", "distance"),
    "cas": ("pixels", "images"),
}
OWN = {"clip_score": "", "lpips_diversity": "distance"}  # may be taken in a network of the user's choice; on which feature


def measures(protocol: str, metrics: Iterable[str] | None = None, own: tuple[str, str] | None = None) -> list[Measure]:
    """The measures of `metrics` (default: the protocol's usual ones) under `protocol`, each once, in the order asked for.

    With `own`, an (extractor, feature), the metrics of any feature space are taken there instead.
    """
    if protocol not in PLACES:
        raise UserError(f"unknown protocol '{protocol}'" + nearest(protocol, PLACES))
    asked = list(metrics) if metrics is not None else list(USUAL[protocol])
    names = [name for item in asked for name in GROUPS.get(item, (item,))]
    if not names:
        raise UserError("no metric is asked for" + nearest("fd", known()))
    return [_measure(protocol, name, own) for name in dict.fromkeys(names)]


def known() -> list[str]:
    """All metrics that can be asked for, with the names of groups."""
    return sorted({*GROUPS, *METRICS})


def _measure(protocol: str, name: str, own: tuple[str, str] | None) -> Measure:
    if name not in METRICS:
        raise UserError(f"unknown metric '{name}'" + nearest(name, known()))
    settings, places = PROTOCOLS[protocol], PLACES[protocol]
    if own and (name in ANYWHERE or name in OWN):
        return Measure(name, own[0], OWN.get(name) or own[1], "own", settings)
    if name in places:
        return Measure(name, *places[name], protocol, settings)
    if name in ("density", "coverage") and protocol != "dgm-eval":  # as their paper and prdc have them
        return Measure(name, *places["*"], protocol, PROTOCOLS["prdc"])
    if name in ANYWHERE:
        return Measure(name, *places["*"], protocol, settings)
    if name in HOMES:
        home = HOMES[name]
        return Measure(name, *PLACES[home][name], home, PROTOCOLS[home])
    if name in ELSEWHERE:
        return Measure(name, *ELSEWHERE[name], name, settings)
    raise UserError(f"'{name}' is not defined under protocol '{protocol}'" + nearest(name, known()))
