"""Networks that judge images."""

from __future__ import annotations

from typing import ClassVar, Literal

from pagoda_bench.recipes.base import Recipe


class Features(Recipe):
    """A network that judges images. What trains through its maps needs a `FeatureNet`."""


class Pretrained(Features, kind="pretrained"):
    """A published network, by the SHA-256 of its weights. "inception": the 2015 graph, whose Frechet distance is the FID."""

    runner: ClassVar[str] = "pagoda_bench.metrics.judges:run"

    network: Literal["inception"] = "inception"
    weights: str = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

    @property
    def title(self) -> str:
        return f"{self.network} ({self.weights[:8]})"
