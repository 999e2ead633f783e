"""Latent diffusion: the autoencoder against diffusers', its penalties against closed forms, the scale of the latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_scale import toy_scale

from baselines.latent import train
from baselines.latent.net import Autoencoder, Codebook
from baselines.latent.presets import LAYOUTS
from baselines.latent.recipes import Autoencoder as RecipeOfAutoencoder
from baselines.latent.recipes import AutoencoderConfig, Latent, build
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.data import open_dataset
from pagoda_bench.errors import UserError
from pagoda_bench.nets.features import FeatureModel, fold, save_half, to_network
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.stages import FeatureNet, TrainConfig
from pagoda_bench.training.alarm import PINS
from pagoda_bench.training.loop import EMA, Task

SMALL = AutoencoderConfig(widths=(8, 16, 16), layers=2, groups=4)


def image(n: int = 2, size: int = 16) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def randomised(config: AutoencoderConfig) -> Autoencoder:
    net = Autoencoder(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.2, generator=generator)
    return net.eval().requires_grad_(False)


def of_diffusers(config: AutoencoderConfig) -> Any:
    """Their class with the layout of a config."""
    diffusers = pytest.importorskip("diffusers")
    attends = [level in config.attention for level in range(len(config.widths))]
    codebook = {"num_vq_embeddings": config.codes} if config.codes else {}
    return (diffusers.VQModel if config.codes else diffusers.AutoencoderKL)(
        down_block_types=tuple("AttnDownEncoderBlock2D" if at else "DownEncoderBlock2D" for at in attends),
        up_block_types=tuple("AttnUpDecoderBlock2D" if at else "UpDecoderBlock2D" for at in reversed(attends)),
        block_out_channels=config.widths,
        layers_per_block=config.layers,
        latent_channels=config.latent,
        norm_num_groups=config.groups,
        sample_size=16,
        **codebook,
    ).eval()


def test_the_kl_network_is_that_of_diffusers() -> None:
    ours, theirs = randomised(SMALL), of_diffusers(SMALL)
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if k not in ("shift", "scale")}, strict=True)
    with torch.no_grad():
        posterior = theirs.encode(image()).latent_dist
        torch.testing.assert_close(ours.encode(image()).latents, posterior.mean, atol=1e-4, rtol=1e-4)
        # The mean over 3 x 4 x 4 latent values, where diffusers has the sum.
        torch.testing.assert_close(ours.encode(image()).penalty * 48, posterior.kl(), atol=1e-3, rtol=1e-4)
        z = image(2, 4)
        torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", [(), (1,), (0, 2)])
def test_the_vq_network_is_that_of_diffusers(attention: tuple[int, ...]) -> None:
    config = SMALL.model_copy(update={"codes": 11, "attention": attention})
    ours, theirs = randomised(config), of_diffusers(config)
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if k not in ("shift", "scale")}, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(ours.latents_of(image()), theirs.encode(image()).latents, atol=1e-4, rtol=1e-4)
        z = image(2, 4)
        torch.testing.assert_close(ours.image_of(z), theirs.decode(z).sample, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_the_published_layouts_are_those_of_diffusers(name: str) -> None:
    """Every tensor by name and shape, on the meta device."""
    config = AutoencoderConfig.model_validate(LAYOUTS[name])
    with torch.device("meta"):
        ours, theirs = Autoencoder(config), of_diffusers(config)
    shapes = {key: value.shape for key, value in ours.state_dict().items() if key not in ("shift", "scale")}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    assert f"f{config.factor}" == name.partition("-")[2]


def test_the_published_layouts_have_their_sizes() -> None:
    """83,653,863 is what the autoencoder of Stable Diffusion 1 (kl-f8) is known to have."""
    found = {}
    for name, layout in LAYOUTS.items():
        with torch.device("meta"):
            net = Autoencoder(AutoencoderConfig.model_validate(layout))
        found[name] = sum(p.numel() for p in net.parameters())
        assert all(p.device.type == "meta" for p in net.parameters())
    assert found["kl-f8"] == 83_653_863
    # VQ has codes of 3 values; KL has twice the channels in the encoder's last two convolutions.
    assert found["vq-f4"] - found["kl-f4"] == 8192 * 3 - (3 * 512 * 9 + 3) - ((6 * 6 + 6) - (3 * 3 + 3))


def test_the_paper_scale_can_be_built() -> None:
    found = build(toy_scale(latent={"preset": "ldm-4"}), 256)
    assert isinstance(found, Latent)
    assert (found.through.net.factor, found.through.net.codes, found.of.net.resolution) == (4, 8192, 64)
    with torch.device("meta"):
        net = UNet(found.of.unet)
    assert sum(p.numel() for p in net.parameters()) > 2.5e8


def test_kl_is_the_divergence_of_two_gaussians() -> None:
    net, x = randomised(SMALL), image()
    mean, log_variance = net.quant_conv(net.encoder(x)).chunk(2, 1)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).flatten(1).mean(1)
    torch.testing.assert_close(net.encode(x).penalty, expected)
    normal = torch.randn(mean.shape)
    torch.testing.assert_close(net.encode(x, normal).latents, mean + posterior.stddev * normal)
    torch.testing.assert_close(net.latents_of(x), mean)


def test_codes_are_the_nearest_and_gradients_go_through() -> None:
    book = Codebook(7, 3)
    torch.nn.init.normal_(book.embedding.weight)
    h = torch.randn(2, 3, 4, 5, requires_grad=True)
    found, penalty = book(h, 0.25)
    codes = book.embedding.weight.detach()
    by_hand = torch.empty_like(found.detach())
    for b, y, x in np.ndindex(2, 4, 5):
        by_hand[b, :, y, x] = min(codes, key=lambda code: float((code - h.detach()[b, :, y, x]).square().sum()))
    torch.testing.assert_close(found, by_hand)
    torch.testing.assert_close(penalty, 1.25 * (by_hand - h).square().flatten(1).mean(1))
    weights = torch.randn(found.shape)
    (gradient,) = torch.autograd.grad((found * weights).sum(), h, retain_graph=True)
    torch.testing.assert_close(gradient, weights)
    # Towards the image only the commitment pulls, towards the encoder only the codes move.
    (pull,) = torch.autograd.grad(penalty.sum(), h)
    torch.testing.assert_close(pull, 0.25 * 2 * (h - by_hand).detach() / (3 * 4 * 5))


def test_the_measured_scale_gives_the_deviation_of_edm() -> None:
    net, data = randomised(SMALL), open_dataset(EmbeddedData(master=16), lambda digest: Path())
    train.measure(net, data, 16)
    numbers = np.arange(train.MEASURED)
    with torch.no_grad():
        latents = net.normalised(net.latents_of(to_network(data.images(numbers, 16, "train"))))
    per_channel = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(per_channel.mean(1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(per_channel.std(1), torch.full((3,), 0.5), atol=1e-3, rtol=0)
    # What is made of normalised latents is what is made of the latents themselves.
    with torch.no_grad():
        plain = net.latents_of(image())
        torch.testing.assert_close(net.image_of(net.normalised(plain)), net.decode(plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bad", ["none", "autoencoder", "discriminator"])
def test_the_average_follows_the_autoencoder_whatever_becomes_of_its_discriminator(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = FeatureNet(data=EmbeddedData(master=16), train=TrainConfig(steps=1), width=8, resolution=16)
    save_half(fold(FeatureModel(10, 8, 16)), tmp_path / "features.safetensors")
    recipe = RecipeOfAutoencoder(
        data=EmbeddedData(master=16), features=features, resolution=16, net=SMALL, train=TrainConfig(steps=2, batch=4, skips=2)
    )
    tasks: list[Task] = []
    fit, inner, average, averaged = train.fit, train.descend, EMA.update, []
    monkeypatch.setattr(train, "fit", lambda recipe, task, *rest, **how: (tasks.append(task), fit(recipe, task, *rest, **how)))
    monkeypatch.setattr(EMA, "update", lambda self, net, step: (averaged.append(step), average(self, net, step)))

    def spoilt(adam: Any, loss: torch.Tensor, config: TrainConfig) -> dict[str, float]:
        whose = next(name for name, each in tasks[0].optimizers.items() if each is adam)
        return inner(adam, loss * float("nan") if whose == bad else loss, config)

    monkeypatch.setattr(train, "descend", spoilt)
    ctx = StageContext.for_test(tmp_path / "out", tmp_path / "work", {features.key: tmp_path})
    train.autoencoder(recipe, ctx)
    assert ctx.facts.get("skipped", 0) == (0 if bad == "none" else 2)
    assert averaged == ([] if bad == "autoencoder" else [0, 1])
    assert tasks[0].watched == {"d": PINS["hinge"]}


def test_rows_of_the_method() -> None:
    toy = dict(build.facts.toy)  # type: ignore[attr-defined]
    found = build(toy_scale(latent={**toy, "match": "chain"}), 16)
    assert isinstance(found, Latent)
    assert found.through == found.of.autoencoder
    assert (found.through.share, found.of.share, found.of.net.resolution) == (0.5, 1.0, 8)
    assert found.of.match == found.through.match == toy_scale().work_of(16)
    assert not found.sampler.clamp


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"autoencodr": {}}, "unknown key 'autoencodr'"),
        ({"autoencoder": {"net": {"groups": 3}}}, "multiples of groups=3"),
        ({"autoencoder": {"net": {"attention": [2]}}}, "the levels are 0 to 1"),
        ({"autoencoder": {"net": {"latent": 4}}}, "`latent` must be 3"),
        ({"diffusion": {"net": {"resolution": 4}}}, "latents have 8 px, the network 4"),
    ],
)
def test_wrong_values_are_refused_in_one_line(values: dict[str, Any], words: str) -> None:
    from baselines.sections import merged

    toy = dict(build.facts.toy)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=words):
        build(toy_scale(latent=merged(toy, values)), 16)
