"""Rows of published weights, on tiny pipelines of the same classes: what they sample, count and record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_scale import ctx, sampled, scale

from baselines.pipelines import components, places, prompts, recipes, sample
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.data import EmbeddedData, PreparedData
from pagoda_bench.recipes.stages import Generator
from pagoda_bench.sampling.generators import load
from pagoda_bench.sampling.network import Draw
from pagoda_bench.sampling.noise import noise

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
import tiny_pipelines  # noqa: E402

# EulerDiscreteScheduler makes an array of a tensor in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("weights")
    tiny_pipelines.dit(place / "dit")
    tiny_pipelines.stable_diffusion(place / "sd")
    tiny_pipelines.stable_diffusion_xl(place / "xl")
    tiny_pipelines.lcm(place / "lcm")
    tiny_pipelines.deepfloyd(place / "if")
    return place


Make = Callable[[Path], Generator]
ROWS: dict[str, tuple[Make, int, int]] = {  # the generator, conditional and unconditional evaluations
    "dit": (lambda at: recipes.dit(scale(dit={"weights": str(at / "dit"), "steps": 3}), 32), 3, 3),
    # PNDM's multi-step method evaluates its first step twice.
    "sd": (lambda at: recipes.stable_diffusion(scale(sd={"weights": str(at / "sd"), "steps": 3}), 32), 4, 4),
    "sd-free": (
        lambda at: recipes.stable_diffusion(scale(sd={"weights": str(at / "sd"), "steps": 3, "guidance": 1}), 16),
        4,
        0,
    ),
    "xl": (lambda at: recipes.stable_diffusion(scale(sd={"weights": str(at / "xl"), "steps": 2}), 32), 2, 2),
    "lcm": (lambda at: recipes.lcm(scale(lcm_released={"weights": str(at / "lcm"), "steps": 2}), 32), 2, 0),
    "if": (lambda at: deepfloyd(at, 16), 3, 3),
    "if-two": (lambda at: deepfloyd(at, 32, upscaler_guidance=1), 5, 3),
}


def deepfloyd(at: Path, resolution: int, **options: Any) -> Generator:
    given = {"licence": "accepted", "weights": str(at / "if" / "one"), "upscaler": str(at / "if" / "two")}
    section = {**given, "steps": 3, "upscaler_steps": 2, **options}
    return recipes.deepfloyd(scale(**{"if": section}), resolution)


@pytest.mark.parametrize("name", list(ROWS))
def test_an_image_is_the_same_in_any_batch(name: str, folder: Path) -> None:
    make, conditional, unconditional = ROWS[name]
    generator = make(folder)
    images, nfe, source = sampled(generator, [0, 1, 2, 3, 4])
    assert (nfe, source.conditional, source.unconditional) == (conditional + unconditional, conditional, unconditional)
    assert images.std() > 5
    assert (images[1:] != images[:1]).any((1, 2, 3)).all()
    # Another order, other neighbours, another size of the pass.
    single = generator.model_copy(update={"batch": 1})
    for other, order in ((generator, [4, 2]), (single, [3, 0, 1])):
        again, _, _ = sampled(other, order)
        assert np.abs(again.astype(int) - images[order].astype(int)).max() <= 1
    # Another seed is another image; the class or the caption counts.
    seeded, _, _ = sampled(generator.model_copy(update={"seed": 1}), [0])
    assert (seeded[0] != images[0]).any()
    told, _ = source.sample(np.array([0]), np.array([7]))
    assert (told[0] != images[0]).any()


def test_parameters_are_those_of_all_networks(folder: Path) -> None:
    from safetensors import safe_open

    for name, parts in (("sd", ("unet", "vae", "text_encoder")), ("dit", ("transformer", "vae"))):
        count = 0
        for part in parts:
            (path,) = (folder / name / part).glob("*.safetensors")
            with safe_open(path, "pt") as file:
                count += sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
        assert load(ROWS[name][0](folder), ctx()).parameters == count


@pytest.mark.parametrize("name", ["sd", "xl", "lcm"])
def test_a_row_is_the_pipeline_called_by_hand(name: str, folder: Path) -> None:
    images, _, _ = sampled(ROWS[name][0](folder), [13])
    cls = getattr(diffusers, recipes.TextToImage.model_validate(ROWS[name][0](folder)).pipeline)
    pipeline = cls.from_pretrained(folder / name, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    data = prompts.open_dataset(EmbeddedData(master=32))
    number = np.array([(2**31 // 10 + 1) * 10 + 3])  # rank 1 of class 3, from the far end
    made = pipeline(
        prompt=data.captions(number, "val")[0],  # type: ignore[attr-defined]
        latents=torch.from_numpy(noise([13], (4, 4, 4), 0)),
        generator=sample.generators(Draw(np.array([13]), np.array([3])), 0),
        num_inference_steps=2 if name != "sd" else 3,
        guidance_scale={"sd": 7.5, "xl": 5.0, "lcm": 8.5}[name],
        output_type="pil",
    ).images[0]
    assert np.abs(images[0].astype(int) - np.asarray(made).astype(int)).max() <= 1


def test_deepfloyd_is_its_pipelines_called_by_hand(folder: Path) -> None:
    one, two = folder / "if" / "one", folder / "if" / "two"
    images, _, _ = sampled(deepfloyd(folder, 32, prompts={"source": "classes", "template": "photo of {}"}), [2])
    base = diffusers.IFPipeline.from_pretrained(one, use_safetensors=True)
    above = diffusers.IFSuperResolutionPipeline.from_pretrained(two, use_safetensors=True)
    for pipeline in (base, above):
        pipeline.set_progress_bar_config(disable=True)
    stream = sample.generators(Draw(np.array([2]), np.array([2])), 0)
    words = {"prompt": ["photo of ring on dark"], "generator": stream, "clean_caption": False, "output_type": "pt"}
    low = base(num_inference_steps=3, **words).images
    made = above(image=low, num_inference_steps=2, **words).images[0]
    expected = ((made + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(images[0].astype(int) - expected).max() <= 1


def test_smaller_rows_are_box_means(folder: Path) -> None:
    large = recipes.stable_diffusion(scale(sd={"weights": str(folder / "sd"), "steps": 1}), 32)
    small = recipes.stable_diffusion(scale(sd={"weights": str(folder / "sd"), "steps": 1}), 16)
    wide, narrow = sampled(large, [0, 1])[0], sampled(small, [0, 1])[0]
    means = wide.reshape(2, 16, 2, 16, 2, 3).astype(float).mean((2, 4))
    np.testing.assert_array_equal(narrow, np.rint(means))


def test_what_is_recorded(folder: Path) -> None:
    context = ctx()
    source = load(recipes.stable_diffusion(scale(sd={"weights": str(folder / "sd"), "steps": 1}), 16), context)
    source.sample(np.arange(2), np.arange(2))
    assert context.facts == {
        "rounding": "to nearest",
        "resize": "box mean of 8-bit images, 32 to 16 px",
        "precision": "float32",
        "pass_size": 4,
        "guidance": 7.5,
        "guidance_form": "u + s (c - u)",
        "nfe_conditional": 1,
        "nfe_unconditional": 1,
    }


def test_prompts() -> None:
    assert prompts.prompt("a photo of a {}", "tench, Tinca tinca") == "a photo of a tench"
    assert prompts.prompt("{} on a table", "hot_dog") == "hot dog on a table"
    data, numbers = EmbeddedData(master=16), np.array([0, 3])
    classes = prompts.Texts(recipes.Prompts(template="a photo of a {}"), data, ctx())
    assert classes.of(numbers, numbers) == ["a photo of a disc on dark", "a photo of a ring on light"]
    told = prompts.Texts(recipes.Prompts(source="captions"), data, ctx()).of(numbers, numbers)
    assert all(" disc with " in told[0] or " ring with " in text for text in told[1:])
    given = prompts.Texts(recipes.Prompts(names=("cat", "dog")), PreparedData(digest="0" * 64, classes=2), ctx())
    assert given.of(np.array([1]), np.array([1])) == ["a photo of a dog"]
    with pytest.raises(UserError, match="a template says"):
        recipes.Prompts.load({"template": "a photo"}, "prompts")


def test_weights_are_mapped_and_never_copied(tmp_path: Path) -> None:
    """Memory of the process that no file backs, before and after: float32 weights stay in their file."""
    status = Path("/proc/self/status")
    if not status.is_file() or "RssAnon" not in status.read_text():
        pytest.skip("needs Linux")

    def anonymous() -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    net = diffusers.DiTTransformer2DModel(num_attention_heads=8, attention_head_dim=64, out_channels=8, num_layers=5)
    size = sum(p.numel() for p in net.parameters()) * 4
    net.save_pretrained(tmp_path / "transformer")
    weights = recipes.Weights(
        digest=places.inspect(places.Place(tmp_path), (recipes.DIT,)).digest, place=str(tmp_path), variant=""
    )
    before = anonymous()
    loaded = components.load_parts(weights, (recipes.DIT,), "float32")["transformer"]
    assert anonymous() - before < size / 4
    for mine, theirs in zip(loaded.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, theirs)
