"""The stages `reference` and `score`: features of real images, and a generator measured against them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pagoda_bench.artifacts.checkpoint import save_atomic, write_json
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.data import open_dataset
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.frechet import Moments, frechet_distance, frechet_from_features
from pagoda_bench.metrics.inception_score import inception_score
from pagoda_bench.metrics.judges import Judge, load_judge
from pagoda_bench.metrics.neighbours import neighbours
from pagoda_bench.metrics.protocol import Protocol
from pagoda_bench.recipes.scores import Reference, Score
from pagoda_bench.recipes.stages import FeatureNet, Generator, RealImages, Upsampled
from pagoda_bench.sampling.generators import ByClass, Sampler, load

BATCH = 64  # always the same: float32 networks round differently at another batch size
GRID_ROWS, GRID_COLUMNS = 5, 10
SPLITS = 10

Features = NDArray[np.float32]


def reference(recipe: Reference, ctx: StageContext) -> None:
    """Payload: `features.npy`, float32 (keep, d), and `moments.npz` with `n`, `mean` and `covariance` in float64.

    The images are the first n of the split when classes take turns, so that every class is there equally often; all of them
    where that is the whole split, with what one class has more than another at the end. The features kept are those of the
    first.
    """
    model = load_judge(recipe.features, ctx)
    data = open_dataset(recipe.data, ctx.data_path)
    by_class = ByClass(data, recipe.split)
    keep = min(recipe.keep or recipe.n, recipe.n)
    turns = recipe.n
    if recipe.n == data.size(recipe.split):  # classes may have unequal numbers, and then cannot take turns to the end
        everything = np.arange(recipe.n)
        turns = by_class.classes * int(np.bincount(data.labels(everything, recipe.split), minlength=by_class.classes).min())
    order = by_class.balanced(np.arange(turns), "near")
    if turns < recipe.n:
        order = np.concatenate([order, np.setdiff1d(everything, order)])
    found: list[Features] = []
    moments: Moments | None = None
    for start in range(0, recipe.n, BATCH):
        indices = order[start : start + BATCH]
        features = model.features(data.images(indices, recipe.resolution, recipe.split), BATCH)[0]
        if keep < recipe.n:
            moments = moments or Moments(features.shape[1])
            moments.add(features)
        found += [features[: keep - start]] if start < keep else []
        ctx.progress(start + len(indices), recipe.n)
    features = np.concatenate(found)
    if moments is None:
        moments = Moments(features.shape[1])
        moments.add(features)
    save_atomic(ctx.out / "features.npy", lambda path: np.save(path, features))
    arrays: dict[str, Any] = {"n": np.int64(moments.n), "mean": moments.mean, "covariance": moments.covariance}
    save_atomic(ctx.out / "moments.npz", lambda path: np.savez(path, **arrays))
    ctx.record(images=recipe.n, batch=BATCH)


def score(recipe: Score, ctx: StageContext) -> None:
    """Payload: `score.json` with `scores` and `protocol`, and `samples.png`, five uncurated samples of each of the first ten
    classes, one class a column, at native size without gaps. Both are the same bytes however often the run was interrupted;
    what is timed goes to the provenance (`images_per_second`, `sampling_seconds`)."""
    model = load_judge(recipe.reference.features, ctx)
    folder = ctx.input(recipe.reference)
    _check(recipe, ctx)
    sampler = load(recipe.generator, ctx)
    samples = _sample(recipe, sampler, model, ctx)

    real: Features = np.load(folder / "features.npy")
    near = neighbours(real, samples.features, recipe.neighbours)
    scores: dict[str, float] = {
        "fd": _frechet(folder, real, samples.features),
        "precision": near.precision,
        "recall": near.recall,
        "is": inception_score(samples.logits, min(SPLITS, recipe.n)).mean,
        **alignment(recipe, samples.logits, sampler.classes),
        "nfe": samples.nfe,
        "parameters": sampler.parameters,
    }
    write_json(ctx.out / "score.json", {"scores": scores, "protocol": protocol(recipe, sampler.classes, model).to_dict()})
    grid = Image.fromarray(sample_grid(samples, recipe.first, sampler))
    save_atomic(ctx.out / "samples.png", lambda path: grid.save(path, format="PNG", compress_level=9))
    ctx.record(
        images_per_second=samples.images_per_second,
        sampling_seconds=float(samples.seconds.sum()),
        nfe=samples.nfe,
        parameters=sampler.parameters,
        batch=BATCH,
    )


def alignment(recipe: Score, logits: Features, classes: int) -> dict[str, float]:
    """The share of samples that the judge takes for the class that was asked for, as "alignment"; nothing where the judge was
    trained on other classes. Of captions it says whether the thing is there, not its colour or place."""
    if not isinstance(recipe.reference.features, FeatureNet) or logits.shape[1] != classes:
        return {}
    asked = np.arange(recipe.first, recipe.first + recipe.n) % classes
    return {"alignment": float((logits.argmax(1) == asked).mean())}


def protocol(recipe: Score, classes: int, judge: Judge) -> Protocol:
    """The protocol of the scores of `recipe` by a network."""
    return Protocol(
        **judge.protocol,
        guidance=recipe.generator.guided_by,
        resolution=recipe.generator.resolution,
        reference=recipe.reference.key,
        reference_n=recipe.reference.n,
        n=recipe.n,
        labels=f"balanced over {classes} classes",
        rounding="to nearest",
        frechet="eigenvalues, n - 1",
        k=recipe.neighbours,
        rim="<=",
        splits=min(SPLITS, recipe.n),
    )


@dataclass
class Samples:
    """What is kept of the samples, in the order of their indices."""

    features: Features  # (n, d)
    logits: Features  # (n, classes)
    evaluations: NDArray[np.int64]  # (n,)
    seconds: NDArray[np.float64]  # (n,) of sampling alone, the batch's divided by its size
    shown: NDArray[np.uint8]  # (m, R, R, 3): the images of the grid
    cells: NDArray[np.int64]  # (m,) their cells, row by row

    def write(self, path: Path) -> None:
        fields: dict[str, Any] = vars(self)
        np.savez(path, **fields)

    @property
    def nfe(self) -> int | float:
        """Network evaluations an image; the mean where a generator does not spend the same on each."""
        mean = float(self.evaluations.mean())
        return int(mean) if mean.is_integer() else mean

    @property
    def images_per_second(self) -> float:
        """The median over the images, so that neither warming up nor a busy moment of the machine counts."""
        return 1 / max(float(np.median(self.seconds)), 1e-9)


def sample_grid(samples: Samples, first: int, sampler: Sampler) -> NDArray[np.uint8]:
    """uint8 (5 R, columns * R, 3), row by row the earliest samples of each class; missing ones stay black."""
    size, columns = sampler.resolution, min(GRID_COLUMNS, sampler.classes)
    grid = np.zeros((GRID_ROWS, size, columns, size, 3), np.uint8)
    for cell, image in zip(samples.cells.tolist(), samples.shown, strict=True):
        grid[cell // columns, :, cell % columns] = image
    return grid.reshape(GRID_ROWS * size, columns * size, 3)


def shard(recipe: Score, ctx: StageContext, index: int, count: int) -> bool:
    """Share `index` of `count` of the sampling: every `count`-th batch, kept in the work folder, where `score` takes it up.
    Returns whether all batches are there."""
    _check(recipe, ctx)
    starts = range(0, recipe.n, BATCH)
    mine = [start for start in starts[index::count] if not _part(ctx.work, start).exists()]
    if mine:
        model, sampler = load_judge(recipe.reference.features, ctx), load(recipe.generator, ctx)
    for done, start in enumerate(mine, 1):
        _keep(ctx.work, start, _batch(recipe, sampler, model, _indices(recipe, start)))
        ctx.progress(done, len(mine))
    return all(_part(ctx.work, start).exists() for start in starts)


def _sample(recipe: Score, sampler: Sampler, model: Judge, ctx: StageContext) -> Samples:
    """Samples, keeps features, batch by batch; those in `ctx.work`, of an earlier attempt or of another job, are taken from
    there. Batches never depend on where a run stopped or who made them."""
    parts: list[Samples] = []
    for start in range(0, recipe.n, BATCH):
        indices = _indices(recipe, start)
        if not (path := _part(ctx.work, start)).exists():
            _keep(ctx.work, start, _batch(recipe, sampler, model, indices))
        with np.load(path) as arrays:
            parts.append(Samples(**{name: arrays[name] for name in arrays.files}))
        ctx.progress(start + len(indices), recipe.n)
    return _join(parts)


def _indices(recipe: Score, start: int) -> NDArray[np.int64]:
    return np.arange(recipe.first + start, recipe.first + min(start + BATCH, recipe.n), dtype=np.int64)


def _batch(recipe: Score, sampler: Sampler, model: Judge, indices: NDArray[np.int64]) -> Samples:
    labels = indices % sampler.classes
    start = time.perf_counter()
    images, nfe = sampler.sample(indices, labels)
    seconds = time.perf_counter() - start
    expected = (len(indices), recipe.generator.resolution, recipe.generator.resolution, 3)
    if images.dtype != np.uint8 or images.shape != expected:
        raise UserError(
            f"generator '{recipe.generator.kind}' gave {images.dtype} {images.shape}, not uint8 {expected}: mend its loader"
        )
    features, logits = model.features(images, BATCH)
    # Cells of the grid: the r-th sample of class c stands in row r, column c.
    columns = min(GRID_COLUMNS, sampler.classes)
    before = (recipe.first - labels + sampler.classes - 1) // sampler.classes  # of the label, below the first index
    rows = (indices - labels) // sampler.classes - before
    on_grid = (rows < GRID_ROWS) & (labels < columns)
    return Samples(
        features=features,
        logits=logits,
        evaluations=np.full(len(indices), nfe, np.int64),
        seconds=np.full(len(indices), seconds / len(indices)),
        shown=images[on_grid],
        cells=(rows * columns + labels)[on_grid],
    )


def _part(work: Path, start: int) -> Path:
    return work / f"batch-{start:08d}.npz"


def _keep(work: Path, start: int, batch: Samples) -> None:
    save_atomic(_part(work, start), batch.write)


def _join(parts: list[Samples]) -> Samples:
    return Samples(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _frechet(folder: Path, real: Features, generated: Features) -> float:
    with np.load(folder / "moments.npz") as moments:
        # The short way asks for all features of the reference. Where few were kept (`Reference.keep`), the moments are of all.
        if max(int(moments["n"]), len(generated)) <= real.shape[1]:
            return frechet_from_features(real, generated)
        found = Moments(generated.shape[1])
        found.add(generated)
        return frechet_distance(moments["mean"], moments["covariance"], found.mean, found.covariance)


def _check(recipe: Score, ctx: StageContext) -> None:
    """What would only come out after the sampling: too few images, or real ones that would be held against themselves."""
    if min(recipe.n, recipe.reference.n) <= max(1, recipe.neighbours):
        raise UserError(
            f"{recipe.title}: N={recipe.n} samples and {recipe.reference.n} reference images must both be more than "
            f"neighbours={recipe.neighbours} and than 1: raise n"
        )
    generator: Generator = recipe.generator
    while isinstance(generator, Upsampled):
        generator = generator.of
    if isinstance(generator, RealImages) and (generator.data, generator.split) == (
        recipe.reference.data,
        recipe.reference.split,
    ):
        data = open_dataset(generator.data, ctx.data_path)
        ByClass(data, generator.split).check_disjoint(recipe.reference.n, recipe.first + recipe.n)
