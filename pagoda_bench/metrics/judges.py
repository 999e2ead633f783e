"""The networks that score a row of a table: the one trained here, or a published one."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pagoda_bench.artifacts.checkpoint import write_json
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.digests import sha256
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.extractors import Extractor, load_extractor
from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.features import load_features
from pagoda_bench.recipes.features import Features, Pretrained
from pagoda_bench.recipes.stages import FeatureNet


class Judge(Protocol):
    @property
    def protocol(self) -> dict[str, str]:
        """The fields of a score's protocol that the network determines."""

    def features(self, images: NDArray[np.uint8], batch: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 (N, R, R, 3) to float32 features (N, d) and logits (N, classes), whose softmax is p(class | image)."""


class Own:
    """The feature network of a scale."""

    def __init__(self, recipe: FeatureNet, ctx: Any) -> None:
        self.model = load_features(recipe, ctx)
        self.protocol = {
            "extractor": f"feature network of {recipe.data.describe()}",
            "weights": sha256(ctx.input(recipe) / "features.safetensors"),
            "resize": f"pixel repetition to {recipe.resolution}",
        }

    def features(self, images: NDArray[np.uint8], batch: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.model.features(images, batch)


class Published:
    """An extractor of `metrics.extractors` with features "pool3" and "logits_unbiased": the class layer without its bias,
    which the Inception Score of ADM's evaluator and of torch-fidelity is taken from."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.protocol = {k: v for k, v in extractor.protocol.items() if k != "precision"}

    def features(self, images: NDArray[np.uint8], batch: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        found: dict[str, list[NDArray[np.float32]]] = {"pool3": [], "logits_unbiased": []}
        for start in range(0, len(images), batch):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + batch].transpose(0, 3, 1, 2)))
            for name, values in self.extractor(part, list(found)).items():
                found[name].append(values.cpu().numpy())
        return np.concatenate(found["pool3"]), np.concatenate(found["logits_unbiased"])


def load_judge(recipe: Features, ctx: Any) -> Judge:
    """The network of `recipe`, through a stage's context. `UserError` where its weights cannot be had or are others."""
    if isinstance(recipe, FeatureNet):
        return Own(recipe, ctx)
    if isinstance(recipe, Pretrained):
        return Published(_extractor(recipe))
    raise UserError(f"features of kind '{recipe.kind}' cannot judge images: name 'features' or 'pretrained'")


def run(recipe: Pretrained, ctx: StageContext) -> None:
    """Payload: `network.json`, the protocol of the network. The weights themselves are nobody's artifact: they are looked for,
    or downloaded, wherever the network is used, and this stage is where their absence shows first."""
    write_json(ctx.out / "network.json", _extractor(recipe).protocol)
    ctx.record(device=str(compute_device()))


def _extractor(recipe: Pretrained) -> Extractor:
    found = load_extractor(recipe.network, device=str(compute_device()))
    if found.weights != recipe.weights:
        raise UserError(
            f"the weights of {recipe.network} have the SHA-256 {found.weights[:12]}, the recipe names {recipe.weights[:12]}: "
            "put the published file into $PAGODA_BENCH_WEIGHTS, or name the other in the recipe"
        )
    return found
