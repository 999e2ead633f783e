"""Classification accuracy score (Ravuri and Vinyals 2019, arXiv 1905.10887): what a classifier that has seen generated images
alone gets right on real ones.

It falls when samples do not look like their class, and when a class is narrower than in reality. A fraction of the real
images, 0 to 1, larger is better. The paper trains a ResNet-50 on ImageNet; here a small convolutional network is trained on
squares of up to 64 px, in seconds to minutes on a processor, and its numbers stand beside others of this protocol only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pagoda_bench.errors import UserError
from pagoda_bench.nets.features import FeatureModel, to_network

Labelled = tuple[NDArray[np.uint8], NDArray[np.integer]]  # images (N, H, W, 3), labels (N,)
SIDES = (8, 16, 32, 64)
WIDTH, BATCH, LR, DECAY = 16, 64, 2e-3, 1e-3


class Accuracy(NamedTuple):
    value: float  # of all real images; classes count as often as they have images
    right: NDArray[np.bool_]  # (M,) each real image
    by_class: dict[int, float]


def describe(steps: int) -> str:
    """The classifier and its training, for a protocol."""
    return f"four-scale convolutional network of width {WIDTH}, {steps} steps of {BATCH}, AdamW {LR:g} to 0 by a cosine"


def classifier_accuracy(generated: Labelled, real: Labelled, steps: int = 500, seed: int = 0) -> Accuracy:
    """Trains on `generated`, tests on `real`. The same seed gives the same classifier, up to the rounding of the machine.

    Raises `UserError` for images of other sizes than `SIDES` or of two sizes, and for labels that do not fit.
    """
    side = _check(generated, real)
    images, labels = generated[0], torch.from_numpy(generated[1].astype(np.int64))
    classes = int(max(generated[1].max(), real[1].max())) + 1
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = FeatureModel(classes, WIDTH, max(16, side)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = np.empty(0, np.int64)
    batch = min(BATCH, len(images))
    net.train()
    for _ in range(steps):
        if len(order) < batch:  # what is left of an epoch is dropped
            order = rng.permutation(len(images))
        chosen, order = np.sort(order[:batch]), order[batch:]  # sorted: they may lie in a file
        _, logits = net(to_network(images[chosen]))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    _, logits_of_real = net.eval().features(real[0])
    right: NDArray[np.bool_] = logits_of_real.argmax(1) == real[1]
    by_class = {int(label): float(right[real[1] == label].mean()) for label in np.unique(real[1])}
    return Accuracy(float(right.mean()), right, by_class)


def _check(generated: Labelled, real: Labelled) -> int:
    """The side of all images."""
    for (images, labels), what in ((generated, "generated"), (real, "real")):
        if len(images) < 2:
            raise UserError(f"classifier accuracy score: {len(images)} {what} images are too few: give at least 2")
        if len(labels) != len(images) or labels.min() < 0:
            raise UserError(f"classifier accuracy score: {len(labels)} labels of {len(images)} {what} images: one each, from 0")
    shape, other = generated[0].shape[1:], real[0].shape[1:]
    if shape != other:
        raise UserError(
            f"classifier accuracy score: samples of {shape[0]} px, real images of {other[0]} px: bring them to one size"
        )
    if shape[0] != shape[1] or shape[0] not in SIDES:
        sizes = ", ".join(map(str, SIDES))
        raise UserError(f"classifier accuracy score: images of {shape[1]} x {shape[0]} px: it is for squares of {sizes} px")
    return int(shape[0])
