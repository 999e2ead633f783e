"""Recipes of what others trained, and of sets of samples: released weights, how they are sampled, and a folder of images."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Config, Recipe
from pagoda_bench.recipes.formats import ROLES, Format, Role
from pagoda_bench.recipes.losses import LossConfig
from pagoda_bench.recipes.samplers import SamplerConfig
from pagoda_bench.recipes.scores import Score
from pagoda_bench.recipes.stages import EDM, Distill, FeatureNet, Generator, Grow, Heun, OneStep, TrainConfig, UNetConfig

Rounding = Literal["nearest", "truncate"]
LabelPolicy = Literal["balanced", "random"]


class Imported(Recipe, kind="imported"):
    """Released weights taken over from a checkpoint file: the file's SHA-256, how it was read, and the network it holds.

    The file is looked for under `--data DIGEST=FILE`, as images are; `pagoda-bench import` does all of this.
    """

    runner: ClassVar[str] = "pagoda_bench.pagoda.importing:run"

    format: Format
    digest: str  # SHA-256 of the checkpoint file, 64 hex digits
    net: UNetConfig

    @property
    def role(self) -> Role:
        return ROLES[self.format]

    @property
    def one_step(self) -> bool:
        """Whether one evaluation makes an image; else it is a diffusion model."""
        return self.role not in ("edm", "adm")

    @property
    def title(self) -> str:
        return f"released {self.format} ({self.digest[:8]})"


class ReleasedTeacher(EDM, kind="released-teacher"):
    """Released weights in the place of a teacher that is trained here: what the published chain starts from. `data` are the
    images that pairs are made of; `net` is that of the weights."""

    runner: ClassVar[str] = "pagoda_bench.pagoda.released:teacher"
    distributed: ClassVar[bool] = False

    of: Imported
    train: TrainConfig = TrainConfig(steps=0)

    @model_validator(mode="before")
    @classmethod
    def _net(cls, value: Any) -> Any:
        of = value.get("of") if isinstance(value, dict) else None
        if of is not None and "net" not in value:
            return {**value, "net": of.net if isinstance(of, Imported) else of.get("net")}
        return value

    @model_validator(mode="after")
    def _fits(self) -> ReleasedTeacher:
        if self.of.role != "edm":  # ADM's network answers another question at other noise levels
            raise ValueError(f"the weights of '{self.of.format}' are no EDM teacher: import edm-openai-64")
        if self.net != self.of.net or self.train.steps or self.match is not None:
            raise ValueError("a released teacher is taken as it is: leave net, train and match away")
        return self

    @property
    def title(self) -> str:
        return f"released edm {self.net.output_resolution}px"


class ReleasedOneStep(Distill, kind="released-one-step"):
    """Released one-step weights in the place of a generator that is made here: what Stage 3 goes on from. They may have grown
    levels already. `pairs` and `features` are those of the levels that are grown on them, and are not needed before."""

    runner: ClassVar[str] = "pagoda_bench.pagoda.released:generator"
    distributed: ClassVar[bool] = False

    of: Imported
    train: TrainConfig = TrainConfig(steps=0)
    loss: LossConfig = LossConfig(features="projected")  # there is none; this one goes with any `features`

    @model_validator(mode="after")
    def _fits(self) -> ReleasedOneStep:
        if self.of.role != "generator":  # growth takes the raw output of the network for the image
            raise ValueError(
                f"the weights of '{self.of.format}' are no generator of PaGoDA: Stage 3 goes on from pagoda-64 and up"
            )
        ours, theirs = self.of.net, self.pairs.teacher.net
        if (ours.resolution, ours.classes) != (theirs.resolution, theirs.classes):
            raise ValueError(
                f"the weights take latents of {ours.resolution} px and {ours.classes} classes, the teacher's are of "
                f"{theirs.resolution} px and {theirs.classes} classes"
            )
        if self.train.steps or self.loss != LossConfig(features="projected") or self.guided is not None:
            raise ValueError("released weights are taken as they are: leave train, loss and guided away")
        return self

    def inputs(self) -> list[Recipe]:
        return [self.of]

    @property
    def net(self) -> UNetConfig:
        return self.of.net

    @property
    def title(self) -> str:
        return f"released generator {self.net.output_resolution}px"


class ImportedOneStep(Generator, kind="imported-one-step"):
    """G(z) of released one-step weights, z ~ N(0, 80^2): PaGoDA's, or one step of a consistency model or of CTM."""

    loader: ClassVar[str] = "pagoda_bench.pagoda.released:one_step"
    of: Imported

    @model_validator(mode="after")
    def _one_step(self) -> ImportedOneStep:
        if not self.of.one_step:
            raise ValueError(f"the weights of '{self.of.format}' are a diffusion model: it takes many steps (imported-heun)")
        return self

    @property
    def resolution(self) -> int:
        return self.of.net.output_resolution


class ImportedHeun(Generator, kind="imported-heun"):
    """EDM's deterministic sampler on a released diffusion model: 2 points - 1 evaluations."""

    loader: ClassVar[str] = "pagoda_bench.pagoda.released:heun"
    of: Imported
    points: int = Field(40, ge=2)

    @model_validator(mode="after")
    def _diffusion(self) -> ImportedHeun:
        if self.of.one_step:
            raise ValueError(f"the weights of '{self.of.format}' take one step (imported-one-step)")
        return self

    @property
    def resolution(self) -> int:
        return self.of.net.output_resolution


class Rejection(Config):
    """Classifier-based rejection: of every `group` (1 + ratio) candidates of a class, the `group` of highest log-probability of
    that class are kept (pagoda/rejection.py). 50 is what 50,000 images of 1,000 classes have in each."""

    ratio: float = Field(gt=0, le=1000)  # the sibling repository takes 0.5
    classifier: FeatureNet | str  # a network trained here, or "module:function", uint8 (N, R, R, 3) to logits (N, classes)
    group: int = Field(50, ge=1)

    @property
    def candidates(self) -> int:
        """Of a group."""
        return round(self.group * (1 + self.ratio))

    @model_validator(mode="after")
    def _more(self) -> Rejection:
        if self.candidates == self.group:
            raise ValueError(f"a ratio of {self.ratio:g} adds no candidate to {self.group}: give at least {1 / self.group:g}")
        return self


class SampleProtocol(Config):
    """All that decides what samples are, besides the generator: a set of samples without these cannot be compared.

    The official script draws labels at random and truncates to 8 bits; balanced labels and rounding are the defaults here.
    """

    labels: LabelPolicy = "balanced"  # index mod classes, or drawn for each index on its own
    rounding: Rounding = "nearest"
    seed: int = Field(0, ge=0)  # of noise and of random labels; 0 gives the noise of every score
    precision: Literal["float32", "bfloat16"] = "float32"
    reject: Rejection | None = None

    @model_validator(mode="after")
    def _by_class(self) -> SampleProtocol:
        if self.reject is not None and self.labels != "balanced":
            raise ValueError("rejection chooses within groups of one class: it needs balanced labels")
        return self


class Samples(Recipe, kind="samples"):
    """Images `first` ... `first + n - 1` of a generator. Written where the user says, not to the store; the recipe goes
    beside them and says what they are."""

    runner: ClassVar[str] = "pagoda_bench.pagoda.sampling:run"

    generator: Generator
    n: int = Field(ge=1)
    first: int = Field(0, ge=0)
    protocol: SampleProtocol = SampleProtocol()

    @property
    def title(self) -> str:
        return f"samples {self.generator.kind} {self.generator.resolution}px N={self.n} from {self.first}"


def generator_of(recipe: Recipe, points: int | None = None) -> Generator:
    """What samples from the artifact of `recipe`: one step where that is what it was trained for, else `points` levels of
    EDM's sampler (default: that of the generator's config). `UserError` when nothing does."""
    many: dict[str, int] = {} if points is None else {"points": points}
    if isinstance(recipe, (Score, Samples)):
        return recipe.generator if points is None else with_points(recipe.generator, points)
    if isinstance(recipe, EDM):
        return Heun(of=recipe, **many)
    if isinstance(recipe, Imported) and not recipe.one_step:
        return ImportedHeun(of=recipe, **many)
    if points is not None:
        raise UserError(f"{recipe.title} takes one step: leave --points away")
    if isinstance(recipe, Imported):
        return ImportedOneStep(of=recipe)
    if isinstance(recipe, (Distill, Grow)):
        return OneStep(of=recipe)
    raise UserError(f"{recipe.title} ({recipe.kind}/{recipe.key}) is no generator: nothing can be sampled from it")


def with_points(generator: Generator, points: int) -> Generator:
    """The same generator with so many noise levels; `UserError` where it has no such number."""
    values = dict(generator)
    if isinstance(values.get("points"), int):
        return type(generator).model_validate({**values, "points": points})
    if isinstance(sampler := values.get("sampler"), SamplerConfig):
        return type(generator).model_validate({**values, "sampler": SamplerConfig(**{**dict(sampler), "points": points})})
    raise UserError(f"a generator of kind '{generator.kind}' has no number of noise levels: leave --points away")
