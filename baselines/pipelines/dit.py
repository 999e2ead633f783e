"""The published sampler of DiT (Peebles and Xie 2023, whose code follows Dhariwal and Nichol 2021), which diffusers' own
pipeline is not: ancestral sampling on 250 of 1000 steps with the learned variance, guidance on some channels only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.pipelines.components import load_parts
from baselines.pipelines.recipes import DIT, SCHEDULER, VAE, DiTPublished
from baselines.pipelines.sample import PublishedSampler, generators
from pagoda_bench.sampling.network import Draw

TRAINED = 1000
BETAS = (1e-4, 0.02)  # linear (Ho et al. 2020)


@dataclass(frozen=True)
class Schedule:
    """The respaced process, from clean to noisy: the trained timesteps that it visits (S,) int64, and the products of alphas
    there and one step nearer to the image, float64 (S,)."""

    timesteps: NDArray[np.int64]
    alpha_bar: NDArray[np.float64]
    before: NDArray[np.float64]


def respaced(steps: int) -> Schedule:
    """`steps` of the trained timesteps in equal strides from the first to the last, rounded to even at halves (Nichol and
    Dhariwal 2021, Section 4). Betas of the shorter process are 1 - alpha_bar(t_i) / alpha_bar(t_(i-1))."""
    timesteps = np.round(np.arange(steps) * ((TRAINED - 1) / (steps - 1))).astype(np.int64)
    alpha_bar = np.cumprod(1 - np.linspace(*BETAS, TRAINED), dtype=np.float64)[timesteps]
    return Schedule(timesteps, alpha_bar, np.concatenate([np.ones(1), alpha_bar[:-1]]))


def guided(conditional: Tensor, unconditional: Tensor, guidance: float, channels: int) -> Tensor:
    """u + s (c - u) on the first `channels`; the others, and the variance, are those of the condition. (N, 2C, h, w)."""
    c, u = conditional[:, :channels], unconditional[:, :channels]
    return torch.cat([u + guidance * (c - u), conditional[:, channels:]], 1)


def ancestral(
    x: Tensor, output: Tensor, noise: Tensor | None, alpha_bar: float, before: float, variance: str = "learned"
) -> Tensor:
    """One step of p(x_(t-1) | x_t), (N, C, h, w). `output` (N, 2C, h, w) holds epsilon and v; without `noise` the mean.

    The mean is that of q(x_(t-1) | x_t, x0) at the predicted x0 (Ho et al. 2020, Eq. 7), x0 not clipped. The variance is
    exp(f log beta + (1 - f) log beta~), f = (v + 1) / 2 (Nichol and Dhariwal 2021, Eq. 15), or beta~ ("small").
    """
    eps, v = output.chunk(2, 1)
    beta = 1 - alpha_bar / before
    x0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    mean = (before**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - before) * x) / (1 - alpha_bar)
    if noise is None:
        return mean
    low, high = float(np.log(beta * (1 - before) / (1 - alpha_bar))), float(np.log(beta))
    log_variance = low + (v + 1) / 2 * (high - low) if variance == "learned" else torch.full_like(v, low)
    return mean + (0.5 * log_variance).exp() * noise


def latents(net: nn.Module, config: DiTPublished, batch: Draw, shape: tuple[int, int, int]) -> Tensor:
    """The latents of one pass, (N, C, h, w), by the published sampler. Both halves of guidance are one call of `net`."""
    schedule = respaced(config.steps)
    like = next(net.parameters())
    labels = batch.labels.to(like.device)
    if config.guidance > 1:  # the null class stands behind the others
        labels = torch.cat([labels, torch.full_like(labels, config.classes)])
    x = batch.normal(*shape).to(like.device)
    for i in range(config.steps - 1, -1, -1):
        twice = torch.cat([x, x]) if config.guidance > 1 else x
        time = torch.full((len(twice),), int(schedule.timesteps[i]), device=like.device)
        output = net(twice.to(like.dtype), timestep=time, class_labels=labels).sample.float()
        if config.guidance > 1:
            conditional, unconditional = output.chunk(2)
            output = guided(conditional, unconditional, config.guidance, config.guided_channels)
        noise = batch.normal(*shape).to(like.device) if i else None
        x = ancestral(x, output, noise, float(schedule.alpha_bar[i]), float(schedule.before[i]), config.variance)
    return x


def load(config: DiTPublished, ctx: Any) -> PublishedSampler:
    """The loader of `DiTPublished`."""
    parts = (DIT, *(() if config.vae else (VAE,)), *((SCHEDULER,) if config.sampler == "pipeline" else ()))
    found = load_parts(config.weights, parts, config.precision)
    if config.vae is not None:
        found |= _autoencoder(config)
    net, vae = found["transformer"], found["vae"]
    shape = (int(net.config.in_channels), int(net.config.sample_size), int(net.config.sample_size))

    def published(batch: Draw) -> Tensor:
        z = latents(net, config, batch, shape) / vae.config.scaling_factor
        images: Tensor = vae.decode(z.to(vae.dtype)).sample
        return images

    draw = published if config.sampler == "published" else _pipeline(found, config)
    return PublishedSampler(config, draw, [net], [vae], config.classes, ctx)


def _autoencoder(config: DiTPublished) -> dict[str, Any]:
    """One that lies elsewhere: below `vae` of a pipeline, or alone in a folder."""
    assert config.vae is not None
    alone = not (Path(config.vae.place) / "vae").is_dir()
    return load_parts(config.vae, (VAE,), config.precision, root="vae" if alone else "")


def _pipeline(found: dict[str, Any], config: DiTPublished) -> Any:
    """diffusers' own reading, on the noise of the same generators."""
    import diffusers

    pipeline: Any = diffusers.DiTPipeline(found["transformer"], found["vae"], found["scheduler"])
    pipeline.set_progress_bar_config(disable=True)

    def draw(batch: Draw) -> Tensor:
        made = pipeline(
            class_labels=batch.labels.tolist(),
            guidance_scale=config.guidance,
            generator=generators(batch, config.seed),
            num_inference_steps=config.steps,
            output_type="pt",
            return_dict=False,
        )
        images: Tensor = made[0].float() * 2 - 1
        return images

    return draw
