"""Published weights that are not here, or not what the row means: one line each, before anything is loaded; no network."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_scale import ctx, scale

from baselines.pipelines import places, recipes
from pagoda_bench.errors import Unavailable, UserError
from pagoda_bench.sampling.generators import load

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
import tiny_pipelines
from safetensors.torch import load_file, save_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    tiny_pipelines.dit(place / "dit")
    tiny_pipelines.stable_diffusion(place / "sd")
    tiny_pipelines.deepfloyd(place / "if")
    return place


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return shutil.copytree(made, tmp_path / "weights")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("somebody asked the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def dit(**options: Any) -> recipes.DiTPublished:
    return recipes.dit(scale(dit={"steps": 2, **options}), 32)  # type: ignore[return-value]


def sd(**options: Any) -> recipes.TextToImage:
    return recipes.stable_diffusion(scale(sd={"steps": 1, **options}), 32)  # type: ignore[return-value]


WEIGHTS = "diffusion_pytorch_model.safetensors"


def _pickled(at: Path) -> None:
    (at / "dit/transformer" / WEIGHTS).rename(at / "dit/transformer/diffusion_pytorch_model.bin")


def _variant(at: Path) -> None:
    (at / "dit/transformer" / WEIGHTS).rename(at / "dit/transformer/diffusion_pytorch_model.fp16.safetensors")


def _sharded(at: Path, *, both: bool) -> None:
    unet = at / "dit/transformer"
    shards = {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}
    (unet / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": shards}))
    if not both:
        (unet / WEIGHTS).rename(unet / shards["a"])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another pipeline": (lambda at: shutil.copy(at / "sd/model_index.json", at / "dit"), "holds a StableDiffusionPipeline"),
    "no pipeline": (lambda at: (at / "dit/model_index.json").unlink(), "has no model_index.json"),
    "no component": (lambda at: shutil.rmtree(at / "dit/vae"), "lacks the component 'vae'"),
    "no weights": (lambda at: (at / "dit/vae" / WEIGHTS).unlink(), f"vae lacks {WEIGHTS}"),
    "no config": (lambda at: (at / "dit/transformer/config.json").write_text("{"), "no readable config.json"),
    "pickles": (_pickled, "holds pickles only"),
    "variant": (_variant, "set options.variant"),
    "both": (lambda at: _sharded(at, both=True), "holds both"),
    "a shard": (lambda at: _sharded(at, both=False), "lacks the shard m-00002-of-00002.safetensors of 2"),
    "another class": (
        lambda at: tiny_pipelines.edit(at / "dit/vae/config.json", _class_name="VQModel"), "holds VQModel, not AutoencoderKL",
    ),
    "no variance": (lambda at: tiny_pipelines.edit(at / "dit/transformer/config.json", out_channels=4), "predicts no variance"),
    "other classes": (
        lambda at: tiny_pipelines.edit(at / "dit/transformer/config.json", num_embeds_ada_norm=7), "knows 7 classes",
    ),
    "another size": (lambda at: tiny_pipelines.edit(at / "dit/transformer/config.json", sample_size=6), "makes 48 px images"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_folder_that_is_not_the_weights_costs_its_row(name: str, folder: Path) -> None:
    change, words = BROKEN[name]
    assert dit(weights=str(folder / "dit")).weights.digest
    change(folder)
    with pytest.raises(Unavailable, match="not available: ") as refused:
        dit(weights=str(folder / "dit"))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda at: dit(), "names no weights"),
        (lambda at: dit(weights=str(at / "nowhere")), "no such folder"),
        (lambda at: dit(weights="facebook/DiT-XL-2-256"), "set options.revision"),
        (lambda at: dit(weights="facebook/DiT-XL-2-256", revision="main"), "hf download facebook/DiT-XL-2-256 --revision main"),
        (lambda at: dit(weights="facebook/DiT-XL-2-256", revision=COMMIT), "is not in"),
        (lambda at: dit(weights=str(at / "dit"), vae=str(at / "if/one")), "lacks the component 'vae'|no readable config.json"),
        (lambda at: sd(weights=str(at / "dit")), "holds a DiTPipeline"),
        (lambda at: sd(weights=str(at / "sd"), names=str(at / "no.txt")), "cannot be read"),
        (lambda at: recipes.deepfloyd(scale(**{"if": {"weights": str(at / "if/one")}}), 16), "set options.licence to accepted"),
        (
            lambda at: recipes.deepfloyd(scale(**{"if": {"weights": str(at / "if/one"), "licence": "accepted"}}), 32),
            "need the second stage",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_says_what_to_do(make: Callable[[Path], Any], words: str, made: Path) -> None:
    with pytest.raises(Unavailable, match=words) as refused:
        make(made)
    assert str(refused.value).startswith("not available: ")
    assert "\n" not in str(refused.value)


def test_what_is_wrong_is_no_matter_of_weights(made: Path, tmp_path: Path) -> None:
    for options, words in (({"stepps": 3}, "unknown key 'stepps'"), ({"guidance": 0.5}, "guidance")):
        with pytest.raises(UserError, match=words):
            dit(weights=str(made / "dit"), **options)
    with pytest.raises(UserError, match="choose 1 to 8"):
        recipes.lcm(scale(lcm_released={"weights": str(made / "sd"), "steps": 9}), 32)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match="has 2 names, the data have 10 classes"):
        sd(weights=str(made / "sd"), names=str(tmp_path / "names.txt"))


def test_a_missing_package_names_the_extra(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = places.importlib.util.find_spec
    monkeypatch.setattr(
        places.importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else found(name, *rest)
    )
    with pytest.raises(Unavailable, match=r"package transformers is not installed: pip install 'pagoda-bench\[diffusers\]'"):
        dit(weights=str(made / "dit"))


def test_models_that_do_not_belong_together(folder: Path) -> None:
    tiny_pipelines.edit(folder / "sd/text_encoder/config.json", hidden_size=12)
    with pytest.raises(Unavailable, match="put together of different models"):
        sd(weights=str(folder / "sd"))


@pytest.mark.parametrize(
    ("change", "words"), [("drop", "lacks the tensor"), ("add", "left over"), ("shape", "cannot be loaded")]
)
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_tensors_that_do_not_fit_are_refused(change: str, words: str, part: str, folder: Path) -> None:
    """Never a network with parts at random."""
    (path,) = (folder / "sd" / part).glob("*.safetensors")
    state = load_file(path)
    name = sorted(key for key in state if key.endswith("weight"))[0]
    if change == "drop":
        del state[name]
    elif change == "add":
        state["nobody.knows.weight"] = state[name].clone()
    else:
        state[name] = state[name][:1].repeat(3, *(1,) * (state[name].ndim - 1))
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{words}|misshapes") as refused:
        load(sd(weights=str(folder / "sd")), ctx())
    assert "\n" not in str(refused.value)


def test_names_of_older_releases_are_read(folder: Path) -> None:
    """Attention of autoencoders under its names of 2022; text encoders with a prefix and a table of places."""
    before = load(sd(weights=str(folder / "sd")), ctx()).sample(np.array([3]), np.array([3]))[0]
    path = folder / "sd/vae" / WEIGHTS
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(path)
    for new, old in older.items():
        state = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): value for name, value in state.items()}
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in state
    save_file(state, path, metadata={"format": "pt"})
    (path,) = (folder / "sd/text_encoder").glob("*.safetensors")
    states = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(path).items()}
    states["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(states, path, metadata={"format": "pt"})
    after = load(sd(weights=str(folder / "sd")), ctx()).sample(np.array([3]), np.array([3]))[0]
    np.testing.assert_array_equal(after, before)


def test_weights_that_changed_or_went_after_planning(folder: Path) -> None:
    generator = dit(weights=str(folder / "dit"))
    path = folder / "dit/transformer" / WEIGHTS
    state = load_file(path)
    save_file({name: value + 1 for name, value in state.items()}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="holds other weights now"):
        load(generator, ctx())
    shutil.rmtree(folder / "dit")
    with pytest.raises(UserError, match=r"not available: .* are gone"):
        load(generator, ctx())


def test_a_revision_in_the_cache_is_the_folder(made: Path, tmp_path: Path) -> None:
    """The cache's layout: large files are links to blobs called by their SHA-256."""
    root = tmp_path / "hub/models--owner--name"
    snapshot = shutil.copytree(made / "dit", root / "snapshots" / COMMIT)
    (root / "blobs").mkdir()
    for path in list(snapshot.rglob("*.safetensors")):
        blob = root / "blobs" / places.sha256(path)
        path.rename(blob)
        path.symlink_to(blob)
    (root / "refs/refs/pr").mkdir(parents=True)
    (root / "refs/refs/pr/1").write_text(COMMIT)
    (root / "refs/main").write_text(f"{COMMIT}\n")
    local = dit(weights=str(made / "dit"))
    for revision in (COMMIT, "main", "refs/pr/1"):
        cached = dit(weights="owner/name", revision=revision)
        assert cached.weights.digest == local.weights.digest
        assert (cached.weights.repository, cached.weights.revision) == ("owner/name", COMMIT)
    load(cached, ctx())
    with pytest.raises(Unavailable, match="--revision v2"):
        dit(weights="owner/name", revision="v2")
