"""Checkpoints of others: what a file holds is read off its tensors, checked, and taken over whole or not at all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.store import Store
from pagoda_bench.cli import import_weights
from pagoda_bench.cli import main as cli
from pagoda_bench.cli.names import generator_named
from pagoda_bench.diffusion import edm
from pagoda_bench.errors import UserError
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda import importing, released
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.formats import ROLES, Format
from pagoda_bench.recipes.imported import Imported, ImportedHeun, ImportedOneStep, Samples, generator_of
from pagoda_bench.recipes.published import ADM32, PUBLISHED
from pagoda_bench.recipes.registry import read_recipe
from pagoda_bench.recipes.samplers import Sampled, SamplerConfig
from pagoda_bench.recipes.stages import EDM, Heun, TrainConfig, UNetConfig
from pagoda_bench.tables.released import released as method
from tests.official import FULL, NETS, TINY, arrays, fill, filled_net, largest, rows

HALF = NETS["grown2_half"]


def weights(config: UNetConfig = TINY) -> dict[str, Tensor]:
    return fill(UNet(config).state_dict())


def save(tensors: dict[str, Tensor], path: Path) -> Path:
    torch.save(tensors, path)
    return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PAGODA_BENCH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("pagoda_bench.resources.released_roots", list)
    return Store(tmp_path / "store")


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


OWN = ("--own-architecture", "--head-channels", "16")


# The architecture


@pytest.mark.parametrize("name", NETS)
def test_an_architecture_is_read_off_its_tensors(name: str) -> None:
    config = NETS[name]
    assert importing.infer(weights(config), config.output_resolution, config.head_channels) == config


@pytest.mark.parametrize("name", FULL)
def test_the_published_architectures_are_read_off_the_published_shapes(name: str) -> None:
    """From the key lists of the fixture, not from this project's network."""
    tensors = {key: torch.empty([int(n) for n in shape.split("x")], device="meta") for key, shape, *_ in rows(f"{name}.keys")}
    config = FULL[name]
    assert importing.infer(tensors, config.output_resolution, 64) == config
    assert importing.problems(tensors, config) == []


def test_each_name_stands_for_its_published_network() -> None:
    stated = {
        "pagoda-64": ("64to64",),
        "pagoda-128": ("64to128",),
        "pagoda-256": ("64to256",),
        "pagoda-512": ("64to512_consistent", "64to512_default"),
        "edm-openai-64": ("64to64",),
        "adm-64": ("64to64",),
        "cd-lpips-64": ("64to64",),
        "cd-l2-64": ("64to64",),
        "ct-64": ("64to64",),
        "ctm-64": ("64to64",),
    }
    assert {name: tuple(FULL[net] for net in nets) for name, nets in stated.items()} == PUBLISHED
    assert tuple(stated) == tuple(ROLES) == get_args(Format) == import_weights.NAMES
    assert FULL["32to32"] == ADM32  # whose keys, shapes and count tests/test_unet.py holds


# Whole or not at all


def test_every_key_at_fault_is_listed_and_nothing_is_loaded(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = weights()
    del tensors["middle_block.1.norm.bias"]
    tensors["ema_decay"] = torch.zeros(1)
    tensors["out.2.bias"] = torch.zeros(4)
    code, out, err = run(capsys, "import", save(tensors, tmp_path / "a.pt"), "--as", "pagoda-64", *OWN)
    assert (code, out) == (2, "")
    *lines, last = err.splitlines()
    assert lines == ["missing: middle_block.1.norm.bias 64", "extra: ema_decay 1", "shape: out.2.bias is 4, expected 3"]
    assert "1 keys missing, 1 too many, 1 of another shape" in last
    assert list(store.artifacts()) == []


@pytest.mark.parametrize("key", ["time_embed.0.weight", "label_emb.weight", "input_blocks.1.0.in_layers.2.weight"])
def test_a_file_without_what_tells_the_architecture_is_named_too(tmp_path: Path, key: str) -> None:
    tensors = weights()
    del tensors[key]
    with pytest.raises(importing.Mismatch, match=f"no tensor '{key}'") as caught:
        importing.recipe_of(save(tensors, tmp_path / "a.pt"), "pagoda-64", own_architecture=True)
    assert any(line.startswith(f"missing: {key} ") for line in caught.value.lines)


def test_another_published_network_is_recognised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published = dict.fromkeys(get_args(Format), (TINY,))
    published |= {"pagoda-128": (NETS["grown1_r1"],), "pagoda-256": (NETS["grown2_r1"],), "pagoda-512": (HALF,)}
    monkeypatch.setattr(importing, "PUBLISHED", published)
    path = save(weights(NETS["grown1_r1"]), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"not pagoda-256: .*decoder is \(1, 1, 2\), not \(1, 1, 1, 2\).*that of pagoda-128"):
        importing.recipe_of(path, "pagoda-256")
    assert importing.recipe_of(path, "pagoda-128").net == NETS["grown1_r1"]


def test_own_architectures_are_asked_for(tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(weights(), tmp_path / "a.pt")
    code, _, err = run(capsys, "import", path, "--as", "pagoda-64")
    assert code == 2
    assert "channels is 32, not 192" in err.splitlines()[-1]
    assert "--own-architecture" in err.splitlines()[-1]
    assert run(capsys, "import", path, "--as", "pagoda-64", "--head-channels", "16")[0] == 2


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_damaged_file_is_refused_in_one_line(
    tmp_path: Path, store: Store, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    (torch.save if name.endswith("pt") else save_file)(weights(), path)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\x00" * 64):
        path.write_bytes(damaged)
        code, _, err = run(capsys, "import", path, "--as", "pagoda-64", *OWN)
        assert (code, len(err.splitlines())) == (2, 1), err


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harmful",)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="it is not opened, because reading it could run code"):
        importing.read(save({"a": Harmful()}, tmp_path / "a.pt"))  # type: ignore[dict-item]
    assert not (tmp_path / "harmful").exists()


def test_values_that_are_not_finite_are_refused() -> None:
    tensors = weights()
    tensors["out.2.bias"][1] = float("nan")
    with pytest.raises(UserError, match=r"1 tensors hold values that are not finite, first 'out.2.bias'"):
        importing.prepare(tensors, "pagoda-64")


def test_one_dictionary_in_another_is_opened_and_two_are_not(tmp_path: Path) -> None:
    one = save({"model": weights()}, tmp_path / "one.pt")  # type: ignore[dict-item]
    assert importing.read(one).keys() == weights().keys()
    two = save({"model": weights(), "ema": weights()}, tmp_path / "two.pt")  # type: ignore[dict-item]
    with pytest.raises(UserError, match="holds the dictionaries model, ema, not one state_dict"):
        importing.read(two)


# What is done to the tensors


def test_mixed_precision_is_cast_to_float32_and_said(tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """As the official Stage 3 stores it: frozen convolutions in float16, the rest in float32."""
    tensors = weights()
    frozen = [key for key in tensors if key.startswith("input_blocks") and tensors[key].ndim == 4]
    mixed = {key: value.half() if key in frozen else value for key, value in tensors.items()}
    code, out, err = run(capsys, "import", save(mixed, tmp_path / "a.pt"), "--as", "pagoda-64", *OWN)
    assert code == 0
    assert f"note: cast {len(frozen)} of {len(tensors)} tensors from float16 to float32" in err
    stored = load_file(Path(out.strip()) / "model.safetensors")
    assert all(torch.equal(stored[key], mixed[key].float()) for key in tensors)
    assert {value.dtype for value in stored.values()} == {torch.float32}


def test_prefixes_and_one_dimensional_convolutions_are_understood() -> None:
    tensors = weights()
    told = {f"module.{key}": v[..., 0] if key.endswith(("qkv.weight", "proj_out.weight")) else v for key, v in tensors.items()}
    prepared = importing.prepare(told, "pagoda-64")
    assert all(torch.equal(prepared.tensors[key], tensors[key]) for key in tensors)
    assert any("module." in note for note in prepared.notes)


# From a file to images


@pytest.mark.parametrize("name", ["base_r1", "grown1_r1"])
def test_imported_weights_give_the_official_image(
    name: str, tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    format_ = "pagoda-64" if name == "base_r1" else "pagoda-128"
    path = tmp_path / "a.safetensors"
    save_file(weights(NETS[name]), path)
    code, out, _ = run(capsys, "import", path, "--as", format_, *OWN)
    assert code == 0
    folder = Path(out.strip())
    recipe = read_recipe(folder / "recipe.json")
    assert isinstance(recipe, Imported)
    # The size of the images is the one that the name says; the numbers are those of the tiny fixture.
    net = released.load(recipe, StageContext(tmp_path, tmp_path, {recipe.key: folder}))
    case = arrays(f"tiny_{name}")
    with torch.inference_mode():
        assert largest(edm.one_step(net, case["z"], case["labels"]), case["out"]) < 1e-4
    assert run(capsys, "import", path, "--as", format_, *OWN)[1] == out  # once more: it is there


def test_a_stage_refuses_another_file_under_its_recipe(tmp_path: Path) -> None:
    path = save(weights(), tmp_path / "a.pt")
    recipe = importing.recipe_of(path, "pagoda-64", own_architecture=True, head_channels=16)
    save(fill({**weights(), "zz": torch.zeros(1)}), path)
    context = StageContext.for_test(tmp_path / "out", tmp_path / "work", data={recipe.digest: path})
    with pytest.raises(UserError, match=f"the recipe is of {recipe.digest[:12]}"):
        importing.run(recipe, context)


def test_generators_of_imported_weights() -> None:
    made: dict[str, Recipe] = {name: Imported(format=name, digest="0" * 64, net=TINY) for name in ("pagoda-64", "adm-64")}
    assert generator_of(made["pagoda-64"]) == ImportedOneStep(of=made["pagoda-64"])
    assert generator_of(made["adm-64"], points=7) == ImportedHeun(of=made["adm-64"], points=7)
    with pytest.raises(UserError, match="takes one step: leave --points away"):
        generator_of(made["pagoda-64"], points=7)


def test_points_reach_every_sampler_that_has_them(tmp_path: Path) -> None:
    teacher = EDM(data=EmbeddedData(master=8), net=TINY, train=TrainConfig(steps=1))
    heun = Heun(of=teacher, points=5)
    ddim = Sampled(of=teacher, sampler=SamplerConfig(solver="ddim", eta=0.5))
    released = ImportedHeun(of=Imported(format="adm-64", digest="0" * 64, net=TINY))
    store = Store(tmp_path / "store")
    for number, generator in enumerate((heun, ddim, released)):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(generator.to_dict()))
        assert generator_named(str(path), None, store) == generator
        found = generator_named(str(path), 9, store)
        assert found == generator_of(Samples(generator=generator, n=2), points=9)
        changed = {"points": 9} if generator is not ddim else {"sampler": {**ddim.sampler.to_dict(), "points": 9}}
        assert found.to_dict() == {**generator.to_dict(), **changed}
    assert generator_named("table1/smoke:teacher-8", 9, store).points == 9  # type: ignore[attr-defined]
    for name in ("table1/smoke:pagoda-16", "table1/smoke:bicubic-16"):  # one step; another's images enlarged
        with pytest.raises(UserError, match="has no number of noise levels: leave --points away"):
            generator_named(name, 9, store)


# ADM


def test_adm_loses_its_variances_and_says_so() -> None:
    tensors = weights()
    tensors["out.2.weight"] = torch.cat([tensors["out.2.weight"], torch.ones_like(tensors["out.2.weight"])])
    tensors["out.2.bias"] = torch.cat([tensors["out.2.bias"], torch.ones(3)])
    prepared = importing.prepare(tensors, "adm-64")
    assert importing.problems(prepared.tensors, TINY) == []
    assert torch.equal(prepared.tensors["out.2.weight"], weights()["out.2.weight"])
    assert sum("learnt variances" in note for note in prepared.notes) == 2
    assert len(importing.problems(importing.prepare(tensors, "pagoda-64").tensors, TINY)) == 2


def test_adm_levels_are_those_of_the_cosine_schedule() -> None:
    levels = released.adm_levels()
    assert levels.shape == (1000,)
    assert np.all(np.diff(levels) > 0)
    # In the middle beta is not clipped, and the level is a ratio of cosines: alpha = f(t) / f(0), f = cos^2.
    f = np.cos((np.array([0, 501]) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(levels[500], np.sqrt((f[0] - f[1]) / f[1]), rtol=1e-9)


def test_adm_denoises_an_image_whose_noise_its_network_names() -> None:
    """A network that always answers with the true noise gives back the true image, and is asked at the nearest step."""
    image, noise = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    levels = released.adm_levels()
    sigma = torch.tensor([levels[0], levels[400], levels[999]], dtype=torch.float32)
    asked: list[Tensor] = []

    def net(x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        asked.append(250 * time.log())
        torch.testing.assert_close(x, (image + sigma.view(-1, 1, 1, 1) * noise) / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt())
        return noise

    x = image + sigma.view(-1, 1, 1, 1) * noise
    found = released.adm_denoise(net, levels, x, sigma, torch.zeros(3, dtype=torch.int64))  # type: ignore[arg-type]
    np.testing.assert_allclose(asked[0].numpy(), [0, 400, 999], atol=1e-9)
    torch.testing.assert_close(found[:2], image[:2], atol=1e-5, rtol=1e-5)


def test_the_published_step_reaches_the_time_embedding_of_adm() -> None:
    """t = 250 ln(sigma) of the sigma that stands for step t is t itself, as a float32 number."""
    net = filled_net(TINY)
    labels = torch.zeros(2, dtype=torch.int64)
    sigma = torch.from_numpy(np.exp(np.array([999, 1]) / 250.0))
    half = TINY.channels // 2
    angles = torch.tensor([[999.0], [1.0]]) * torch.exp(-math.log(10000.0) * torch.arange(half) / half)
    expected = net.time_embed(torch.cat([angles.cos(), angles.sin()], 1)) + net.label_emb(labels)
    torch.testing.assert_close(net.embed(sigma, labels), expected, atol=2e-4, rtol=0)


# A row of a table


class ScaleWith:
    """As much of a scale as the method reads."""

    name = "imagenet"

    def __init__(self, **paths: str) -> None:
        self.methods = {"released": {key.removeprefix("at"): value for key, value in paths.items()}}


def test_released_weights_are_a_method_of_tables(tmp_path: Path) -> None:
    recipe = Imported(format="pagoda-64", digest="0" * 64, net=FULL["64to64"])
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe.to_dict()))
    scale = ScaleWith(at64=str(path), at128=str(path))
    assert method(scale, 64) == ImportedOneStep(of=recipe)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="makes 64 px images"):
        method(scale, 128)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"names no released weights at 256 px: .*methods\.released\.256"):
        method(scale, 256)  # type: ignore[arg-type]
