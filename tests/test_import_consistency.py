"""Released consistency models and CTM: outputs of the official networks, with the factors that were published around them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.store import Store
from pagoda_bench.cli import main as cli
from pagoda_bench.cli.names import generator_named
from pagoda_bench.diffusion import edm
from pagoda_bench.diffusion.consistency import trajectory as to_end
from pagoda_bench.errors import Unavailable, UserError
from pagoda_bench.nets.features import from_network
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda import importing, released, trajectory
from pagoda_bench.recipes.formats import Format
from pagoda_bench.recipes.imported import Imported, ImportedHeun, ImportedOneStep, generator_of
from pagoda_bench.recipes.registry import read_recipe
from pagoda_bench.sampling.noise import noise
from pagoda_bench.tables.released import released as method
from tests.official import ATOL, FULL, TINY, arrays, fill, filled_net, largest, rows

C_SKIP, C_OUT = 3.90629272263522e-05, 0.49997773490522646  # at sigma 80; as diffusers' CMStochasticIterativeScheduler has them


def with_end(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of CTM's network that an ADM U-Net of these tensors is the first half of, without values."""
    out = {key: torch.empty_like(value) for key, value in state.items()}
    for key, value in state.items():
        if "emb_layers." in key:
            out[key.replace("emb_layers.", "emb_layers_s.")] = torch.empty_like(value)
        if key.startswith("time_embed."):
            out[key.replace("time_embed.", "time_embed_s.")] = torch.empty_like(value)
    return out


def ctm() -> dict[str, Tensor]:
    return fill(with_end(UNet(TINY).state_dict()))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PAGODA_BENCH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("pagoda_bench.resources.released_roots", list)
    monkeypatch.setattr(importing, "PUBLISHED", dict.fromkeys(get_args(Format), (TINY,)))
    return Store(tmp_path / "store")


def imported(path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> tuple[Imported, Path, str]:
    """What `pagoda-bench import` makes of a file, where it is, and what was said."""
    assert cli.main(["import", str(path), "--as", name]) == 0
    out, err = capsys.readouterr()
    recipe = read_recipe(Path(out.strip()) / "recipe.json")
    assert isinstance(recipe, Imported)
    return recipe, Path(out.strip()), err


def image(recipe: Imported, folder: Path, work: Path) -> tuple[released.NoiseSampler, Tensor]:
    """The sampler of imported weights, and what it makes of the fixture's latents."""
    sampler = released.one_step(ImportedOneStep(of=recipe), StageContext(work, work, {recipe.key: folder}))
    case = arrays("tiny_base_r1")
    with torch.inference_mode():
        return sampler, sampler.draw(case["z"], case["labels"])


# Consistency models


@pytest.mark.parametrize("name", ["cd-lpips-64", "cd-l2-64", "ct-64"])
def test_the_image_of_a_consistency_model_is_between_the_published_factors(
    name: str, tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(fill(UNet(TINY).state_dict()), path)
    recipe, folder, _ = imported(path, name, capsys)
    sampler, found = image(recipe, folder, tmp_path)
    case = arrays("tiny_base_r1")  # `out` is the official network at sigma 80
    assert largest(found, C_SKIP * case["z"] + C_OUT * case["out"]) < ATOL
    images, nfe = sampler.sample(np.arange(3), np.array([0, 1, 4]))
    assert (images.shape, nfe) == ((3, 16, 16, 3), 1)
    z = torch.from_numpy(noise(np.arange(3), (3, 16, 16))) * 80
    with torch.inference_mode():
        raw = edm.one_step(filled_net(TINY), z, torch.tensor([0, 1, 4]))
    assert np.abs(images.astype(int) - from_network(C_SKIP * z + C_OUT * raw).astype(int)).max() <= 1
    assert np.abs(images.astype(int) - from_network(raw).astype(int)).max() > 10  # PaGoDA's call would be another image


def test_a_name_is_sampled_from_the_command_line(tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pt"
    torch.save(fill(UNet(TINY).state_dict()), path)
    recipe, _, _ = imported(path, "cd-lpips-64", capsys)
    assert generator_named("cd-lpips-64", None, store) == ImportedOneStep(of=recipe)
    out = tmp_path / "samples.npz"
    assert cli.main(["sample", "cd-lpips-64", "--n", "5", "--out", str(out)]) == 0
    with np.load(out) as samples:
        assert samples["arr_0"].shape == (5, 16, 16, 3)
        assert json.loads(str(samples["protocol"]))["nfe"] == 1
    assert cli.main(["sample", "cd-lpips-64", "--n", "5", "--points", "4", "--out", str(tmp_path / "no.npz")]) == 2
    assert "takes one step: leave --points away" in capsys.readouterr().err


# CTM


def test_the_network_of_ctm_at_a_fixed_end_is_the_official_one() -> None:
    """Every tensor by the fixtures' formula; the official sampler's image of one step, in which the end is an input."""
    tensors, wrong = trajectory.fixed_end(ctm())
    assert wrong == []
    net = UNet(TINY).eval()
    net.load_state_dict(tensors)
    case, theirs = arrays("tiny_base_r1"), arrays("tiny_ctm")
    at = torch.full((4,), 80.0, dtype=torch.float64)
    with torch.inference_mode():
        assert largest(to_end(net, case["z"], at, case["labels"]), theirs["out"]) < ATOL
        for other in (0.0021, 0.0019):  # another end is another image
            net.load_state_dict(trajectory.fixed_end(ctm(), other)[0])
            assert largest(to_end(net, case["z"], at, case["labels"]), theirs["out"]) > 0.1


def test_ctm_is_imported_and_makes_the_official_image(tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ctm.pt"
    torch.save(ctm(), path)
    recipe, folder, said = imported(path, "ctm-64", capsys)
    assert recipe.net == TINY
    assert "note: fixed the end of trajectories at sigma 0.002: 24 tensors became parts of biases" in said
    assert load_file(folder / "model.safetensors").keys() == UNet(TINY).state_dict().keys()
    assert largest(image(recipe, folder, tmp_path)[1], arrays("tiny_ctm")["out"]) < ATOL


def test_the_published_network_of_ctm_is_recognised() -> None:
    """From the key list of the fixture; how many tensors and numbers the official network adds is stated beside it."""
    stated = rows("64to64.keys")
    plain = {key: torch.empty([int(n) for n in shape.split("x")], device="meta") for key, shape, *_ in stated}
    tensors = with_end(plain)
    second = [tensors[key] for key in tensors.keys() - plain.keys()]
    assert (len(tensors), len(second), sum(t.numel() for t in second)) == (617, 76, 28_201_344)
    assert sum(t.numel() for t in tensors.values()) == 324_100_611
    left, wrong = trajectory.fixed_end(tensors)
    assert wrong == []
    assert importing.infer(left, 64, 64) == FULL["64to64"]
    assert importing.problems(left, FULL["64to64"]) == []


def test_what_is_no_ctm_is_refused_whole(tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = ctm()
    cases: list[tuple[str, dict[str, Tensor], str]] = [
        ("ctm-64", fill(UNet(TINY).state_dict()), "this is no CTM: it has no tensor 'time_embed_s.0.weight'"),
        ("cd-l2-64", tensors, "is not cd-l2-64: it has tensors of a second noise level, as ctm-64 has"),
    ]
    name = "middle_block.0.emb_layers_s.1"
    cases.append(
        (
            "ctm-64",
            {k: v for k, v in tensors.items() if k != f"{name}.bias"},
            f"missing: {name}.bias {len(tensors[f'{name}.bias'])}",
        )
    )
    cases.append(("ctm-64", {**tensors, f"{name}.bias": torch.zeros(3)}, f"shape: {name}.bias is 3, expected"))
    cases.append(("ctm-64", {**tensors, "time_embed_s.4.bias": torch.zeros(3)}, "extra: time_embed_s.4.bias 3"))
    for number, (as_, held, message) in enumerate(cases):
        path = tmp_path / f"{number}.pt"
        torch.save(held, path)
        assert cli.main(["import", str(path), "--as", as_]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(store.artifacts()) == []


# What they are asked for


def of(format_: Format) -> Imported:
    return Imported(format=format_, digest="0" * 64, net=FULL["64to64"])


def test_weights_are_not_called_as_others_are() -> None:
    for one in ("pagoda-64", "cd-lpips-64", "ct-64", "ctm-64"):
        assert generator_of(of(one)) == ImportedOneStep(of=of(one))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="take one step"):
            ImportedHeun(of=of(one))  # type: ignore[arg-type]
    for many in ("edm-openai-64", "adm-64"):
        assert generator_of(of(many)) == ImportedHeun(of=of(many))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="takes many steps"):
            ImportedOneStep(of=of(many))  # type: ignore[arg-type]


class ScaleWith:
    """As much of a scale as the method reads."""

    name = "imagenet"

    def __init__(self, **values: str) -> None:
        self.methods = {"released": {key.replace("_", "-"): value for key, value in values.items()}}


def test_rows_of_one_resolution_name_their_weights(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(of("cd-lpips-64").to_dict()))
    both = {"cd_lpips_64": str(path), "ctm_64": str(path)}
    assert method(ScaleWith(**both, **{"as": "cd-lpips-64"}), 64) == ImportedOneStep(of=of("cd-lpips-64"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"methods\.released\.ctm-64: .* is released cd-lpips-64 .*, not ctm-64"):
        method(ScaleWith(**both, **{"as": "ctm-64"}), 64)  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match=r"no released weights 'ct-64': .*methods\.released\.ct-64"):
        method(ScaleWith(**both, **{"as": "ct-64"}), 64)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"no weights called 'cd-lpip-64'.*cd-lpips-64"):
        method(ScaleWith(**both, **{"as": "cd-lpip-64"}), 64)  # type: ignore[arg-type]
