"""Recipes and the row of a style-based GAN that is grown level by level, everything below frozen (arXiv 2202.00273)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from baselines.gan.presets import PRESETS
from baselines.sections import match_of, section
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Config
from pagoda_bench.recipes.losses import ProjectedConfig
from pagoda_bench.recipes.methods import describe
from pagoda_bench.recipes.stages import FeatureNet, Generator
from pagoda_bench.recipes.trained import Trained

if TYPE_CHECKING:
    from pagoda_bench.tables.scales import Scale


class StyleConfig(Config):
    """A generator. Block i works at grid * 2^i px, with `channels[i]` channels in `layers[i]` styled convolutions."""

    grid: int = Field(4, gt=0)  # px of the learnt constant
    channels: tuple[int, ...]
    layers: tuple[int, ...]
    # of z: small, since natural images have few dimensions of their own (2202.00273, Section 3.1)
    latent: int = Field(64, gt=0)
    width: int = Field(128, gt=0)  # of w
    mapping: int = Field(2, ge=1)  # layers
    mapping_rate: float = Field(0.01, gt=0)  # their learning rate, as a factor
    classes: int = Field(10, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> StyleConfig:
        if not self.channels or len(self.channels) != len(self.layers):
            raise ValueError(f"channels and layers have one entry a block, not {len(self.channels)} and {len(self.layers)}")
        if min(*self.channels, *self.layers) < 1:
            raise ValueError("channels and layers must be above 0")
        return self

    @property
    def resolution(self) -> int:
        return int(self.grid * 2 ** (len(self.channels) - 1))


class Adversary(Config):
    """The discriminator: what it looks through, its heads, and how often it is updated on what a step showed it.

    With `until` above 0 the number of updates adapts: there is no further one after one that found the hinge loss as low as
    this (0: everything is told apart with a margin, 2: nothing).
    """

    features: Literal["embedded", "projected"] = "embedded"
    projected: ProjectedConfig = ProjectedConfig()
    # "deep": light heads that halve their maps until a logit sees a quarter of the image and more
    discriminator: Literal["light", "deep", "stylegan-xl"] = "light"
    width: int = Field(64, gt=0)
    updates: int = Field(2, ge=1)  # at most, in a step
    until: float = Field(0.0, ge=0, lt=2)
    lr: float = Field(2e-3, gt=0)
    betas: tuple[float, float] = (0.0, 0.99)
    augment: bool = False  # real and generated images alike are shifted, recoloured and cut before they are looked at


class Gan(Trained):
    """What all stages have in common."""

    distributed: ClassVar[bool] = True

    adversary: Adversary = Adversary()
    features: FeatureNet | None = None  # the eyes, where these are of this scale

    @property
    def style(self) -> StyleConfig:
        raise TypeError(f"{type(self).__name__} does not say its network")

    @model_validator(mode="after")
    def _seeing(self) -> Gan:
        if (self.adversary.features == "embedded") != (self.features is not None):
            raise ValueError("adversary.features 'embedded' and a feature network go together: give both or neither")
        return self

    @property
    def title(self) -> str:
        return f"gan {self.style.resolution}px"


class GanStem(Gan, kind="gan-stem"):
    """The first stage: everything trains."""

    runner: ClassVar[str] = "baselines.gan.train:stem"

    net: StyleConfig

    @property
    def style(self) -> StyleConfig:
        return self.net


class GanGrown(Gan, kind="gan-grown"):
    """A further stage: one block of twice the size, on a generator that stays what it was, bit by bit."""

    runner: ClassVar[str] = "baselines.gan.train:grown"

    base: GanStem | GanGrown
    channels: int = Field(gt=0)
    layers: int = Field(2, ge=1)

    @property
    def style(self) -> StyleConfig:
        below = self.base.style
        update = {"channels": (*below.channels, self.channels), "layers": (*below.layers, self.layers)}
        return below.model_copy(update=update)


class GanSampler(Generator, kind="gan"):
    """One evaluation. `truncation` psi moves w towards the mean of its class: w_mean + psi (w - w_mean); 1 is off."""

    loader: ClassVar[str] = "baselines.gan.sample:load"

    of: GanStem | GanGrown
    truncation: float = Field(1.0, ge=0, le=1)

    @property
    def resolution(self) -> int:
        return self.of.style.resolution


KNOWN = {"net", "stem", "grown", "adversary", "truncation", "match"}


@describe(
    title="Style-based GAN, grown with a frozen stem",
    paper="arXiv 2202.00273 (Sauer, Schwarz, Geiger 2022), 2111.01007, 1912.04958",
    reference="baselines/gan, written from the papers; without StyleGAN3's alias-free filters",
    weights="StyleGAN-XL publishes pickles, which carry code: run them in their own environment, baselines/gan/README.md",
    licence="MIT (StyleGAN-XL), many files NVIDIA's (from StyleGAN3); nothing of them is used here",
    tested="kernels of each image by hand; closed forms of demodulation; frozen stem bit-identical",
    at="all",
    toy={
        "net": {"channels": [16, 16], "layers": [1, 1], "latent": 8, "width": 16},
        "stem": {"train": {"steps": 6, "batch": 8, "warmup": 1}},
        "grown": [{"channels": 8, "layers": 1, "train": {"steps": 6, "batch": 8, "warmup": 1}}],
        "adversary": {"discriminator": "deep", "width": 8, "until": 1.5},
        "match": None,
    },
)
def build(scale: Scale, resolution: int) -> Generator:
    """The stem of the section's `net`, then its `grown` blocks up to `resolution`, each from the one before."""
    where = f"scale '{scale.name}', methods.gan"
    values = section(PRESETS, scale.methods.get("gan", {}), scale.name, "gan", KNOWN)
    shared: dict[str, Any] = {
        "match": match_of(values, scale, resolution),
        "data": scale.data,
        "seed": scale.seed,
        "adversary": Adversary.load(values.get("adversary", {}), f"{where}.adversary"),
    }
    if shared["adversary"].features == "embedded":
        shared["features"] = scale.feature_net()
    sections = [{**values.get("stem", {}), "net": values["net"]}, *values.get("grown", [])]
    count = _stages(StyleConfig.load(values["net"], f"{where}.net").resolution, resolution, len(sections), where)
    model: GanStem | GanGrown | None = None
    for number, entry in enumerate(sections[:count]):
        fields = {**shared, **entry, "train": {"steps": 1, **entry.get("train", {})}}  # with `match`, that decides
        if number == count - 1:
            fields["share"] = 1.0  # the last stage spends what is left
        if model is None:
            model = GanStem.load(fields, f"{where}.stem")
        else:
            model = GanGrown.load({**fields, "base": model}, f"{where}.grown.{number - 1}")
    return GanSampler.load({"of": model, "truncation": values.get("truncation", 1.0)}, where)


def _stages(stem: int, resolution: int, given: int, where: str) -> int:
    """How many stages lead from the stem's resolution to the one asked for."""
    factor, rest = divmod(resolution, stem)
    if rest or factor & (factor - 1) or not factor:
        raise UserError(f"{where}: no blocks of twice the size lead from the stem's {stem} px to {resolution}: change net")
    needed = factor.bit_length()
    if needed > given:
        raise UserError(f"{where}.grown: {resolution} px takes {needed - 1} blocks above the stem, there are {given - 1}")
    return needed
