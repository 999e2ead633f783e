"""Classifier-based rejection: of 1 + ratio times as many candidates of a class, those that a classifier is surest of.

The sibling repository (sony/ctm) draws 1 + ratio times as many images of each class, ratio 0.5, and keeps the 50 of highest
log-probability of the class under ADM's classifier at noise level 0.002. Whether a row of PaGoDA's tables uses it is not known.

Here candidates come in groups, so that a sample stays a function of its index. Sample i of C classes has class i mod C and is
number i // C of its class; numbers g K ... g K + K - 1 of a class are group g. The candidates of a group are the K samples that
these indices would be without rejection, and `ratio` K more whose indices, from `FAR` on, nothing else has. A group is always
made whole and in the same batches, so neither the batch nor the size of the set changes which images are kept; with 50,000
images of 1,000 classes a class is one group, as there. What is kept stays in the order of the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.extractors.user import imported
from pagoda_bench.nets.features import load_features
from pagoda_bench.recipes.imported import Rejection
from pagoda_bench.recipes.stages import FeatureNet
from pagoda_bench.sampling.generators import Sampler

FAR = 2**48  # indices of the additional candidates; scores and milestones stay far below
BATCH = 64  # candidates at once

Classify = Callable[[NDArray[np.uint8]], NDArray[Any]]  # images (N, R, R, 3) to logits or log-probabilities (N, classes)


class Rejected:
    """A generator whose samples are what rejection leaves of another's. Labels must be balanced: index mod classes."""

    def __init__(self, inner: Sampler, rejection: Rejection, classify: Classify) -> None:
        self.inner, self.rejection, self.classify = inner, rejection, classify
        self.resolution, self.classes, self.parameters = inner.resolution, inner.classes, inner.parameters
        self.device = getattr(inner, "device", "cpu")
        self._last: tuple[tuple[int, int], NDArray[np.uint8], int] | None = None

    @property
    def words(self) -> str:
        judge, keep = self.rejection.classifier, self.rejection.group
        who = judge if isinstance(judge, str) else f"{judge.kind}/{judge.key}"
        return f"the {keep} of every {self.rejection.candidates} of a class with the highest log p(class | image) of {who}"

    def sample(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[NDArray[np.uint8], int]:
        """Images uint8 (N, R, R, 3), and the evaluations that each *candidate* took; `candidates` says how many there were.
        Cheapest by whole groups (`groups`): the last one is kept, every other is made anew."""
        if not np.array_equal(labels, indices % self.classes):
            raise ValueError("rejection needs balanced labels, index mod classes")
        images = np.empty((len(indices), self.resolution, self.resolution, 3), np.uint8)
        nfe = 0
        for at, index in enumerate(indices.tolist()):
            number, label = divmod(index, self.classes)
            group, place = divmod(number, self.rejection.group)
            kept, nfe = self._group(label, group)
            images[at] = kept[place]
        return images, nfe

    def groups(self, first: int, n: int) -> Iterator[NDArray[np.int64]]:
        """The indices first ... first + n - 1, one batch for each group that they touch."""
        everything = np.arange(first, first + n, dtype=np.int64)
        numbers, labels = everything // self.classes, everything % self.classes
        group = numbers // self.rejection.group
        order = np.lexsort((everything, labels, group))
        cuts = np.flatnonzero(np.diff(group[order] * self.classes + labels[order])) + 1
        yield from np.split(everything[order], cuts)

    def candidates(self, first: int, n: int) -> int:
        """How many images are made for the samples first ... first + n - 1: whole groups, also where a set ends within one."""
        return self.rejection.candidates * sum(1 for _ in self.groups(first, n))

    def candidate_indices(self, label: int, group: int) -> NDArray[np.int64]:
        """(candidates,) of a group, those of its own samples first."""
        keep, more = self.rejection.group, self.rejection.candidates - self.rejection.group
        own = (group * keep + np.arange(keep, dtype=np.int64)) * self.classes + label
        extra = FAR + (group * more + np.arange(more, dtype=np.int64)) * self.classes + label
        return np.concatenate([own, extra])

    def _group(self, label: int, group: int) -> tuple[NDArray[np.uint8], int]:
        if self._last is None or self._last[0] != (label, group):
            indices = self.candidate_indices(label, group)
            parts = [self.inner.sample(part, np.full(len(part), label)) for part in _parts(indices)]
            images = np.concatenate([p for p, _ in parts])
            order = np.argsort(-self._log_probability(images, label), kind="stable")
            self._last = (label, group), images[np.sort(order[: self.rejection.group])], parts[0][1]
        return self._last[1:]

    def _log_probability(self, images: NDArray[np.uint8], label: int) -> NDArray[np.float64]:
        found = np.asarray(np.concatenate([self.classify(part) for part in _parts(images)]), np.float64)
        if found.shape != (len(images), self.classes) or not np.isfinite(found).all():
            raise UserError(
                f"the classifier of --reject gave {found.shape} or values that are not finite: it must give finite logits "
                f"{(len(images), self.classes)}"
            )
        chosen: NDArray[np.float64] = log_softmax(found, axis=1)[:, label]
        return chosen


def classifier(rejection: Rejection, ctx: Any) -> Classify:
    """The classifier that a config names: logits of a feature network of the store, or a function of the user's."""
    if isinstance(rejection.classifier, FeatureNet):
        network = load_features(rejection.classifier, ctx)
        return lambda images: network.features(images)[1]
    return imported(rejection.classifier, "--classifier", "uint8 (N, R, R, 3) images")


def _parts(values: NDArray[Any]) -> list[NDArray[Any]]:
    return [values[i : i + BATCH] for i in range(0, len(values), BATCH)]
