"""The parameters of metrics, and their values in the protocols of the field."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pagoda_bench.metrics.cas import describe
from pagoda_bench.recipes.base import Config, result_neutral


class Settings(Config):
    """How the metrics are computed from features. The defaults are torch-fidelity's, except that nothing is shuffled."""

    k: int = Field(3, ge=1)  # neighbours that make a ball
    rim: Literal["<=", "<"] = "<="  # whether a point on the rim of a ball is inside
    distances: Literal["auto", "float32", "float64"] = "auto"  # auto: float32 where features are spread enough for it
    splits: int = Field(10, ge=1)  # of the Inception Score
    part: int | None = Field(None, ge=1)  # images in a part of it, instead of the splits
    shuffle: int | None = None  # seed of the order of the images for it
    subsets: int = Field(100, ge=1)  # of KID
    subset: int = Field(1000, ge=2)  # images in each
    seed: int = 2020  # of KID, MIND, FID-infinity, diversity and the classifier
    points: int = Field(15, ge=2)  # of the line of FID-infinity
    projections: int = Field(1000, ge=1)  # of MIND
    convention: Literal["percent", "cosine", "clipscore"] = "percent"  # of the CLIP score
    pairs: int = Field(1000, ge=1)  # of the diversity
    steps: int = Field(500, ge=1)  # of the training of the classifier accuracy score
    draws: int = Field(200, ge=0)  # of the bootstrap; 0: none
    device: str = result_neutral("cpu")

    def protocol(self, metric: str) -> dict[str, Any]:
        """The fields of a `Protocol` that these settings fix; `Protocol.of(metric)` keeps what the metric depends on."""
        kernels = {"kid": "(x.y/d + 1)^3, unbiased", "cmmd": "gaussian, sigma 10, biased, x1000", "vendi": "cosine"}
        return {
            "frechet": "eigenvalues, n - 1",
            "k": self.k,
            "rim": self.rim,
            "distances": self.distances,
            "splits": None if self.part else self.splits,
            "part": self.part,
            "shuffle": self.shuffle,
            "subsets": self.subsets,
            "subset": self.subset,
            "kernel": kernels.get(metric),
            "projections": self.projections,
            "points": self.points,
            "convention": describe(self.steps) if metric == "cas" else self.convention,
            "pairs": self.pairs,
            "seed": self.seed,
        }


# ADM computes distances in float16 where that does not overflow; here they are float32 or float64, so its precision and
# recall can differ in the last digits that it prints.
PROTOCOLS: dict[str, Settings] = {
    "adm": Settings(k=3, rim="<=", part=5000),
    "torch-fidelity": Settings(k=3, rim="<=", splits=10, shuffle=2020, subsets=100, subset=1000, seed=2020),
    "edm": Settings(k=3, rim="<="),
    "clean": Settings(k=3, rim="<="),
    "dgm-eval": Settings(k=5, rim="<"),
    "prdc": Settings(k=5, rim="<"),
    "kynkaanniemi": Settings(k=3, rim="<="),
    "embedded": Settings(k=3, rim="<=", distances="float64"),
}
