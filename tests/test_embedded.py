"""The embedded data set: what it promises about classes, octaves, access and speed. The judge-based promises are in
test_features.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax

from pagoda_bench.data.embedded import CLASSES, OCTAVES, PLAIN, Embedded, attributes, captions, class_detail, render
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.data import EmbeddedData

DATA = Embedded(EmbeddedData())


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=8), st.sampled_from(["train", "val"]))
def test_an_image_depends_on_split_and_index_alone(indices: list[int], split: str) -> None:
    together = DATA.images(np.array(indices), 64, split)  # type: ignore[arg-type]
    last = DATA.images(np.array(indices[-1:]), 64, split)  # type: ignore[arg-type]
    assert np.array_equal(together[-1:], last)


def test_splits_are_disjoint() -> None:
    images = np.concatenate([DATA.images(np.arange(3000), 64, split) for split in ("train", "val")])
    assert len({image.tobytes() for image in images}) == 6000


def test_labels_take_turns_and_name_shape_and_ground() -> None:
    indices = np.arange(40)
    assert DATA.labels(indices, "val").tolist() == list(range(10)) * 4
    for caption, label in zip(DATA.captions(indices, "val"), indices % 10, strict=True):
        shape, ground = CLASSES[label].split(" on ")
        assert f" {shape} with " in caption
        assert f" on {ground} " in caption


def test_captions_tell_what_is_drawn() -> None:
    a = attributes(np.arange(2000), "train")
    texts = captions(a)
    assert len(set(texts)) > 500
    bare = a._replace(detail=np.full_like(a.detail, PLAIN))
    assert all("plain surface" in text for text in captions(bare))
    red = a._replace(hue=np.zeros_like(a.hue))
    assert all(text.startswith("a red ") for text in captions(red))


@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_lower_resolutions_are_box_means_never_rendered_anew(resolution: int) -> None:
    indices = np.arange(50)
    high, low = DATA.images(indices, 64, "val"), DATA.images(indices, resolution, "val")
    f = 64 // resolution
    mean = high.reshape(50, resolution, f, resolution, f, 3).astype(np.float64).mean((2, 4))
    assert np.array_equal(low, np.rint(mean).astype(np.uint8))
    assert not np.array_equal(low, render(attributes(indices, "val"), resolution))


def test_all_resolutions_to_512_show_the_same_scene() -> None:
    a = attributes(np.arange(20), "val")
    low = render(a, 32).astype(np.float64)
    for resolution in (64, 128, 256, 512):
        f = resolution // 32
        mean = render(a, resolution).reshape(20, 32, f, 32, f, 3).astype(np.float64).mean((2, 4))
        assert np.abs(mean - low).mean() < 6  # of 255: what finer octaves leave behind at edges


@pytest.mark.parametrize("octave", range(len(OCTAVES)))
def test_every_octave_adds_detail_that_depends_on_the_class(octave: int) -> None:
    """Leaving the octave out changes the image; so does the detail of another class."""
    resolution = OCTAVES[octave]
    a = attributes(np.arange(20), "val")
    native = render(a, resolution).astype(float)
    bare = a.detail.copy()
    bare[:, octave] = PLAIN
    other = a.detail.copy()
    other[:, octave] = (other[:, octave] + 1) % 5
    without = render(a._replace(detail=bare), resolution).astype(float)
    swapped = render(a._replace(detail=other), resolution).astype(float)
    assert min(np.abs(native - without).max((1, 2, 3))) > 12
    assert min(np.abs(native - swapped).max((1, 2, 3))) > 12


def test_classes_differ_in_most_octaves() -> None:
    detail = class_detail(np.arange(10))
    assert detail.min() >= 0
    assert detail.max() <= 4
    same = (detail[:, None] == detail[None]).mean(2) - np.eye(10)
    assert same.max() <= 0.5


def test_a_small_classifier_reads_the_class_at_8_px() -> None:
    """One hidden layer of 96 units on 8x8 pixels, written out, reaches 95 % on unseen images."""
    rng = np.random.default_rng(0)

    def batch(start: int, n: int, split: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        indices = np.arange(start, start + n)
        images = DATA.images(indices, 8, split).reshape(n, -1) / 127.5 - 1  # type: ignore[arg-type]
        return images, indices % 10

    w1, w2 = rng.normal(0, 0.07, (192, 96)), rng.normal(0, 0.1, (96, 10))
    b1, b2 = np.zeros(96), np.zeros(10)
    weights = [w1, b1, w2, b2]
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    train_x, train_y = batch(0, 20000, "train")
    for step in range(1200):
        rows = rng.integers(0, len(train_x), 128)
        x, y = train_x[rows], train_y[rows]
        h = np.maximum(x @ w1 + b1, 0)
        g = (softmax(h @ w2 + b2, axis=1) - np.eye(10)[y]) / len(x)
        gh = (g @ w2.T) * (h > 0)
        rate = 4e-3 * (1 - step / 1200)
        for i, gradient in enumerate((x.T @ gh, gh.sum(0), h.T @ g, g.sum(0))):  # Adam
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            corrected = second[i] / (1 - 0.999 ** (step + 1))
            weights[i] -= rate * first[i] / (1 - 0.9 ** (step + 1)) / (np.sqrt(corrected) + 1e-8)
    x, y = batch(0, 4000, "val")
    accuracy = float(((np.maximum(x @ w1 + b1, 0) @ w2 + b2).argmax(1) == y).mean())
    assert accuracy >= 0.95


def test_bad_resolutions_say_what_is_right() -> None:
    with pytest.raises(UserError, match="raise `master`"):
        DATA.images(np.arange(2), 128, "val")
    with pytest.raises(UserError, match="power of two"):
        Embedded(EmbeddedData(master=48))
    with pytest.raises(UserError, match="power of two"):
        render(attributes(np.arange(1), "val"), 24)


@pytest.mark.benchmark(group="embedded")
def test_a_thousand_images_a_second(benchmark) -> None:  # type: ignore[no-untyped-def]
    """1,000 images at 64 px on one core: the renderer is single-threaded NumPy. The limit is a fifth of what was measured."""
    benchmark(lambda: DATA.images(np.arange(1000), 64, "train"))
    if benchmark.stats is not None:  # absent with --benchmark-disable
        assert benchmark.stats.stats.min < 1.0
