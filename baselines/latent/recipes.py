"""The two stages and the row of latent diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from baselines.latent.presets import PRESETS
from baselines.sections import match_of, section
from pagoda_bench.recipes.base import Config
from pagoda_bench.recipes.methods import describe
from pagoda_bench.recipes.samplers import SamplerConfig
from pagoda_bench.recipes.stages import FeatureNet, Generator, UNetConfig
from pagoda_bench.recipes.trained import Trained

if TYPE_CHECKING:
    from pagoda_bench.tables.scales import Scale


class AutoencoderConfig(Config):
    """The convolutional autoencoder of latent diffusion, under the names of diffusers' `AutoencoderKL` and `VQModel`. Each
    width after the first halves the resolution."""

    widths: tuple[int, ...] = (128, 256, 512)
    layers: int = Field(1, ge=1)  # residual blocks of a level of the encoder; the decoder has one more
    latent: int = 3  # channels
    groups: int = 32  # of the norms
    codes: int = Field(0, ge=0)  # size of the codebook (VQ); 0: a Gaussian posterior (KL)
    attention: tuple[int, ...] = ()  # levels, 0 the finest, that have it behind each block; the middle always has it

    @property
    def factor(self) -> int:
        """How many times smaller the latents are."""
        return int(2 ** (len(self.widths) - 1))

    @model_validator(mode="after")
    def _divisible(self) -> AutoencoderConfig:
        if not self.widths or any(w % self.groups for w in self.widths):
            raise ValueError(f"widths {list(self.widths)} must all be multiples of groups={self.groups}")
        if unknown := [level for level in self.attention if not 0 <= level < len(self.widths)]:
            raise ValueError(f"attention at level {unknown[0]}, but the levels are 0 to {len(self.widths) - 1}")
        return self


class AutoencoderLoss(Config):
    """L = |x - x'| + perceptual * distance of feature maps + weight * KL (or VQ) + adversarial * lambda * L_adv, where lambda
    balances the gradients at the decoder's last layer (Esser et al. 2021). |x - x'| and KL are means over their values."""

    perceptual: float = Field(1.0, ge=0)
    kl: float = Field(1e-6, ge=0)  # the published number, but of means: there it weighs sums, and is less by D_latent / D_image
    commitment: float = Field(0.25, ge=0)  # beta of VQ (van den Oord et al. 2017)
    adversarial: float = Field(0.5, ge=0)
    adversarial_from: int = Field(0, ge=0)  # the step at which the discriminator joins
    lr_discriminator: float = 1e-3


class Autoencoder(Trained, kind="autoencoder"):
    """Stage 1: images to latents and back. Real images only; the labels are seen by the discriminator."""

    runner: ClassVar[str] = "baselines.latent.train:autoencoder"
    distributed: ClassVar[bool] = True

    features: FeatureNet
    resolution: int
    net: AutoencoderConfig
    loss: AutoencoderLoss = AutoencoderLoss()

    @property
    def title(self) -> str:
        return f"autoencoder {self.resolution}px f{self.net.factor}"


class LatentDiffusion(Trained, kind="latent-diffusion", version=2):
    """Stage 2: an EDM diffusion model of the latents, which are shifted and scaled to EDM's deviation of 0.5 a channel.

    With `drop`, that part of the labels is replaced by one more class, "none", whose number is `net.classes`: the model then
    knows the latents without a class too, as classifier-free guidance wants (Ho and Salimans, arXiv 2207.12598).
    """

    runner: ClassVar[str] = "baselines.latent.train:diffusion"
    distributed: ClassVar[bool] = True

    autoencoder: Autoencoder
    net: UNetConfig
    p_mean: float = -1.2
    p_std: float = 1.2
    drop: float = Field(0.0, ge=0, lt=1)

    @property
    def unet(self) -> UNetConfig:
        """The network as it is built: with the class "none" where labels are dropped."""
        return self.net.model_copy(update={"classes": self.net.classes + 1}) if self.drop else self.net

    @model_validator(mode="after")
    def _fits(self) -> LatentDiffusion:
        expected = self.autoencoder.resolution // self.autoencoder.net.factor
        if self.net.resolution != expected or self.net.output_resolution != expected:
            raise ValueError(f"the latents have {expected} px, the network {self.net.resolution}: set net.resolution")
        if self.autoencoder.net.latent != 3:
            raise ValueError("the diffusion network has three channels: the autoencoder's `latent` must be 3")
        return self

    @property
    def title(self) -> str:
        return f"latent diffusion {self.autoencoder.resolution}px"


class Latent(Generator, kind="latent"):
    """Sampled latents, decoded. Evaluations are the diffusion network's, as published; the decoder counts as parameters."""

    loader: ClassVar[str] = "baselines.latent.sample:load"
    of: LatentDiffusion
    through: Autoencoder
    sampler: SamplerConfig = SamplerConfig(clamp=False)

    @property
    def resolution(self) -> int:
        return self.of.autoencoder.resolution


KNOWN = {"autoencoder", "diffusion", "sampler", "match"}


@describe(
    title="Latent diffusion",
    paper="arXiv 2112.10752",
    reference="baselines/latent; autoencoder under diffusers' key names",
    weights="autoencoder weights of diffusers' layout can be loaded into the network; no row of LDM's own weights",
    licence="CompVis/latent-diffusion MIT",
    tested="diffusers' AutoencoderKL and VQModel on copied random weights; KL and VQ terms in closed form",
    toy={
        "autoencoder": {"net": {"widths": [8, 16], "groups": 4}, "train": {"steps": 4, "batch": 8, "warmup": 1}},
        "diffusion": {
            "net": {"channels": 16, "encoder": [1, 2], "attention": [4], "group_channels": 4},
            "train": {"steps": 4, "batch": 8, "warmup": 1},
        },
        "sampler": {"points": 3},
        "match": None,
    },
)
def build(scale: Scale, resolution: int) -> Generator:
    """The generator at a resolution of the scale: an autoencoder of its own, then a diffusion model of its latents."""
    where = f"scale '{scale.name}', methods.latent"
    values = section(PRESETS, scale.methods.get("latent", {}), scale.name, "latent", KNOWN)
    model = model_of(values, match_of(values, scale, resolution), scale, resolution, where)
    sampler = {"clamp": False, **values.get("sampler", {})}
    return Latent.load({"of": model, "through": model.autoencoder, "sampler": sampler}, where)


def model_of(values: Mapping[str, Any], match: Any, scale: Scale, resolution: int, where: str) -> LatentDiffusion:
    """The diffusion model, on its autoencoder, of the sections `autoencoder` and `diffusion`."""
    shared: dict[str, Any] = {"data": scale.data, "seed": scale.seed, "match": match}
    first = {**values["autoencoder"], **shared, "features": scale.feature_net(), "resolution": resolution}
    autoencoder = Autoencoder.load(first, f"{where}.autoencoder")
    second = {**values["diffusion"], **shared, "autoencoder": autoencoder}
    second["net"] = {"resolution": resolution // autoencoder.net.factor, **second.get("net", {})}
    return LatentDiffusion.load(second, f"{where}.diffusion")
