"""Whole samplers, from noise to images of 8 bits, against the nearest public ones of as many evaluations: ratios.

    python -m pytest -m slow tests/bench_samplers.py -s        prints rows of the table of docs/baselines.md

Ours are the samplers that the rows of the baselines' table load, theirs diffusers' pipelines, or its networks and schedulers
where a pipeline takes no classes or other networks. Networks have random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.cascade.net import SuperResolutionUNet
from baselines.cascade.recipes import SuperResolution
from baselines.consistency.recipes import ConsistencyDistillation
from baselines.gan.net import StyleNet
from baselines.gan.recipes import GanGrown
from baselines.greedy.net import GreedyNet
from baselines.greedy.recipes import GreedyGrown
from baselines.latent.net import Autoencoder as Coder
from baselines.latent.recipes import Autoencoder, AutoencoderConfig, LatentDiffusion
from baselines.lcm.recipes import LatentConsistency
from baselines.pipelines.dit import latents
from baselines.pipelines.recipes import DiTPublished
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.nets.features import from_network, save_half
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.stages import EDM, Generator
from pagoda_bench.sampling.generators import load
from pagoda_bench.sampling.network import Draw
from tests.peers import (
    CLASSES,
    INSTALL,
    SHAPES,
    Case,
    DiffusersUNet,
    Side,
    compare,
    diffusers_coder,
    generator,
    lightweight_gan,
    lucidrains_uvit,
    parameters,
)
from tests.toy_scale import models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),  # HeunDiscrete
]
BATCH = 4  # of the dearer samplers; many small images where they are cheap
MANY = 32
NETWORKS: dict[type[Recipe], Callable[[Any], nn.Module]] = {
    EDM: lambda recipe: UNet(recipe.net),
    SuperResolution: lambda recipe: SuperResolutionUNet(recipe.net),
    ConsistencyDistillation: lambda recipe: UNet(recipe.unet),
    Autoencoder: lambda recipe: Coder(recipe.net),
    LatentDiffusion: lambda recipe: UNet(recipe.unet),
    LatentConsistency: lambda recipe: UNet(recipe.net),
    GreedyGrown: lambda recipe: GreedyNet(recipe.core, recipe.outer),
    GanGrown: lambda recipe: StyleNet(recipe.style),
}


def classes(batch: int) -> np.ndarray:
    return np.arange(batch) % CLASSES


def ours(config: Generator, folder: Path, batch: int = BATCH) -> Side:
    """The sampler of a row on random weights."""
    inputs = {}
    for recipe in models(config):
        if type(recipe) in NETWORKS:
            inputs[recipe.key] = folder / recipe.key
            inputs[recipe.key].mkdir(exist_ok=True)
            save_half(NETWORKS[type(recipe)](recipe).state_dict(), inputs[recipe.key] / "model.safetensors")
    sampler = load(config, StageContext.for_test(folder / "out", folder / "work", inputs))
    return Side(lambda: sampler.sample(np.arange(batch), classes(batch)), sampler.parameters)


def theirs(draw: Callable[[], Tensor], *nets: nn.Module) -> Side:
    """`draw()` gives images in [-1, 1]; the last step, to 8 bits, is ours."""
    for net in nets:
        net.eval().requires_grad_(False)

    def run() -> None:
        with torch.inference_mode():
            from_network(draw())

    return Side(run, parameters(*nets))


def walk(net: nn.Module, scheduler: Any, shape: tuple[int, int, int], steps: int, *more: Tensor, **how: int) -> Tensor:
    """A batch by one of diffusers' schedulers, as its pipelines do it."""
    scheduler.set_timesteps(steps, **how)
    labels = torch.from_numpy(classes(BATCH))
    x = torch.randn(BATCH, *shape) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(net(scheduler.scale_model_input(x, t), t, labels, *more), t, x).prev_sample
    return x


def library() -> Any:
    return pytest.importorskip("diffusers", reason=INSTALL)


def heun_of(diffusers: Any) -> Any:
    """Two evaluations a step and one for the last, as EDM's."""
    return diffusers.HeunDiscreteScheduler(use_karras_sigmas=True)


def edm(folder: Path, solver: str, scheduler: Callable[[Any], Any]) -> Case:
    config: Any = generator("edm", 64, **({} if solver == "heun" else {"solver": solver}))
    net, chosen = DiffusersUNet(config.of.net), scheduler(library())
    return Case(ours(config, folder), theirs(lambda: walk(net, chosen, (3, 64, 64), 12), net), BATCH)


def consistency(folder: Path, timesteps: list[int]) -> Case:
    """diffusers' pipeline, with pixels as inputs as here. The second noise level costs the same whatever it is."""
    diffusers, levels = library(), [0.8] * (len(timesteps) - 1)
    config: Any = generator("cd", 8, levels=levels)
    net = DiffusersUNet(config.of.unet).net
    pipeline = diffusers.ConsistencyModelPipeline(net, diffusers.CMStochasticIterativeScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> Tensor:
        chosen = {"num_inference_steps": None, "timesteps": timesteps}
        return pipeline(MANY, classes(MANY).tolist(), **chosen, output_type="pt", return_dict=False)[0] * 2 - 1

    return Case(ours(config, folder, MANY), theirs(draw, net), MANY)


def cascade(folder: Path) -> Case:
    """The base and two stages, 81 evaluations. Their stages see the enlarged image beside the noisy one."""
    diffusers = library()
    config: Any = generator("cascade", 64)
    nets = [DiffusersUNet(config.base.net), *(DiffusersUNet(stage.net, beside=3) for stage in config.stages)]
    sizes = [config.base.net.resolution, *(stage.net.resolution for stage in config.stages)]

    def draw() -> Tensor:
        low: list[Tensor] = []
        for net, size, points in zip(nets, sizes, config.points, strict=True):
            enlarged = [F.interpolate(image + 0.1 * torch.randn_like(image), size=size, mode="bilinear") for image in low]
            low = [walk(net, heun_of(diffusers), (3, size, size), points, *enlarged)]
        return low[0]

    return Case(ours(config, folder), theirs(draw, *nets), BATCH)


def latent(folder: Path, method: str, scheduler: Callable[[Any], Any], steps: int, **how: int) -> Case:
    """The decoder is part of it."""
    config: Any = generator(method, 64)
    net = DiffusersUNet(config.of.unet if method == "latent" else config.of.teacher.unet)
    coder = diffusers_coder(config.through.net)
    chosen = scheduler(library())

    def draw() -> Tensor:
        decoded: Tensor = coder.decode(walk(net, chosen, (3, 16, 16), steps, **how)).sample
        return decoded

    return Case(ours(config, folder), theirs(draw, net, coder), BATCH)


def dit(folder: Path) -> Case:
    """Both on one network of diffusers' and one decoder: what differs is the sampler. Ten guided steps of a small DiT."""
    diffusers = library()
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=6, sample_size=16
    )
    coder = diffusers_coder(AutoencoderConfig(widths=(32, 48, 64), groups=8, latent=4))
    pipeline = diffusers.DiTPipeline(net, coder, diffusers.DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    fields = {"steps": 10, "guidance": 4.0, "classes": 1000, "guided_channels": 3, "variance": "learned"}
    config = DiTPublished.model_construct(**fields)  # weights are not read

    def own() -> Tensor:
        found: Tensor = coder.decode(latents(net, config, Draw(np.arange(BATCH), classes(BATCH)), (4, 16, 16))).sample
        return found

    def pipelined() -> Tensor:
        made = pipeline(
            classes(BATCH).tolist(), guidance_scale=4.0, num_inference_steps=10, output_type="np", return_dict=False
        )
        return torch.from_numpy(made[0]).permute(0, 3, 1, 2) * 2 - 1

    return Case(theirs(own, net, coder), theirs(pipelined, net, coder), BATCH)


def greedy(folder: Path) -> Case:
    """Against ancestral sampling of the package that has the U-ViT: 23 evaluations on either side."""
    net = lucidrains_uvit()
    module = pytest.importorskip("denoising_diffusion_pytorch.simple_diffusion", reason=INSTALL)
    process = module.GaussianDiffusion(net, image_size=64, num_sample_steps=23)

    def draw() -> Tensor:
        with patch.object(module, "tqdm", lambda steps, **_: steps):
            made: Tensor = process.sample(BATCH)
        return made * 2 - 1

    return Case(ours(generator("greedy", 64), folder), theirs(draw, net), BATCH)


def gan(folder: Path) -> Case:
    net = lightweight_gan().Generator(latent_dim=96, **SHAPES)
    return Case(ours(generator("gan", 64), folder, MANY), theirs(lambda: net(torch.randn(MANY, 96)), net), MANY)


CASES: dict[str, Callable[[Path], Case]] = {
    "EDM, Heun, 23 evaluations": lambda folder: edm(folder, "heun", heun_of),
    "EDM, Euler, 12": lambda folder: edm(folder, "euler", lambda diffusers: diffusers.EDMEulerScheduler()),
    "EDM, DDIM, 12": lambda folder: edm(folder, "ddim", lambda diffusers: diffusers.DDIMScheduler()),
    "consistency, 8 px, 1": lambda folder: consistency(folder, [0]),
    "consistency, 8 px, 2": lambda folder: consistency(folder, [22, 0]),
    "cascade, 81": cascade,
    "latent diffusion, Heun, 23": lambda folder: latent(folder, "latent", heun_of, 12),
    "latent consistency, 4": lambda folder: latent(
        folder, "lcm", lambda diffusers: diffusers.LCMScheduler(), 4, original_inference_steps=50
    ),
    "DiT, guided, 10 steps": dit,
    "greedy growing, 23": greedy,
    "GAN, 1": gan,
}


@pytest.mark.parametrize("name", CASES)
def test_no_slower_than_the_public_sampler(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert compare(f"{name}: sampling", CASES[name](tmp_path)) >= 1.0
