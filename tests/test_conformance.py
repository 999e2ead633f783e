"""What every method that trains must do, whoever wrote it: one test each over all registered methods that say how small they
can be tried (`toy` in `describe`). A method joins by that alone."""

from __future__ import annotations

import importlib
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.methods import MethodFacts, facts_of
from pagoda_bench.recipes.registry import registered
from pagoda_bench.recipes.stages import Generator
from pagoda_bench.sampling.generators import Sampler, load
from pagoda_bench.tables import methods
from pagoda_bench.training import loop
from tests.toy_scale import context, everything, make, models, toy_scale

N = 6
CLASSES = 10


def trainable() -> dict[str, MethodFacts]:
    facts = {name: facts_of(methods.find(name)) for name in methods.known()}
    return {name: found for name, found in facts.items() if found.toy is not None}


NAMES = sorted(trainable())


@dataclass
class Made:
    """A method at the toy scale, all of it made."""

    name: str
    generator: Generator
    store: Store
    models: list[Recipe]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("conformance") / "store")


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest, store: Store) -> Made:
    name: str = request.param
    generator = at_toy_scale(name)
    found = models(generator)
    make(store, found)
    return Made(name, generator, store, found)


def at_toy_scale(name: str) -> Generator:
    facts = facts_of(methods.find(name))
    values: Mapping[str, Any] = facts.toy or {}
    scale = toy_scale(**{name: values}) if values else toy_scale()
    return methods.find(name)(scale, scale.base if facts.at == "base" else scale.top)


def sampler(made: Made, folder: Path) -> Sampler:
    return load(made.generator, context(made.store, made.models, folder))


def labels(indices: np.ndarray) -> np.ndarray:
    return indices % CLASSES


def test_all_baselines_are_registered(repository: Path) -> None:
    """The installation knows the entry points of pyproject.toml: otherwise this file would test less than it seems."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    written = project["entry-points"]["pagoda_bench.methods"]
    installed = {entry.name: entry.value for entry in registered()}
    assert written.items() <= installed.items(), "install again: make install"
    assert {"pagoda", "teacher", "edm", "greedy"} <= set(NAMES)
    for folder in sorted((repository / "baselines").iterdir()):
        if (folder / "recipes.py").is_file():
            assert any(value.startswith(f"baselines.{folder.name}.") for value in written.values()), folder.name
            assert (folder / "README.md").is_file(), folder.name


# What needs weights, images or a program from outside: tests/test_baseline_places.py, test_baseline_pipelines.py,
# test_baseline_samples.py and test_import.py bring them.
OUTSIDE = {"command", "dit", "if", "lcm-released", "released", "samples", "sd"}
REST = sorted(set(methods.known()) - set(NAMES))


@pytest.mark.parametrize("name", REST)
def test_a_method_that_trains_nothing_samples_or_says_what_it_lacks(name: str, store: Store, tmp_path: Path) -> None:
    scale, facts = toy_scale(), facts_of(methods.find(name))
    if name in OUTSIDE:
        with pytest.raises(UserError) as lacking:
            methods.find(name)(scale, scale.top)
        assert "\n" not in str(lacking.value)
        assert len(str(lacking.value)) > 20
        return
    generator = methods.find(name)(scale, scale.base if facts.at == "base" else scale.top)
    found = models(generator)
    make(store, found)
    source, indices = load(generator, context(store, found, tmp_path)), np.arange(N)
    whole, nfe = source.sample(indices, labels(indices))
    assert (whole.dtype, whole.shape) == (np.uint8, (N, generator.resolution, generator.resolution, 3))
    assert (nfe == 0) == (name == "real")
    for batch in (indices[::-1], indices[2:3]):
        images, _ = source.sample(batch, labels(batch))
        assert np.abs(images.astype(int) - whole[batch].astype(int)).max() <= 1


def test_a_method_is_made_by_the_plan(made: Made) -> None:
    for recipe in made.models:
        artifact = made.store.find(recipe)
        assert artifact is not None
        assert artifact.provenance["training_flops"] > 0
        assert artifact.provenance["parameters"] > 0
        assert list(artifact.path.glob("*.safetensors"))
    expected = facts_of(methods.find(made.name)).at
    assert made.generator.resolution == (8 if expected == "base" else 16)


def test_training_resumes_to_the_same_bytes(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)  # after every step
    stages = [recipe for recipe in everything(made.models) if _own(made, recipe)]
    assert stages
    for recipe in stages:
        ctx = context(made.store, recipe.inputs(), tmp_path / recipe.key)
        runner = runner_of(recipe)
        seen: list[int] = []

        def stop(done: int, total: int, info: Mapping[str, Any], seen: list[int] = seen) -> None:
            seen.append(done)
            if len(seen) == 3:
                raise KeyboardInterrupt

        ctx.report = stop
        with pytest.raises(KeyboardInterrupt):
            runner(recipe, ctx)
        runner(recipe, ctx)
        assert seen[3] > 1, f"{recipe.title} began again instead of going on"
        whole = made.store.find(recipe)
        assert whole is not None
        files = sorted(path.relative_to(ctx.out) for path in ctx.out.rglob("*") if path.is_file())
        assert files
        for file in files:
            assert (ctx.out / file).read_bytes() == (whole.path / file).read_bytes(), f"{recipe.title}: {file}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_and_samples_what_a_cpu_does(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indices = np.arange(N)
    expected, nfe = sampler(made, tmp_path / "cpu").sample(indices, labels(indices))
    monkeypatch.setenv("PAGODA_BENCH_DEVICE", "cuda")
    for recipe in everything(made.models):
        if not _own(made, recipe):
            continue
        ctx = context(made.store, recipe.inputs(), tmp_path / recipe.key)
        runner_of(recipe)(recipe, ctx)
        assert ctx.facts["device"].startswith("cuda")
        whole = made.store.find(recipe)
        assert whole is not None
        for file in sorted(whole.path.glob("*.safetensors")):
            there = load_file(ctx.out / file.name)
            for key, value in load_file(file).items():
                torch.testing.assert_close(there[key].float(), value.float(), rtol=0.05, atol=0.01)
    images, counted = sampler(made, tmp_path / "gpu").sample(indices, labels(indices))
    assert counted == nfe
    assert np.abs(images.astype(int) - expected.astype(int)).mean() < 2


def runner_of(recipe: Recipe) -> Callable[[Recipe, StageContext], None]:
    module, _, function = recipe.runner.partition(":")
    found: Callable[[Recipe, StageContext], None] = getattr(importlib.import_module(module), function)
    return found


def _own(made: Made, recipe: Recipe) -> bool:
    """A trained stage of this method: PaGoDA's are tried with PaGoDA's methods."""
    if "train" not in type(recipe).model_fields or recipe.kind == "features":
        return False
    return made.name in ("pagoda", "teacher", "edm") or recipe.kind not in ("edm", "distill", "grow")


def test_an_image_is_the_same_in_any_batch(made: Made, tmp_path: Path) -> None:
    """One by one, backwards and in another run: the rounding of float32 may move a value of eight bits by one."""
    source, indices = sampler(made, tmp_path / "first"), np.arange(100, 100 + N)
    whole, nfe = source.sample(indices, labels(indices))
    assert (whole.dtype, whole.shape) == (np.uint8, (N, made.generator.resolution, made.generator.resolution, 3))
    assert source.resolution == made.generator.resolution
    assert source.classes == CLASSES
    assert len(np.unique(whole.reshape(N, -1), axis=0)) == N, "two indices gave one image"
    again = sampler(made, tmp_path / "again")
    for batch in (indices[::-1], indices[2:3], indices[1:5]):
        images, other = again.sample(batch, labels(batch))
        assert other == nfe
        difference = np.abs(images.astype(int) - whole[batch - 100].astype(int))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


def test_evaluations_are_counted(made: Made, tmp_path: Path) -> None:
    """Against a second count: every call of a module that holds all parameters of one of the sampler's networks."""
    source = sampler(made, tmp_path)
    nets = getattr(source, "nets", None) or (source.net,)  # type: ignore[attr-defined]
    images: list[int] = []

    def seen(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if any(module is net for net in nets):
            images.append(len(args[0]))

    handle = torch.nn.modules.module.register_module_forward_hook(seen)
    try:
        _, nfe = source.sample(np.arange(N), labels(np.arange(N)))
    finally:
        handle.remove()
    assert nfe >= 1
    assert sum(images) == nfe * N
    assert source.parameters >= sum(p.numel() for net in nets for p in net.parameters()) > 0


@pytest.mark.parametrize("damage", ["missing", "shape", "extra", "cut"])
def test_a_wrong_checkpoint_is_refused(made: Made, damage: str, tmp_path: Path) -> None:
    for recipe in made.models:
        ctx = context(made.store, made.models, tmp_path / recipe.key)
        folder = tmp_path / recipe.key / "damaged"
        shutil.copytree(ctx.inputs[recipe.key], folder)
        (file,) = sorted(folder.glob("*.safetensors"))[:1]
        _damage(file, damage)
        wrong = StageContext.for_test(ctx.out, ctx.work, {**ctx.inputs, recipe.key: folder})
        with pytest.raises(UserError) as refused:
            load(made.generator, wrong)
        assert str(file) in str(refused.value) or file.name in str(refused.value)
        assert "\n" not in str(refused.value)


def _damage(file: Path, damage: str) -> None:
    file.chmod(0o644)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
        return
    state = load_file(file)
    name = sorted(state)[len(state) // 2]
    if damage == "missing":
        del state[name]
    elif damage == "shape":
        state[name] = torch.cat([state[name], state[name]])
    else:
        state["another.weight"] = torch.zeros(3)
    save_file(state, file)
