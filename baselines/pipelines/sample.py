"""Samplers around diffusers' pipelines: noise by sample index, evaluations counted on the networks, images rounded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.pipelines.components import load_parts
from baselines.pipelines.prompts import Texts
from baselines.pipelines.recipes import IF_BASE, IF_UPSCALER, PARTS, DeepFloyd, Published, TextToImage
from pagoda_bench.data.resize import box_down
from pagoda_bench.nets.features import from_network
from pagoda_bench.sampling.counting import count_evaluations
from pagoda_bench.sampling.network import Draw

ROUNDING = "to nearest"


class PublishedSampler:
    """`draw(batch, labels)` makes `config.native` px images (N, 3, R, R) in [-1, 1] of one pass. `nets` are the networks whose
    evaluations count, `others` only count as parameters."""

    def __init__(
        self,
        config: Published,
        draw: Callable[[Draw], Tensor],
        nets: Sequence[nn.Module],
        others: Sequence[nn.Module],
        classes: int,
        ctx: Any,
    ) -> None:
        self.config, self.draw, self.nets, self.ctx = config, draw, tuple(nets), ctx
        self.resolution, self.classes = config.size, classes
        unique = {id(p): p for net in (*nets, *others) for p in net.parameters()}
        self.parameters = sum(p.numel() for p in unique.values())
        self.conditional = self.unconditional = 0  # evaluations of an image, of the last call
        resize = "none" if config.native == config.size else f"box mean of 8-bit images, {config.native} to {config.size} px"
        ctx.record(rounding=ROUNDING, resize=resize, precision=config.precision, pass_size=config.batch)
        ctx.record(guidance=config.guidance, guidance_form="u + s (c - u)")

    def sample(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[NDArray[np.uint8], int]:
        """Images uint8 (N, size, size, 3), and the network evaluations each took: guidance that is computed as a second half
        of the batch counts twice, and how many there were of either is recorded."""
        made: list[NDArray[np.uint8]] = []
        rows = both = 0
        for start in range(0, len(indices), self.config.batch):
            part = slice(start, start + self.config.batch)
            batch = Draw(indices[part], labels[part], self.config.seed)
            with torch.inference_mode(), ExitStack() as stack:
                counters = [stack.enter_context(count_evaluations(net)) for net in self.nets]
                images = from_network(self.draw(batch).float().cpu())
            made.append(box_down(images, self.config.size))
            evaluated = sum(counter.images for counter in counters)
            rows += evaluated
            both += evaluated - sum(counter.calls for counter in counters) * len(batch)
        nfe, rest = divmod(rows, len(indices))
        if rest:
            raise ValueError(f"{rows} evaluations for {len(indices)} images: not the same number for each")
        self.unconditional = both // len(indices)
        self.conditional = nfe - self.unconditional
        self.ctx.record(nfe_conditional=self.conditional, nfe_unconditional=self.unconditional)
        return np.concatenate(made), nfe


def generators(batch: Draw, seed: int) -> list[torch.Generator]:
    """One generator a sample, on the CPU: its stream depends on the seed and the sample's index alone."""
    states = [np.random.SeedSequence([seed, index]).generate_state(1, np.uint64) for index in batch.indices.tolist()]
    return [torch.Generator().manual_seed(int(state[0]) >> 1) for state in states]


def text_to_image(config: TextToImage, ctx: Any) -> PublishedSampler:
    """The loader of `TextToImage`. Safety checkers are left out: they would replace images that a score is about."""
    import diffusers

    parts = load_parts(config.weights, PARTS[config.pipeline], config.precision)
    texts = Texts(config.prompts, config.data, ctx)
    pipeline = _assemble(getattr(diffusers, config.pipeline), parts)
    unet = parts["unet"]
    side = int(unet.config.sample_size)
    guided: dict[str, Any] = {"num_inference_steps": config.steps, "guidance_scale": config.guidance}

    def draw(batch: Draw) -> Tensor:
        latents = batch.normal(int(unet.config.in_channels), side, side).to(unet.device, unet.dtype)
        made = pipeline(
            prompt=texts.of(batch.indices.numpy(), batch.labels.numpy()),
            latents=latents,
            generator=generators(batch, config.seed),
            output_type="pt",
            return_dict=False,
            **guided,
        )
        images: Tensor = made[0].float() * 2 - 1
        return images

    return PublishedSampler(config, draw, [unet], _networks(parts, unet), len(texts.names), ctx)


def deepfloyd(config: DeepFloyd, ctx: Any) -> PublishedSampler:
    """The loader of `DeepFloyd`. Neither the safety checker nor the visible watermark is applied."""
    import diffusers

    parts = load_parts(config.weights, IF_BASE, config.precision)
    texts = Texts(config.prompts, config.data, ctx)
    base = _assemble(diffusers.IFPipeline, parts)
    nets = [parts["unet"]]
    upscaler: Any = None
    if config.upscaler is not None:
        above = load_parts(config.upscaler, IF_UPSCALER, config.precision)
        nets.append(above["unet"])
        upscaler = _assemble(diffusers.IFSuperResolutionPipeline, {**above, "text_encoder": None, "tokenizer": None})

    def draw(batch: Draw) -> Tensor:
        wanted = texts.of(batch.indices.numpy(), batch.labels.numpy())
        told, null = base.encode_prompt(wanted, do_classifier_free_guidance=True, clean_caption=False)
        # One stream a sample, through both stages.
        streams = generators(batch, config.seed)
        common: dict[str, Any] = {"prompt_embeds": told, "generator": streams, "output_type": "pt", "return_dict": False}
        images: Tensor = base(
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            negative_prompt_embeds=null if config.guidance > 1 else None,
            **common,
        )[0]
        if upscaler is None:
            return images
        made: Tensor = upscaler(
            image=images,
            num_inference_steps=config.upscaler_steps,
            guidance_scale=config.upscaler_guidance,
            negative_prompt_embeds=null if config.upscaler_guidance > 1 else None,
            noise_level=config.noise_level,
            **common,
        )[0]
        return made

    return PublishedSampler(config, draw, nets, _networks(parts, nets[0]), len(texts.names), ctx)


def _assemble(cls: Any, parts: dict[str, Any]) -> Any:
    """A pipeline of loaded components, without what looks at or changes finished images."""
    extra: dict[str, Any] = {}
    if "XL" in cls.__name__:
        extra = {"add_watermarker": False}
    else:
        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if cls.__name__.startswith("IF"):
        extra["watermarker"] = None
    pipeline = cls(**parts, **extra)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _networks(parts: dict[str, Any], apart: nn.Module) -> list[nn.Module]:
    return [part for part in parts.values() if isinstance(part, nn.Module) and part is not apart]
