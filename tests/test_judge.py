"""Is the embedded feature network a valid judge? It must see every octave, and its distance must rise with every fault.

All with the released network, at N = 1,000 validation images against 1,000 others, the size of the default table.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pagoda_bench import resources
from pagoda_bench.artifacts.store import Store, default_root
from pagoda_bench.data.embedded import Embedded
from pagoda_bench.data.resize import box_down, upsample
from pagoda_bench.metrics.frechet import frechet_from_features
from pagoda_bench.nets.features import FeatureModel
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.tables.spec import load_scale, read

N = 1000
DATA = Embedded(EmbeddedData())
Images = NDArray[np.uint8]


@cache
def model() -> FeatureModel:
    spec = read(resources.folder("experiments") / "table1.yaml")
    recipe = load_scale(spec, "embedded", (), None).feature_net()
    artifact = Store(default_root(), released=resources.released_roots()).find(recipe)
    assert artifact is not None, "the embedded feature network is not among the released artifacts"
    return FeatureModel.load(artifact.path / "features.safetensors", 10, recipe.width, recipe.resolution)


@cache
def half(which: int, resolution: int = 64) -> Images:
    start = which * 2**31 - which * 2**31 % 10
    return DATA.images(np.arange(start, start + N), resolution, "val")


@cache
def real(resolution: int = 64) -> NDArray[np.float32]:
    return model().features(half(0, resolution))[0]


def distance(images: Images, resolution: int = 64) -> float:
    return frechet_from_features(real(resolution), model().features(images)[0])


def floor(resolution: int = 64) -> float:
    return distance(half(1, resolution), resolution)


@pytest.mark.parametrize("resolution", [8, 16, 32, 64])
def test_it_knows_the_classes_at_every_resolution(resolution: int) -> None:
    _, logits = model().features(half(1, resolution))
    assert (logits.argmax(1) == np.arange(N) % 10).mean() >= 0.98


@pytest.mark.parametrize("kernel", ["nearest", "bicubic"])
@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_it_sees_the_octave_that_upsampling_leaves_out(resolution: int, kernel: str) -> None:
    """At least ten times the noise floor between two native halves, at every octave up to 64 px."""
    enlarged = upsample(half(1, resolution // 2), resolution, kernel)  # type: ignore[arg-type]
    assert distance(enlarged, resolution) >= 10 * floor(resolution)


def rises(values: list[float]) -> None:
    assert all(a < b for a, b in pairwise(values)), values


def test_it_rises_with_noise() -> None:
    rng = np.random.default_rng(0)
    images = half(1).astype(np.float64)
    noise = rng.normal(size=images.shape)
    noisy = [(images + s * noise).clip(0, 255).round().astype(np.uint8) for s in (0, 8, 16, 32, 64)]
    rises([distance(x) for x in noisy])


def test_it_rises_with_blur() -> None:
    images = half(1).astype(np.float32)
    blurred = [gaussian_filter(images, (0, s, s, 0)).round().astype(np.uint8) for s in (0, 0.5, 0.7, 1, 2)]
    rises([distance(x) for x in blurred])


def test_it_rises_with_downsampling() -> None:
    images = half(1)
    lowered = [upsample(box_down(images, r), 64, "bicubic") for r in (64, 32, 16, 8)]
    rises([distance(x) for x in lowered])


def test_it_rises_with_dropped_classes() -> None:
    def without(dropped: int) -> Images:
        indices = 2**31 - 2**31 % 10 + np.arange(4 * N)
        kept = indices[indices % 10 < 10 - dropped][:N]
        return DATA.images(kept, 64, "val")

    rises([distance(without(d)) for d in (0, 1, 2, 5, 8)])


def test_it_rises_with_mode_collapse() -> None:
    images = half(1)
    rises([distance(np.resize(images[:modes], images.shape)) for modes in (1000, 500, 200, 50, 10)])


def test_two_halves_of_the_data_are_near() -> None:
    """The noise floor is small beside the spread of the features: below one percent of their total variance."""
    assert floor() < 0.01 * float(real().var(0).sum())
