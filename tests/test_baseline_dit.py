"""DiT's published sampler: its formulas derived another way, diffusers' scheduler, and a whole sample computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_scale import sampled, scale

from baselines.pipelines import dit, recipes
from pagoda_bench.sampling.noise import noise

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
import tiny_pipelines  # noqa: E402


@given(st.integers(2, 1000))
def test_the_short_process_ends_at_the_same_alphas(steps: int) -> None:
    """Betas of the respaced process, multiplied up one after the other, against the products of all thousand."""
    schedule = dit.respaced(steps)
    assert schedule.timesteps[0] == 0
    assert schedule.timesteps[-1] == 999
    assert len(set(schedule.timesteps.tolist())) == steps
    full, products = 1.0, []
    for i in range(1000):
        full *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        products.append(full)
    stride, running = 999 / (steps - 1), 1.0
    for i in range(steps):
        at = round(i * stride)
        assert schedule.timesteps[i] == at
        assert schedule.alpha_bar[i] == pytest.approx(products[at], rel=1e-12)
        beta = 1 - products[at] / running
        assert 1 - schedule.alpha_bar[i] / schedule.before[i] == pytest.approx(beta, rel=1e-9)
        running *= 1 - beta


@given(st.integers(0, 249), st.integers(0, 2**31))
@settings(max_examples=30)
def test_a_step_is_the_product_of_two_gaussians(i: int, seed: int) -> None:
    """q(x_(t-1) | x_t, x0) by Bayes' rule from q(x_(t-1) | x0) and q(x_t | x_(t-1)); its variance at v = -1, beta at v = 1,
    their geometric mean at v = 0."""
    schedule, draw = dit.respaced(250), np.random.default_rng(seed)
    now, before = float(schedule.alpha_bar[i]), float(schedule.before[i])
    x, eps, z = (torch.from_numpy(draw.standard_normal((2, 4, 3, 3))) for _ in range(3))
    x0 = (x - np.sqrt(1 - now) * eps) / np.sqrt(now)
    alpha = now / before
    if i == 0:
        found = dit.ancestral(x, torch.cat([eps, z], 1), None, now, before)
        torch.testing.assert_close(found, x0, rtol=1e-9, atol=1e-9)
        return
    prior, likelihood = 1 / (1 - before), alpha / (1 - alpha)
    variance = 1 / (prior + likelihood)
    mean = variance * (prior * np.sqrt(before) * x0 + likelihood * x / np.sqrt(alpha))
    for v, expected in ((-1.0, variance), (1.0, 1 - alpha), (0.0, np.sqrt(variance * (1 - alpha)))):
        found = dit.ancestral(x, torch.cat([eps, torch.full_like(eps, v)], 1), z, now, before)
        torch.testing.assert_close(found, mean + np.sqrt(expected) * z, rtol=1e-7, atol=1e-7)
    small = dit.ancestral(x, torch.cat([eps, torch.randn_like(eps)], 1), z, now, before, "small")
    torch.testing.assert_close(small, mean + np.sqrt(variance) * z, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("i", [249, 100, 1, 0])
def test_a_step_is_that_of_the_scheduler_of_diffusers(i: int) -> None:
    scheduler = diffusers.DDPMScheduler(
        beta_start=1e-4, beta_end=0.02, variance_type="learned_range", clip_sample=False, timestep_spacing="linspace"
    )
    scheduler.set_timesteps(250)
    schedule = dit.respaced(250)
    np.testing.assert_array_equal(scheduler.timesteps.numpy()[::-1], schedule.timesteps)
    torch.manual_seed(i)
    x, output = torch.randn(2, 4, 3, 3), torch.randn(2, 8, 3, 3)
    theirs = scheduler.step(output, int(schedule.timesteps[i]), x, generator=torch.Generator().manual_seed(7)).prev_sample
    z = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(7)) if i else None
    ours = dit.ancestral(x, output, z, float(schedule.alpha_bar[i]), float(schedule.before[i]))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)  # theirs has its alphas in float32


def test_guidance_moves_three_channels() -> None:
    torch.manual_seed(0)
    c, u = torch.randn(2, 8, 3, 3), torch.randn(2, 8, 3, 3)
    found = dit.guided(c, u, 1.5, 3)
    for channel in range(8):
        expected = u[:, channel] + 1.5 * (c[:, channel] - u[:, channel]) if channel < 3 else c[:, channel]
        torch.testing.assert_close(found[:, channel], expected)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.dit(tmp_path_factory.mktemp("dit"))


def test_a_sample_computed_by_hand(weights: Path) -> None:
    """Two steps of one sample in float64 with scalars, then the decoder: nothing of the module that is tested."""
    generator = recipes.dit(scale(dit={"weights": str(weights), "steps": 2, "guidance": 2.5}), 32)
    images, nfe, _ = sampled(generator, [5])
    assert nfe == 4
    net = diffusers.DiTTransformer2DModel.from_pretrained(weights / "transformer")
    vae = diffusers.AutoencoderKL.from_pretrained(weights / "vae")
    bar = [np.prod([1 - (1e-4 + 0.0199 * i / 999) for i in range(n)]) for n in (1, 1000)]
    x = torch.from_numpy(noise([5], (4, 4, 4), 0)).double()
    with torch.no_grad():
        for now, before, t, stream in ((bar[1], bar[0], 999, 1 << 40), (bar[0], 1.0, 0, None)):
            c, u = (net(x.float(), timestep=torch.tensor([t]), class_labels=torch.tensor([y])).sample.double() for y in (5, 10))
            eps, v = torch.cat([2.5 * c[:, :3] - 1.5 * u[:, :3], c[:, 3:4]], 1), c[:, 4:]
            x0 = (x - (1 - now) ** 0.5 * eps) / now**0.5
            beta = 1 - now / before
            x = before**0.5 * beta / (1 - now) * x0 + (now / before) ** 0.5 * (1 - before) / (1 - now) * x
            if stream is not None:
                z = torch.from_numpy(noise([5], (4, 4, 4), stream)).double()
                share = (v + 1) / 2
                x = x + torch.sqrt(beta**share * (beta * (1 - before) / (1 - now)) ** (1 - share)) * z
        decoded = vae.decode((x / 0.18215).float()).sample
    expected = ((decoded[0].double() + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    assert expected.std() > 5
    assert np.abs(images[0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("options", "conditional", "unconditional"),
    [({}, 3, 3), ({"guidance": 1.0}, 3, 0), ({"guided_channels": 4}, 3, 3), ({"variance": "small"}, 3, 3)],
)
def test_readings_differ_and_are_counted(
    weights: Path, options: dict[str, object], conditional: int, unconditional: int
) -> None:
    generator = recipes.dit(scale(dit={"weights": str(weights), "steps": 3, **options}), 32)
    images, nfe, source = sampled(generator, [0, 1, 2])
    assert (nfe, source.conditional, source.unconditional) == (conditional + unconditional, conditional, unconditional)
    if options:
        plain, _, _ = sampled(recipes.dit(scale(dit={"weights": str(weights), "steps": 3}), 32), [0, 1, 2])
        assert (plain != images).any()


def test_the_reading_of_the_pipeline_is_the_pipeline(tmp_path: Path) -> None:
    """It takes 1000 as the null class, whatever the weights: so a thousand classes."""
    folder = tiny_pipelines.dit(tmp_path / "dit", classes=1000)
    options = {"weights": str(folder), "sampler": "pipeline", "steps": 3, "guidance": 4.0}
    generator = recipes.dit(scale(classes=1000, dit=options), 32)
    images, nfe, source = sampled(generator, [3])
    assert (nfe, source.unconditional) == (6, 3)
    pipeline = diffusers.DiTPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    state = np.random.SeedSequence([0, 3]).generate_state(1, np.uint64)
    stream = torch.Generator().manual_seed(int(state[0]) >> 1)
    made = pipeline([3], guidance_scale=4.0, num_inference_steps=3, generator=stream, output_type="np").images
    assert np.abs(images[0].astype(int) - (made[0] * 255).round()).max() <= 1


def test_another_autoencoder(weights: Path, tmp_path: Path) -> None:
    """Alone in its folder, as sd-vae-ft-ema is published, or in a pipeline."""
    torch.manual_seed(9)
    tiny_pipelines.autoencoder().save_pretrained(tmp_path / "alone")
    own = recipes.dit(scale(dit={"weights": str(weights), "steps": 2}), 32)
    other = recipes.dit(scale(dit={"weights": str(weights), "steps": 2, "vae": str(tmp_path / "alone")}), 32)
    same = recipes.dit(scale(dit={"weights": str(weights), "steps": 2, "vae": str(weights)}), 32)
    first, second, third = (sampled(generator, [0])[0] for generator in (own, other, same))
    assert (first != second).any()
    np.testing.assert_array_equal(first, third)
