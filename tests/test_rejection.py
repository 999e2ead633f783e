"""Classifier-based rejection: which candidates are kept is computed by hand, and depends on the index of a sample alone."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.errors import UserError
from pagoda_bench.nets.features import FeatureModel, fold, save_half, to_network
from pagoda_bench.pagoda.rejection import FAR, Rejected, classifier
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.imported import Rejection, SampleProtocol, Samples
from pagoda_bench.recipes.stages import FeatureNet, TrainConfig

CLASSES = 3
FOUR_OF_SIX = Rejection(ratio=0.5, classifier="nobody:asks", group=4)


def value(index: int, label: int) -> int:
    """The one byte of a candidate's image: anything that differs from index to index."""
    return (index * 2654435761 + 97 * label) % 2**32 >> 24


class Bytes:
    resolution, classes, parameters = 2, CLASSES, 7

    def __init__(self) -> None:
        self.asked: list[int] = []

    def sample(self, indices: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
        self.asked += indices.tolist()
        bytes_ = [value(i, c) for i, c in zip(indices.tolist(), labels.tolist(), strict=True)]
        return np.array(bytes_, np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2).repeat(3, 3), 5


def logits(images: np.ndarray) -> np.ndarray:
    """log p of class 1 rises with the byte, that of class 0 falls, that of class 2 is highest in the middle."""
    x = images[:, 0, 0, 0].astype(float) / 128 - 1
    return np.stack([-x, x, 0.5 - x**2], 1)


def kept_by_hand(label: int, group: int) -> list[int]:
    """The bytes of a group of four: the own candidates and two from far, the four likeliest in their order."""
    indices = [CLASSES * (4 * group + j) + label for j in range(4)] + [
        FAR + CLASSES * (2 * group + j) + label for j in range(2)
    ]
    found = [value(i, label) for i in indices]
    scores = []
    for byte in found:
        x = byte / 128 - 1
        terms = np.exp([-x, x, 0.5 - x**2])
        scores.append(terms[label] / terms.sum())
    best = sorted(range(6), key=lambda j: -scores[j])[:4]
    return [found[j] for j in sorted(best)]


def source() -> Rejected:
    return Rejected(Bytes(), FOUR_OF_SIX, logits)


def test_the_kept_are_the_likeliest_of_each_group_by_hand() -> None:
    n = CLASSES * 4 * 3
    indices = np.arange(n)
    images, nfe = source().sample(indices, indices % CLASSES)
    assert nfe == 5
    changed = 0
    for label in range(CLASSES):
        for group in range(3):
            mine = images[label::CLASSES][4 * group : 4 * group + 4, 0, 0, 0].tolist()
            assert mine == kept_by_hand(label, group)
            changed += mine != [value(CLASSES * (4 * group + j) + label, label) for j in range(4)]
    assert changed >= 5  # some of the nine groups really lost a candidate


def test_a_sample_is_the_same_in_any_part_of_any_set() -> None:
    indices = np.arange(40)
    whole = source().sample(indices, indices % CLASSES)[0]
    some = np.array([37, 3, 12, 0, 25])
    assert np.array_equal(source().sample(some, some % CLASSES)[0], whole[some])


@pytest.mark.parametrize(("first", "n"), [(0, 36), (5, 20), (7, 1)])
def test_groups_hold_every_index_once_and_are_made_once(first: int, n: int) -> None:
    rejected = source()
    groups = list(rejected.groups(first, n))
    assert sorted(np.concatenate(groups).tolist()) == list(range(first, first + n))
    for indices in groups:
        assert len(set(zip((indices % CLASSES).tolist(), (indices // CLASSES // 4).tolist(), strict=True))) == 1
        rejected.sample(indices, indices % CLASSES)
    inner: Any = rejected.inner
    assert len(inner.asked) == len(set(inner.asked)) == rejected.candidates(first, n) == 6 * len(groups)


def test_the_published_size_is_one_group_a_class() -> None:
    inner: Any = types.SimpleNamespace(resolution=64, classes=1000, parameters=0)
    rejected = Rejected(inner, Rejection(ratio=0.5, classifier="a:b"), logits)
    groups = list(rejected.groups(0, 50_000))
    assert [len(groups), *{len(g) for g in groups}] == [1000, 50]
    assert rejected.candidates(0, 50_000) == 75_000


def test_a_network_of_the_store_judges_by_its_class_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = FeatureNet(data=EmbeddedData(master=16), train=TrainConfig(steps=1), width=8, resolution=16)
    network = FeatureModel(10, 8, 16).eval()
    save_half(fold(network), tmp_path / "features.safetensors")
    judge = classifier(Rejection(ratio=0.5, classifier=recipe), StageContext(tmp_path, tmp_path, {recipe.key: tmp_path}))
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = network(to_network(images))[1].numpy()
    assert np.abs(judge(images) - expected).max() < 2e-2  # the file holds 16-bit floats
    samples = Samples(generator=_nothing(), n=1, protocol=SampleProtocol(reject=Rejection(ratio=0.5, classifier=recipe)))
    assert recipe in samples.inputs()
    assert Samples.load(samples.to_dict()) == samples


def _nothing() -> Any:
    from pagoda_bench.recipes.stages import RealImages

    return RealImages(data=EmbeddedData(master=16), at=16)


def test_what_a_classifier_must_give() -> None:
    indices = np.arange(2)
    for wrong in (lambda x: np.zeros((len(x), 2)), lambda x: np.full((len(x), CLASSES), np.nan)):
        with pytest.raises(UserError, match="finite"):
            Rejected(Bytes(), FOUR_OF_SIX, wrong).sample(indices, indices)
