"""The one training step under its options: official networks, separate updates, L_dstl, part of the pairs; and resumes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.data import open_dataset
from pagoda_bench.data.shards import Sharded, Writer
from pagoda_bench.diffusion import solvers
from pagoda_bench.diffusion.edm import SIGMA_MAX, denoise, karras_grid
from pagoda_bench.errors import UserError
from pagoda_bench.nets import device
from pagoda_bench.nets.features import FeatureModel, fold, load_half, save_half
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda import adversarial, distill, grow, pairs, teacher, teacher_pairs
from pagoda_bench.pagoda.generate import one_step as load_one_step
from pagoda_bench.pagoda.sources import DataPairs
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.losses import LossConfig, ProjectedConfig
from pagoda_bench.recipes.stages import EDM, Distill, FeatureNet, Grow, OneStep, Pairs, TeacherPairs, TrainConfig, UNetConfig
from pagoda_bench.training import loop
from tests.test_projection import NEEDS_TIMM

DATA = EmbeddedData(master=16)
SHORT = TrainConfig(steps=3, batch=4, warmup=1)
NET = UNetConfig(resolution=8, channels=16, encoder=(1, 2), attention=(4,), grown_blocks=1)
TEACHER = EDM(data=DATA, net=NET, train=SHORT)
FEATURES = FeatureNet(data=DATA, train=SHORT, width=8, resolution=16)
PAIRS = Pairs(teacher=TEACHER, count=12, points=2, batch=5, shard=5)
PROJECTED = ProjectedConfig(backbones=("cnn",), weights="random", seed=3)
OFFICIAL = LossConfig(features="projected", projected=PROJECTED, discriminator="stylegan-xl", pixel=0, lr_discriminator=2e-3)


class Stop(Exception):
    """Stands for whatever ends a process."""


@cache
def inputs(folder: Path) -> dict[str, Path]:
    """A teacher and a feature network of random weights, by key of their recipes."""
    torch.manual_seed(0)
    net = UNet(NET)
    for p in net.parameters():  # what starts at zero would hide mistakes
        torch.nn.init.normal_(p, std=0.05) if p.ndim == 1 else torch.nn.init.kaiming_normal_(p)
    found = {TEACHER.key: folder / "teacher", FEATURES.key: folder / "features"}
    for path in found.values():
        path.mkdir()
    save_half(net.state_dict(), found[TEACHER.key] / "model.safetensors")
    save_half(fold(FeatureModel(10, 8, 16)), found[FEATURES.key] / "features.safetensors")
    return found


def inputs_with_pairs(folder: Path) -> dict[str, Path]:
    """These, and the teacher's pairs."""
    found = inputs(folder)
    pairs.run(PAIRS, StageContext.for_test(folder / "pairs", folder / "work-pairs", found))
    return {**found, PAIRS.key: folder / "pairs"}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return inputs_with_pairs(tmp_path_factory.mktemp("upstream"))


def run(recipe: Recipe, runner: Any, upstream: dict[str, Path], folder: Path, stop_at: int = 0) -> StageContext:
    ctx = StageContext.for_test(folder / "out", folder / "work", upstream)

    def report(done: int, total: int, info: object) -> None:
        if done == stop_at:
            raise Stop

    ctx.report = report
    runner.run(recipe, ctx)
    return ctx


def weights(ctx: StageContext, name: str = "model") -> dict[str, torch.Tensor]:
    return load_half(ctx.out / f"{name}.safetensors")


def test_official_networks_train_and_a_resume_takes_the_projections_of_the_checkpoint(
    upstream: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resumed process draws other projections: those of the checkpoint must come in their place, or the loss changes."""
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    recipe = Distill(pairs=PAIRS, features=FEATURES, train=SHORT.model_copy(update={"batch": 2}), loss=OFFICIAL)
    whole = run(recipe, distill, upstream, tmp_path / "whole")
    curve = whole.facts["curve"]
    assert all(np.isfinite(list(point.values())).all() for point in curve)
    assert curve[0]["d"] == pytest.approx(2, abs=1.5)  # hinge at the start
    with pytest.raises(Stop):
        run(recipe, distill, upstream, tmp_path / "parts", stop_at=2)
    build = adversarial.build_eyes
    monkeypatch.setattr(adversarial, "build_eyes", lambda config: build_other(build, config))
    again = run(recipe, distill, upstream, tmp_path / "parts")
    assert again.facts["curve"] == curve
    a, b = weights(whole), weights(again)
    assert all(torch.equal(a[k], b[k]) for k in a)
    start = load_half(upstream[TEACHER.key] / "model.safetensors")
    assert any(not torch.equal(a[k], start[k]) for k in a)


def build_other(build: Any, config: ProjectedConfig) -> Any:
    """The same backbone with the projections of another seed."""
    eyes, other = build(config), build(config.model_copy(update={"seed": config.seed + 1}))
    eyes.load_projections(other.projections())
    return eyes


def test_the_discriminator_of_stylegan_xl_needs_its_features(upstream: dict[str, Path], tmp_path: Path) -> None:
    recipe = Distill(pairs=PAIRS, features=FEATURES, train=SHORT, loss=LossConfig(discriminator="stylegan-xl"))
    with pytest.raises(UserError, match=r"looks at loss\.features 'projected'"):
        run(recipe, distill, upstream, tmp_path)


@pytest.mark.parametrize(
    ("loss", "updates", "shown"),
    [
        ({"gan": "non-saturating"}, 1, {"rec", "adv", "d", "lambda"}),
        ({"updates": "separate", "distance": "l2", "adaptive": False}, 2, {"rec", "adv", "d", "lambda"}),
        ({"updates": "separate", "adversarial_rec": 0.5}, 2, {"rec", "adv", "d", "lambda", "adv_rec", "d_rec"}),
    ],
)
def test_options_change_what_is_computed(
    upstream: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss: dict[str, Any],
    updates: int,
    shown: set[str],
) -> None:
    counted: list[int] = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *a, **k: (counted.append(id(self)), step(self, *a, **k))[1])
    train = SHORT.model_copy(update={"emas": (0.15,)})
    ctx = run(Distill(pairs=PAIRS, features=FEATURES, train=train, loss=LossConfig(**loss)), distill, upstream, tmp_path)
    first = ctx.facts["curve"][0]
    assert set(first) == {*shown, "step"}
    judges = 2 if "d_rec" in shown else 1
    assert len(counted) == 4 * (updates + judges)  # three steps, and the one that is counted
    if loss.get("updates") == "separate":
        assert first["lambda"] == 1.0  # the plain weight
    if loss.get("gan") == "non-saturating":
        assert first["d"] == pytest.approx(2 * np.log(2), abs=1.0)
    assert any(not torch.equal(v, weights(ctx, "model-0.15")[k]) for k, v in weights(ctx).items())


def test_which_average_is_sampled_is_chosen_afterwards(upstream: dict[str, Path], tmp_path: Path) -> None:
    recipe = Distill(pairs=PAIRS, features=FEATURES, train=SHORT.model_copy(update={"emas": (0.5,)}))
    ctx = run(recipe, distill, upstream, tmp_path)
    here = StageContext.for_test(tmp_path / "o", tmp_path / "w", {recipe.key: ctx.out})
    found = load_one_step(OneStep(of=recipe, ema=0.5), here)
    kept = weights(ctx, "model-0.5")
    assert all(torch.equal(v, kept[k]) for k, v in found.net.state_dict().items())
    with pytest.raises(UserError, match=r"keeps the averages 0.999, 0.5, not 0.7"):
        load_one_step(OneStep(of=recipe, ema=0.7), here)


def test_a_fraction_of_the_pairs_is_the_first_images_and_their_mirrors(tmp_path: Path) -> None:
    recipe = PAIRS.model_copy(update={"flip": True, "count": 10})
    found = inputs_here(tmp_path)
    ctx = StageContext.for_test(tmp_path / "pairs", tmp_path / "work", found)
    pairs.run(recipe, ctx)
    latents = Sharded(tmp_path / "pairs" / "latents")[np.arange(20)].astype(np.float32)
    ctx = StageContext.for_test(tmp_path / "o", tmp_path / "w", {**found, recipe.key: tmp_path / "pairs"})
    source = DataPairs(recipe, 0.4, open_dataset(DATA), ctx)
    assert source.used == 8
    image, z, _ = source.batch(np.arange(8), 16)
    np.testing.assert_array_equal(z, latents[[0, 1, 2, 3, 10, 11, 12, 13]])
    assert torch.equal(image[4:], image[:4].flip(3))


def test_fewer_pairs_than_fakes_in_a_step_train_as_a_batch_of_that_size(upstream: dict[str, Path], tmp_path: Path) -> None:
    """With L_adv at no weight the generator sees its pairs alone: half of a batch of four is then a batch of two."""
    plain = LossConfig(adversarial=0, adaptive=False, augment=False)
    found = []
    for batch, share in ((2, 1.0), (4, 0.5), (4, 1.0)):
        loss = plain.model_copy(update={"pairs_share": share})
        recipe = Distill(pairs=PAIRS, features=FEATURES, train=SHORT.model_copy(update={"batch": batch}), loss=loss)
        found.append(weights(run(recipe, distill, upstream, tmp_path / f"{batch}-{share}")))
    two, half, four = found
    assert all(torch.allclose(two[k], half[k], atol=2e-3) for k in two)
    assert not all(torch.allclose(two[k], four[k], atol=2e-3) for k in two)


def inputs_here(folder: Path) -> dict[str, Path]:
    (folder / "inputs").mkdir()
    return inputs(folder / "inputs")


@pytest.mark.parametrize("what", ["teacher", "recipe", "image", "old"])
def test_pairs_of_something_else_are_refused(
    upstream: dict[str, Path], tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, recipe, data = dict(upstream), PAIRS, open_dataset(DATA)
    if what == "teacher":
        other = tmp_path / "teacher"
        other.mkdir()
        save_half(UNet(NET).state_dict(), other / "model.safetensors")
        found[TEACHER.key] = other
    elif what == "recipe":
        recipe = PAIRS.model_copy(update={"points": 3})
        found[recipe.key] = upstream[PAIRS.key]
    elif what == "image":
        images = type(data).images
        monkeypatch.setattr(type(data), "images", lambda self, *a: 255 - images(self, *a))
    else:  # one array in a file, as earlier releases wrote it
        rows = Sharded(upstream[PAIRS.key] / "latents")[np.arange(12)]
        np.save(tmp_path / "latents.npy", rows)
        found[PAIRS.key] = tmp_path
    ctx = StageContext.for_test(tmp_path / "o", tmp_path / "w", found)
    if what == "old":
        old = pairs.Latents(recipe, ctx, data)
        np.testing.assert_array_equal(old[np.array([7, 0, 7])], rows[[7, 0, 7]].astype(np.float32))
        return
    words = {
        "teacher": "other weights than those of their teacher",
        "recipe": "are those of recipe",
        "image": "another decoder",
    }
    with pytest.raises(UserError, match=words[what]):
        pairs.Latents(recipe, ctx, data)


def test_pairs_do_not_depend_on_who_writes_them(upstream: dict[str, Path], tmp_path: Path) -> None:
    """Shares in another order, one of them left by a process that died, then the stage: the same files."""
    ctx = StageContext.for_test(tmp_path / "out", tmp_path / "work", {TEACHER.key: upstream[TEACHER.key]})
    pairing = pairs.Pairing(PAIRS, ctx)
    pairing.writer(ctx.work).make(1, lambda a, b: pairing.latents(pairs.load(TEACHER, ctx), a, b))
    (ctx.work / "shards" / "00002.npy").write_bytes(b"half")
    assert pairs.shard(PAIRS, ctx, 1, 2)
    pairs.run(PAIRS, ctx)
    for path in sorted((upstream[PAIRS.key] / "latents").iterdir()):
        assert path.read_bytes() == (ctx.out / "latents" / path.name).read_bytes(), path.name


def test_noise_to_data_pairs_are_the_teachers_samples(upstream: dict[str, Path], tmp_path: Path) -> None:
    recipe = TeacherPairs(teacher=TEACHER, count=6, points=3, batch=4, shard=4, dtype="float32")
    made = run(recipe, teacher_pairs, upstream, tmp_path / "pairs")
    z, labels = teacher_pairs.latents(recipe, np.array([4, 1]))
    net = pairs.load(TEACHER, StageContext.for_test(tmp_path / "o", tmp_path / "w", upstream))
    with torch.no_grad():
        x = solvers.heun(lambda x, s: denoise(net, x, s, labels), z, karras_grid(3))
    np.testing.assert_allclose(Sharded(made.out / "images")[np.array([4, 1])], x.numpy(), atol=1e-4)
    assert float(z.std()) == pytest.approx(SIGMA_MAX, rel=0.1)
    assert labels.tolist() == [4, 1]
    other = tmp_path / "other"
    other.mkdir()
    save_half(UNet(NET).state_dict(), other / "model.safetensors")
    wrong = StageContext(tmp_path, tmp_path, {recipe.key: made.out, TEACHER.key: other})
    with pytest.raises(UserError, match="made with other weights than those of their teacher"):
        teacher_pairs.TeacherImages(recipe, wrong)
    loss = LossConfig(distance="l2", pixel=0, adaptive=False, adversarial=0, augment=False)
    base = Distill(pairs=recipe, features=FEATURES, train=SHORT, loss=loss)
    ctx = run(base, distill, {**upstream, recipe.key: made.out}, tmp_path / "base")
    assert np.isfinite(ctx.facts["curve"][0]["rec"])
    grown = Grow(base=base, width=1, train=SHORT)
    with pytest.raises(UserError, match="end at the teacher's resolution"):
        run(grown, grow, {**upstream, recipe.key: made.out, base.key: ctx.out}, tmp_path / "grown")


def test_a_writer_of_other_pairs_starts_anew(tmp_path: Path, upstream: dict[str, Path]) -> None:
    """Shards in the work folder that another teacher made are not mixed with this one's."""
    other = tmp_path / "teacher"
    other.mkdir()
    torch.manual_seed(9)
    save_half(UNet(NET).state_dict(), other / "model.safetensors")
    mine = StageContext.for_test(tmp_path / "out", tmp_path / "work", {TEACHER.key: upstream[TEACHER.key]})
    theirs = StageContext.for_test(tmp_path / "out2", tmp_path / "work", {TEACHER.key: other})
    writer: Writer = pairs.Pairing(PAIRS, mine).writer(mine.work)
    writer.run(lambda a, b: np.zeros((b - a, 3, 8, 8), np.float16))
    assert writer.missing() == []
    assert pairs.Pairing(PAIRS, theirs).writer(theirs.work).missing() == [0, 1, 2]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_float32(
    upstream: dict[str, Path], tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first losses differ by rounding; float16 trains too, once its loss scale has come down."""
    monkeypatch.setattr(device, "fast_bfloat16", lambda: True)  # slow or not, this processor can
    found = {}
    for name in ("fp32", precision):
        train = SHORT.model_copy(update={"precision": name, "schedule": "constant", "steps": 14})
        ctx = run(Distill(pairs=PAIRS, features=FEATURES, train=train), distill, upstream, tmp_path / name)
        found[name] = ctx.facts["curve"]
    first, other = (found[name][0]["rec"] for name in ("fp32", precision))
    assert first == pytest.approx(other, rel=0.05)
    assert first != other
    assert all(np.isfinite(list(point.values())).all() for point in found[precision])
    assert "lambda" in found[precision][-1]  # an update that overflowed has none
    start = load_half(upstream[TEACHER.key] / "model.safetensors")
    assert any(not torch.equal(v, start[k]) for k, v in weights(ctx).items())


def test_a_batch_in_several_passes_is_one_update(upstream: dict[str, Path], tmp_path: Path) -> None:
    """Of the teacher, which has no batch norms: the same weights to rounding, from the same random numbers."""
    found = []
    for passes in (1, 4):
        recipe = TEACHER.model_copy(update={"train": SHORT.model_copy(update={"accumulate": passes, "clip": 0.5})})
        found.append(weights(run(recipe, teacher, upstream, tmp_path / str(passes))))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=0.01, atol=2e-3)


def test_kept_states_of_the_frozen_part_give_the_same_training_for_less_work(
    upstream: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Distill(pairs=PAIRS, features=FEATURES, train=SHORT)
    found = {**upstream, base.key: upstream[TEACHER.key]}
    made = {}
    for gigabytes in (0.0, 0.001):
        recipe = Grow(base=base, width=1, train=SHORT, cache=gigabytes)
        made[gigabytes] = run(recipe, grow, found, tmp_path / str(gigabytes))
    plain, kept = made[0.0], made[0.001]
    for a, b in zip(plain.facts["curve"], kept.facts["curve"], strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    others = weights(kept)
    for key, value in weights(plain).items():
        torch.testing.assert_close(others[key], value, rtol=0.01, atol=1e-3)
    # Once for the 12 pairs, in place of 4 in each step.
    assert kept.facts["training_flops"] == pytest.approx(plain.facts["training_flops"])
    longer = SHORT.model_copy(update={"steps": 6})
    flops = [
        run(Grow(base=base, width=1, train=longer, cache=g), grow, found, tmp_path / f"long{g}").facts["training_flops"]
        for g in (0.0, 0.001)
    ]
    assert flops[1] < flops[0]
    monkeypatch.setattr(grow, "ROWS", 5)  # where the work alone is asked for, the first five stand for all
    passed: list[int] = []
    state = grow.Frozen._state
    monkeypatch.setattr(grow.Frozen, "_state", lambda self, z, *a: (passed.append(len(z)), state(self, z, *a))[1])
    counting = StageContext.for_test(tmp_path / "count", tmp_path / "count-work", found)
    counting.counting = True
    grow.run(Grow(base=base, width=1, train=longer, cache=0.001), counting)
    assert counting.facts["training_flops"] == pytest.approx(flops[1], rel=1e-6)
    assert passed == [5, 4]  # and the fresh noise of one step
    with pytest.raises(UserError, match=r"grow\.cache: the states of 12 pairs take .* GB, more than 1e-09"):
        run(Grow(base=base, width=1, train=SHORT, cache=1e-9), grow, found, tmp_path / "small")
