"""PaGoDA's stages, end to end at a tiny size: what they keep, what they freeze, what they count, and that a killed run ends in
the same bytes as one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.store import Store
from pagoda_bench.data.shards import Sharded
from pagoda_bench.diffusion.edm import SIGMA_MAX, one_step
from pagoda_bench.nets import device
from pagoda_bench.nets.features import load_half
from pagoda_bench.nets.growth import trainable_keys
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda.generate import load
from pagoda_bench.pagoda.pairs import Pairing
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.stages import Heun, OneStep
from pagoda_bench.sampling.generators import load as load_sampler
from tests import tiny_chain as tiny

SCRIPT = Path(tiny.__file__)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("chain")
    tiny.make(root)
    return Store(root)


@pytest.fixture(scope="module")
def ctx(store: Store, tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    folder = tmp_path_factory.mktemp("context")
    paths = {a.recipe.key: a.path for a in store.artifacts()}
    return StageContext.for_test(folder / "out", folder / "work", paths)


def provenance(store: Store, recipe: Recipe) -> dict[str, object]:
    artifact = store.find(recipe)
    assert artifact is not None
    return artifact.provenance


def weights(store: Store, recipe: Recipe) -> dict[str, torch.Tensor]:
    artifact = store.find(recipe)
    assert artifact is not None
    return load_half(artifact.path / "model.safetensors")


def test_growth_freezes_the_base_to_the_bit(store: Store) -> None:
    base, grown = weights(store, tiny.BASE), weights(store, tiny.GROWN)
    trained = set(trainable_keys(UNet(tiny.GROWN.net), "new"))
    frozen = [key for key in base if key not in trained]
    assert len(frozen) > 50
    assert all(torch.equal(base[key], grown[key]) for key in frozen)
    assert any(not torch.equal(base[key], grown[key]) for key in base if key in trained)


def test_the_student_starts_from_the_teacher_and_moves(store: Store) -> None:
    teacher, student = weights(store, tiny.TEACHER), weights(store, tiny.BASE)
    assert teacher.keys() == student.keys()
    moved = sum(float((teacher[k] - student[k]).abs().max()) > 0 for k in teacher)
    assert moved > len(teacher) // 2
    fresh = UNet(tiny.NET).state_dict()
    near = sum(float((teacher[k] - student[k]).square().sum()) for k in teacher)
    far = sum(float((fresh[k] - student[k]).square().sum()) for k in teacher)
    assert near < far / 4


def test_latents_are_the_teachers_own_noise(store: Store) -> None:
    """At this size the teacher is poor, but the walk up must end at the scale of its top noise level."""
    artifact = store.find(tiny.PAIRS)
    assert artifact is not None
    z = Sharded(artifact.path / "latents")[np.arange(300)]
    assert z.shape == (300, 3, 8, 8)
    assert z.dtype == np.float16
    assert 0.1 * SIGMA_MAX < z.astype(np.float32).std() < 3 * SIGMA_MAX


def test_half_precision_moves_latents_a_little(ctx: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "fast_bfloat16", lambda: True)  # slow or not, this processor can
    net, rows = load(tiny.PAIRS.teacher, ctx), np.arange(20)
    plain, half = (Pairing(tiny.PAIRS.model_copy(update={"precision": p}), ctx)._batch(net, rows) for p in ("fp32", "bf16"))
    off = (plain - half).float().square().mean().sqrt() / plain.float().std()
    assert plain.dtype == half.dtype == torch.float16
    assert 0 < off < 0.02


def test_the_direct_row_costs_what_the_chain_costs(store: Store) -> None:
    """Within one step of it: equal work is counted, not typed in."""
    chain = [tiny.TEACHER, tiny.PAIRS, tiny.BASE, tiny.GROWN]
    work = sum(float(provenance(store, r)["training_flops"]) for r in chain)  # type: ignore[arg-type]
    direct = provenance(store, tiny.DIRECT)
    step = float(direct["training_flops"]) / float(direct["steps"])  # type: ignore[arg-type]
    assert abs(float(direct["training_flops"]) - work) <= step  # type: ignore[arg-type]
    assert direct["matched_flops"] == pytest.approx(work)


def test_evaluations_are_counted_on_the_network(ctx: StageContext) -> None:
    indices = np.arange(6)
    assert load_sampler(OneStep(of=tiny.GROWN), ctx).sample(indices, indices % 10)[1] == 1
    assert load_sampler(Heun(of=tiny.DIRECT, points=4), ctx).sample(indices, indices % 10)[1] == 7


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_sample_is_the_same_at_any_batch_size(ctx: StageContext, batch: int) -> None:
    """The noise belongs to the index. Rounding may move a value by one of 255, where a batch takes another kernel."""
    sampler = load_sampler(OneStep(of=tiny.GROWN), ctx)
    indices = np.arange(16)
    whole, _ = sampler.sample(indices, indices % 10)
    parts = [sampler.sample(indices[i : i + batch], indices[i : i + batch] % 10)[0] for i in range(0, 16, batch)]
    difference = np.abs(whole.astype(int) - np.concatenate(parts).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_the_same_latent_gives_the_same_base_features(ctx: StageContext) -> None:
    """Growth keeps the latent: below the new level the grown network computes what the base computes."""
    base, grown = load(tiny.BASE, ctx), load(tiny.GROWN, ctx)
    z, labels = torch.randn(2, 3, 8, 8) * SIGMA_MAX, torch.tensor([1, 2])
    with torch.inference_mode():
        below = base.trunk(z / SIGMA_MAX, SIGMA_MAX, labels, stop=base.base_blocks).h
        above = grown.trunk(z / SIGMA_MAX, SIGMA_MAX, labels, stop=grown.base_blocks).h
        assert torch.equal(below, above)
        assert one_step(grown, z, labels).shape == (2, 3, 16, 16)


def test_kill_at_random_moments_ends_in_the_same_bytes(store: Store, tmp_path: Path) -> None:
    """kill -9, again and again, each time somewhere else; then the run that is left alone."""
    expected = {a.name: a.digest for a in store.artifacts()}
    environment = {**os.environ, "PAGODA_BENCH_CHECKPOINT_SECONDS": "0", "PYTHONPATH": str(SCRIPT.parent.parent)}
    command = [sys.executable, "-m", "tests.tiny_chain", str(tmp_path)]
    rng = random.Random(time.time_ns())
    killed = 0
    for _ in range(12):
        process = subprocess.Popen(command, env=environment, cwd=SCRIPT.parent.parent, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=rng.uniform(2.5, 7))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    subprocess.run(command, env=environment, cwd=SCRIPT.parent.parent, check=True, capture_output=True)
    assert killed > 0
    assert {a.name: a.digest for a in Store(tmp_path).artifacts()} == expected
