"""The losses of the one-step generators: what they look through, what they compare, how they are weighed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pagoda_bench.recipes.base import Config

Decay = Annotated[float, Field(ge=0, lt=1)]


class ProjectedConfig(Config):
    """Random-projection features of pretrained backbones (StyleGAN-XL; nets/projection.py)."""

    backbones: tuple[Literal["vit", "cnn"], ...] = ("vit", "cnn")
    weights: Literal["pretrained", "random"] = "pretrained"  # of the backbones; random ones are drawn from `seed`
    batch_norm: Literal["official", "cleanbn"] = "official"
    seed: int = Field(0, ge=0)  # of the projections


class LossConfig(Config):
    """L = L_rec + lambda L_adv. `adaptive` balances the two by the ratio of gradient norms, clipped to [0.01, 10]."""

    reconstruction: float = Field(1.0, ge=0)
    pixel: float = Field(0.5, ge=0)  # weight of the L1 distance inside L_rec
    adversarial: float = Field(1.0, ge=0)
    adaptive: bool = True
    lr_discriminator: float = Field(1e-3, ge=0)
    betas_discriminator: tuple[Decay, Decay] = (0.0, 0.99)
    discriminator_steps: int = Field(1, ge=1)  # updates of the discriminator on the maps of one step
    discriminator_width: int = Field(32, ge=1)
    augment: bool = True
    eps: float = Field(1e-10, ge=0)  # added to the length of a feature vector before it is normalised; 1e-10 as published
    fraction: float = Field(1.0, gt=0, le=1)  # of the pairs that L_rec sees; L_adv sees all real images
    pairs_share: float = Field(1.0, gt=0, le=1)  # pairs in a step, as a share of its batch; all of it is fresh noise for L_adv
    features: Literal["embedded", "projected"] = "embedded"  # what L_rec and the discriminator look through
    projected: ProjectedConfig = ProjectedConfig()
    distance: Literal["features", "lpips", "l2"] = "features"  # of L_rec
    discriminator: Literal["light", "deep", "stylegan-xl"] = "light"
    gan: Literal["hinge", "non-saturating"] = "hinge"
    updates: Literal["joint", "separate"] = "joint"  # L_rec and L_adv in one step of the optimiser, or one after the other
    adversarial_rec: float = Field(0.0, ge=0)  # weight of a second discriminator, which judges reconstructions (0.5 at 512 px)
    adaptive_rec: bool = True  # its weight times the ratio of gradient norms, also with separate updates
    distillation: float = Field(1.0, ge=0)  # weight of L_dstl, where a generator learns guidance
    adversarial_guidance: Literal["all", "none"] = "all"  # weights w of the fakes: from the whole range, or 0
