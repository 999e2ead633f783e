"""Is the embedded feature network a valid judge? It must see every octave, and its distance must rise with every fault.

All with the released network, at N = 1,000 validation images against 1,000 others, the size of the default table. Run as a
script (`python -m tests.test_judge`) it prints what it measures.
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


def noisy(sigma: float) -> Images:
    images = half(1).astype(np.float64)
    return (images + sigma * np.random.default_rng(0).normal(size=images.shape)).clip(0, 255).round().astype(np.uint8)


def blurred(sigma: float) -> Images:
    return gaussian_filter(half(1).astype(np.float32), (0, sigma, sigma, 0)).round().astype(np.uint8)


def lowered(resolution: float) -> Images:
    return upsample(box_down(half(1), int(resolution)), 64, "bicubic")


def without(dropped: float) -> Images:
    indices = 2**31 - 2**31 % 10 + np.arange(6 * N)
    return DATA.images(indices[indices % 10 < 10 - dropped][:N], 64, "val")


def collapsed(modes: float) -> Images:
    return np.resize(half(1)[: int(modes)], half(1).shape)


FAULTS = {
    "noise, standard deviation of 255": (noisy, (0, 8, 16, 32, 64)),
    "blur, pixels": (blurred, (0, 0.5, 0.7, 1, 2)),
    "downsampled to, pixels": (lowered, (64, 32, 16, 8)),
    "classes dropped": (without, (0, 1, 2, 5, 8)),
    "collapsed to, images": (collapsed, (1000, 500, 200, 50, 10)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_rises_with_every_fault(fault: str) -> None:
    harm, strengths = FAULTS[fault]
    values = [distance(harm(strength)) for strength in strengths]
    assert all(a < b for a, b in pairwise(values)), values


def test_two_halves_of_the_data_are_near() -> None:
    """The noise floor is small beside the spread of the features: below one percent of their total variance."""
    assert floor() < 0.01 * float(real().var(0).sum())


if __name__ == "__main__":
    for size in (8, 16, 32, 64):
        line = f"{size} px: floor {floor(size):.2f}"
        for kernel in ("nearest", "bicubic") if size > 8 else ():
            gap = distance(upsample(half(1, size // 2), size, kernel), size)  # type: ignore[arg-type]
            line += f"; {kernel} from {size // 2} px {gap:.1f}, {gap / floor(size):.0f} floors"
        print(line)
    for name, (harm, strengths) in FAULTS.items():
        print(f"{name}: " + ", ".join(f"{s:g}: {distance(harm(s)):.2f}" for s in strengths))
