"""CLIP score: how well images fit the texts they were made from (Hessel et al. 2021, arXiv 2104.08718). Larger is better.

Three numbers go by this name; all start from the cosine of image and text embedding. `CONVENTIONS` tells them apart:

- "cosine": the mean cosine, in [-1, 1] (MLPerf)
- "percent": 100 times the mean cosine, cut at 0; in [0, 100] (torchmetrics)
- "clipscore": the mean of 2.5 times each cosine cut at 0; in [0, 2.5] (the paper)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.metrics.checks import check_features, check_same_dimensions

CONVENTIONS = ("cosine", "percent", "clipscore")


def cosines(images: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N,) cosine of each image embedding with that of its own text; both (N, d), any length but 0."""
    check_features(images, "CLIP score, images", at_least=1)
    check_features(texts, "CLIP score, texts", at_least=1)
    check_same_dimensions(images, texts, "CLIP score")
    if len(images) != len(texts):
        raise UserError(f"CLIP score: {len(images)} images and {len(texts)} texts: every image needs its own text")
    x, y = images.astype(np.float64), texts.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    if not lengths.all():
        raise UserError("CLIP score: an embedding is all 0 and has no direction: look at the extractor")
    cosine: NDArray[np.float64] = np.einsum("nd,nd->n", x, y) / lengths
    return cosine


def clip_score(images: NDArray[np.floating], texts: NDArray[np.floating], convention: str = "percent") -> float:
    """The mean over pairs, in one of `CONVENTIONS`; embeddings as in `cosines`."""
    if convention not in CONVENTIONS:
        raise UserError(f"CLIP score: unknown convention '{convention}'" + nearest(convention, CONVENTIONS))
    values = cosines(images, texts)
    if convention == "clipscore":
        return float(2.5 * np.maximum(values, 0).mean())
    return float(values.mean()) if convention == "cosine" else max(0.0, 100 * float(values.mean()))
