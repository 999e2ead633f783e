"""Training of the feature network (stage `features`): classes, attributes, and what is missing from an image.

A classifier alone is blind to detail that the class does not need. So the network must also say which octaves of detail an
image holds - the images come at all resolutions - and, on the embedded data, of which kind the detail of each octave is,
the colours and the place. In half of the images the detail is drawn at random, so that the shape does not betray it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pagoda_bench.data import open_dataset
from pagoda_bench.data.embedded import OCTAVES, PLAIN, VARIANTS, Attributes, attributes, render
from pagoda_bench.data.resize import box_down
from pagoda_bench.nets.features import FEATURES, FeatureModel, fold, save_half, to_network
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.stages import FeatureNet
from pagoda_bench.training.loop import Task, batch_indices, train
from pagoda_bench.training.options import refuse
from pagoda_bench.training.updates import apply

NOT_HERE = ("accumulate", "clip", "emas", "evaluate", "grids", "optimizer")
"""Of `TrainConfig`: what this training does not have. Its optimiser is always AdamW, and nothing is averaged."""
SIZES = (8, 16, 32, 64)
"""The resolutions among which the network must tell, as far as the data have them."""


@dataclass
class Batch:
    x: Tensor  # (N, 3, R, R)
    label: Tensor  # (N,)
    size: Tensor  # (N,) index into SIZES
    detail: Tensor | None = None  # (N, octaves) variant + 1, 0 = none
    values: Tensor | None = None  # (N, 12) colours, place, size, contrast


class Heads(nn.Module):
    """What is read off the features in training only; thrown away afterwards."""

    def __init__(self, octaves: int, values: int) -> None:
        super().__init__()
        self.size = nn.Linear(FEATURES, len(SIZES))
        self.detail = nn.Linear(FEATURES, max(1, octaves) * (VARIANTS + 1))
        self.values = nn.Linear(FEATURES, max(1, values))


def run(recipe: FeatureNet, ctx: Any) -> None:
    """Payload: `features.safetensors`. Records its accuracy on validation images at every resolution. `UserError` where `train`
    asks for something of `NOT_HERE`."""
    refuse(recipe.train, recipe.title, NOT_HERE)
    torch.manual_seed(recipe.seed)
    data = open_dataset(recipe.data, ctx.data_path)
    embedded = isinstance(recipe.data, EmbeddedData)
    octaves = [o for o in OCTAVES if o <= recipe.resolution] if embedded else []
    net = FeatureModel(len(data.classes), recipe.width, recipe.resolution).to(memory_format=torch.channels_last)
    heads = Heads(len(octaves), 12)
    parameters = [*net.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.train.lr, betas=recipe.train.betas, weight_decay=1e-3)

    def step(index: int, rng: np.random.Generator) -> dict[str, float]:
        numbers = batch_indices(data.size("train"), recipe.train.batch, index, recipe.seed)
        batch = _embedded_batch(numbers, index, rng, recipe) if embedded else _image_batch(data, numbers, index, rng, recipe)
        net.train()
        features, logits = net(batch.x)
        h = F.relu(features)
        losses = {"class": F.cross_entropy(logits, batch.label, label_smoothing=0.05)}
        losses["size"] = F.cross_entropy(heads.size(h), batch.size)
        if batch.detail is not None and batch.values is not None:
            found = heads.detail(h).view(len(h), len(octaves), VARIANTS + 1)
            losses["detail"] = F.cross_entropy(found.flatten(0, 1), batch.detail.flatten())
            losses["values"] = F.mse_loss(heads.values(h), batch.values)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        values = {k: float(v.detach()) for k, v in losses.items()}
        norm = apply(optimizer, [*values.values()])
        return values if math.isfinite(norm) else {**values, "norm": norm}

    train(Task(step, {"net": net, "heads": heads}, {"adam": optimizer}), recipe.train, recipe.seed, ctx)
    path = ctx.out / "features.safetensors"
    save_half(fold(net), path)
    net = FeatureModel.load(path, len(data.classes), recipe.width, recipe.resolution)
    indices = np.arange(min(2000, data.size("val") or 2000))
    labels = data.labels(indices, "val")
    accuracy = {}
    for size in SIZES:
        if size <= recipe.resolution:
            _, logits = net.features(data.images(indices, size, "val"))
            accuracy[str(size)] = float((logits.argmax(1) == labels).mean())
    ctx.record(accuracy=accuracy, parameters=sum(p.numel() for p in net.parameters()), device="cpu")


def _size_of_step(index: int, largest: int) -> int:
    """Every second step shows full resolution; the others go through the smaller ones."""
    sizes = [s for s in SIZES if s <= largest]
    return largest if index % 2 == 0 else sizes[(index // 2) % len(sizes)]


def _embedded_batch(numbers: NDArray[np.int64], index: int, rng: np.random.Generator, recipe: FeatureNet) -> Batch:
    size = _size_of_step(index, recipe.resolution)
    a = attributes(numbers, "train")
    octaves = [i for i, o in enumerate(OCTAVES) if o <= recipe.resolution]
    detail = a.detail.copy()
    swapped = rng.random(len(numbers)) < 0.5
    drawn = rng.integers(PLAIN, VARIANTS, size=detail.shape)
    detail[swapped] = drawn[swapped]
    a = a._replace(detail=detail)
    images = render(a, recipe.resolution)
    shown = detail[:, octaves] + 1
    if size < recipe.resolution:
        images = box_down(images, size)
        shown[:, [i for i in range(len(octaves)) if OCTAVES[i] > size]] = 0
    size_labels = np.full(len(numbers), SIZES.index(size))
    return Batch(
        x=to_network(images),
        label=torch.from_numpy(a.label),
        size=torch.from_numpy(size_labels),
        detail=torch.from_numpy(shown),
        values=torch.from_numpy(_values(a)),
    )


def _values(a: Attributes) -> NDArray[np.float32]:
    """Attributes as numbers of about unit variance; hues as points on a circle."""
    turn = 2 * np.pi
    columns = [
        a.centre_x * 14,
        a.centre_y * 14,
        (a.size - 1) * 11,
        np.cos(turn * a.hue) * 1.4,
        np.sin(turn * a.hue) * 1.4,
        np.cos(turn * a.ground_hue) * 1.4,
        np.sin(turn * a.ground_hue) * 1.4,
        (a.saturation - 0.65) * 8,
        (a.light - 0.775) * 20,
        (a.dark - 0.225) * 20,
        a.slope * 11,
        (a.contrast - 0.75) * 7,
    ]
    return np.stack(columns, 1).astype(np.float32)


def _image_batch(data: Any, numbers: NDArray[np.int64], index: int, rng: np.random.Generator, recipe: FeatureNet) -> Batch:
    """Photographs: mirrored at random, shifted by up to an eighth, at the resolution of the step."""
    size = _size_of_step(index, recipe.resolution)
    images = data.images(numbers, recipe.resolution, "train")
    mirrored = rng.random(len(images)) < 0.5
    images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    pad = recipe.resolution // 8
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    # Shifts are multiples of the enlarged pixel, so that a small image still is one.
    unit = max(1, recipe.resolution // size)
    shift = rng.integers(0, 2 * pad // unit + 1, size=2) * unit if unit <= 2 * pad else np.array([pad, pad])
    images = padded[:, shift[0] : shift[0] + recipe.resolution, shift[1] : shift[1] + recipe.resolution]
    if size < recipe.resolution:
        images = box_down(images, size)
    labels = torch.from_numpy(data.labels(numbers, "train"))
    return Batch(to_network(images), labels, torch.full((len(images),), SIZES.index(size)))
