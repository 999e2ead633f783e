"""The recipes of the stages that every table needs: feature network, teacher, pairs, distillation, growth, score."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pagoda_bench.recipes.base import Config, Recipe, result_neutral
from pagoda_bench.recipes.data import DataConfig, Split, Strata
from pagoda_bench.recipes.features import Features
from pagoda_bench.recipes.losses import Decay, LossConfig

Multiplier = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
WAVES = 256  # width of the embedding of a guidance weight, as in latent consistency models


def classifier_free(w: float) -> str:
    """How protocols name classifier-free guidance (Ho and Salimans 2022): none at w = 0. Where s = 1 is none, s = 1 + w."""
    return f"classifier-free, w={w:g}" if w else "none"


class UNetConfig(Config):
    """An ADM U-Net (Dhariwal and Nichol 2021), class-conditional, optionally with a grown decoder (PaGoDA, Stage 3).

    Multipliers are of `channels`. `encoder` runs from the highest to the lowest resolution of the base. `decoder` likewise;
    when it is longer than `encoder`, the surplus at its front are grown levels, each doubling the output resolution.
    """

    resolution: int = Field(ge=1)
    channels: int = Field(64, ge=1)
    encoder: tuple[Multiplier, ...] = Field((1, 2), min_length=1)
    decoder: tuple[Multiplier, ...] | None = None
    blocks: int = Field(1, ge=1)
    grown_blocks: int = Field(2, ge=1)
    attention: tuple[int, ...] = (4,)
    head_channels: int = Field(16, ge=1)
    classes: int = Field(10, ge=1)
    scale_shift_grown: bool = False
    group_channels: int = Field(1, ge=1)  # least channels in a group of the norms; 1 = 32 groups at any width, as published
    patch: int = Field(1, ge=1)  # space-to-depth before the first convolution, depth-to-space after the last (1: off)
    guidance: int = Field(0, ge=0, multiple_of=4)  # width of the waves of a weight w that it takes; 0: it takes none

    @property
    def output_resolution(self) -> int:
        decoder = self.decoder or self.encoder
        return self.resolution * 2 ** (len(decoder) - len(self.encoder))


class TrainConfig(Config):
    """One loop for all methods. `lr` is decayed by a cosine to zero over `steps`, after `warmup` linear steps."""

    steps: int = Field(ge=0)
    batch: int = Field(64, ge=1)
    lr: float = Field(1e-3, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    warmup: int = Field(50, ge=0)
    ema: Decay = 0.999  # half-life is steps-dependent: the decay is min(ema, (1 + step) / (10 + step))
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of convolutions and matrix products (autocast); weights stay fp32
    optimizer: Literal["adam", "radam", "adamw"] = "adam"
    schedule: Literal["cosine", "constant"] = "cosine"
    emas: tuple[Decay, ...] = ()  # further averages; each is published beside the one of `ema`
    accumulate: int = Field(1, ge=1)  # backward passes into which a batch is divided, on each process
    clip: float | None = Field(None, gt=0)  # largest norm of a gradient over all parameters
    skips: int = Field(0, ge=0)  # updates in a row that may be skipped because they are not finite
    keep: int = result_neutral(2, ge=1)  # checkpoints in the work folder
    grids: int = result_neutral(0, ge=0)  # pictures of samples, evenly over the training
    evaluate: int = result_neutral(0, ge=0)  # measurements of samples, evenly; the best one's weights are kept too
    evaluate_n: int = result_neutral(1000, ge=1)  # images in each
    evaluate_metrics: tuple[str, ...] = result_neutral(("fd",))  # the first says what is best
    evaluate_protocol: str = result_neutral("embedded")
    alarm: Literal["off", "warn", "stop"] = result_neutral("warn")  # discriminator stands still, or samples are all alike
    shard: bool = result_neutral(False)  # each process holds a part of the weights (FSDP2); the same up to rounding
    checkpoint: bool = result_neutral(False)  # activations of a residual block are computed again in the backward pass
    compile: bool = result_neutral(False)  # torch.compile on the network's parts; the same up to rounding


class FeatureNet(Features, kind="features"):
    """The small classifier whose penultimate features judge images and whose maps serve the losses."""

    runner: ClassVar[str] = "pagoda_bench.training.features:run"

    data: DataConfig
    train: TrainConfig
    width: int = Field(32, ge=1)
    resolution: int = Field(64, ge=1)  # every image is resized to this before it enters the network, as Inception's 299
    seed: int = Field(0, ge=0)


class EDM(Recipe, kind="edm"):
    """An EDM diffusion model (Karras et al. 2022): PaGoDA's teacher at the base resolution, the multi-step row at the top.

    With `match`, `train.steps` is ignored: the training runs as many steps as cost the same counted floating-point
    work as `match` and all its upstream training together, or a `share` of it.
    """

    runner: ClassVar[str] = "pagoda_bench.pagoda.teacher:run"
    distributed: ClassVar[bool] = True

    data: DataConfig
    net: UNetConfig
    train: TrainConfig
    seed: int = Field(0, ge=0)
    p_mean: float = -1.2
    p_std: float = Field(1.2, gt=0)
    strata: Strata = "in_order"  # which keeps the identity of models trained before there was a choice
    drop: float = Field(0.0, ge=0, lt=1)  # share of images that are shown without their label; guidance needs some
    match: Recipe | None = None
    share: float = Field(1.0, gt=0)  # of the work of `match`, where something is to be made of this model with the rest

    @property
    def title(self) -> str:
        return f"edm {self.net.output_resolution}px"


class Pairs(Recipe, kind="pairs"):
    """Data-latent pairs (x, z): z is the image x carried to noise along the teacher's probability-flow ODE."""

    runner: ClassVar[str] = "pagoda_bench.pagoda.pairs:run"
    sharder: ClassVar[str] = "pagoda_bench.pagoda.pairs:shard"

    teacher: EDM
    count: int = Field(ge=1)
    solver: Literal["heun", "ddim"] = "heun"
    points: int = Field(12, ge=2)
    flip: bool = False  # also the mirrored image of every pair
    clamp: bool = True  # denoised values to [-1, 1], as the official pair writer does
    dtype: Literal["float16", "float32"] = "float16"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the network's convolutions and products; the state is float32
    batch: int = Field(250, ge=1)  # inverted at once; networks round differently at another batch
    seed: int = Field(0, ge=0)
    shard: int = result_neutral(1000, ge=1)  # rows in a file, a whole number of batches; what an interruption can cost


class TeacherPairs(Pairs, kind="teacher-pairs"):
    """Noise-to-data pairs (z, x): x is what the teacher makes of the noise z with `solver` on `points` levels. In the place
    of `Pairs` they turn L_rec into L_dstl, whose target carries the teacher's errors; at the base resolution only.

    With `guidance`, a range of weights w, x is the teacher's guided sample, w going evenly over the range.
    """

    runner: ClassVar[str] = "pagoda_bench.pagoda.teacher_pairs:run"
    sharder: ClassVar[str] = "pagoda_bench.pagoda.teacher_pairs:shard"

    guidance: tuple[Weight, Weight] | None = None

    @model_validator(mode="after")
    def _guidable(self) -> TeacherPairs:
        if self.guidance is not None:
            if self.guidance[0] > self.guidance[1]:
                raise ValueError(f"guidance must be a range, from low to high, not {list(self.guidance)}")
            _knows_no_label(self.teacher)
        return self


def _seen_through(features: Features, loss: LossConfig) -> None:
    if loss.features == "embedded" and not isinstance(features, FeatureNet):
        raise ValueError(
            f"loss.features 'embedded' looks through a network trained here, not one of kind '{features.kind}': set "
            "loss.features to 'projected', or name a network of kind 'features'"
        )


def _knows_no_label(teacher: EDM) -> None:
    if not teacher.drop:
        raise ValueError("guidance needs a teacher that has seen images without their label: set `drop` of the teacher above 0")


class Distill(Recipe, kind="distill"):
    """Stage 2: the one-step generator at the base resolution, from the teacher's weights.

    With `guided`, the teacher's guided samples, it takes the guidance weight w: L_rec holds it to the data at w = 0, L_dstl to
    the teacher at the weights of `guided`. What is grown on it takes w too.
    """

    runner: ClassVar[str] = "pagoda_bench.pagoda.distill:run"
    distributed: ClassVar[bool] = True

    pairs: Pairs
    features: Features
    train: TrainConfig
    loss: LossConfig = LossConfig()
    seed: int = Field(0, ge=0)
    guided: TeacherPairs | None = None

    @model_validator(mode="after")
    def _looks(self) -> Distill:
        _seen_through(self.features, self.loss)
        if isinstance(self.pairs, TeacherPairs) and self.pairs.guidance is not None:
            raise ValueError("pairs: L_rec is told no guidance weight: give guided samples as `guided`")
        if self.guided is not None and self.guided.guidance is None:
            raise ValueError("guided: its samples are of no guidance weight: give `guidance` a range, such as [0, 2]")
        if self.guided is not None and self.guided.teacher != self.pairs.teacher:
            raise ValueError("guided: its samples are another teacher's than the pairs': give both the same teacher")
        return self

    def inputs(self) -> list[Recipe]:
        return [*super().inputs(), self.pairs.teacher]  # its weights are where the generator starts

    @property
    def net(self) -> UNetConfig:
        net = self.pairs.teacher.net
        return net.model_copy(update={"guidance": WAVES}) if self.guided else net

    @property
    def title(self) -> str:
        return f"distill {self.net.output_resolution}px"


class Grow(Recipe, kind="grow"):
    """Stage 3: one more level, twice the resolution, the same latent; everything below `train_from` is frozen."""

    runner: ClassVar[str] = "pagoda_bench.pagoda.grow:run"
    distributed: ClassVar[bool] = True

    base: Distill | Grow
    width: Multiplier  # multiplier of the new level
    train: TrainConfig
    loss: LossConfig = LossConfig()
    train_from: int | Literal["new"] = "new"  # index of the first output block that trains (9 in the official scripts)
    cache: float = Field(0.0, ge=0)  # GB of memory for states of the frozen part on the pairs; 0 computes them anew each step
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _looks(self) -> Grow:
        _seen_through(self.features, self.loss)
        return self

    def inputs(self) -> list[Recipe]:
        return [*super().inputs(), self.pairs, self.features, *([self.guided] if self.guided else [])]

    @property
    def net(self) -> UNetConfig:
        below = self.base.net
        return below.model_copy(update={"decoder": (self.width, *(below.decoder or below.encoder))})

    @property
    def pairs(self) -> Pairs:
        return self.base.pairs

    @property
    def guided(self) -> TeacherPairs | None:
        return self.base.guided

    @property
    def features(self) -> Features:
        return self.base.features

    @property
    def title(self) -> str:
        return f"grow {self.net.output_resolution}px"


class Generator(Config):
    """What turns (sample index, label) into a uint8 image of `resolution` px. Subclasses name a loader "module:function"."""

    loader: ClassVar[str] = ""

    @property
    def resolution(self) -> int:
        raise TypeError(f"{type(self).__name__} does not say its resolution")

    @property
    def guided_by(self) -> str:
        """The guidance of its samples, as protocols name it."""
        return "none"


class OneStep(Generator, kind="one-step"):
    """G(z) of a distilled or grown generator, z ~ N(0, 80^2)."""

    loader: ClassVar[str] = "pagoda_bench.pagoda.generate:one_step"
    of: Distill | Grow
    ema: float | None = None  # the decay of one of its averages; by default `train.ema`
    best: str | None = None  # SHA-256 of its model-best.safetensors: which weights these are, `of` alone does not say
    guidance: Weight = 0.0  # w, within what the generator was distilled for

    @model_validator(mode="after")
    def _within(self) -> OneStep:
        low, high = (self.of.guided.guidance if self.of.guided else None) or (0.0, 0.0)
        if self.guidance and not low <= self.guidance <= high:
            raise ValueError(
                f"guidance {self.guidance:g} lies outside what the generator was distilled for, "
                + (f"{low:g} to {high:g}" if high else "none: it takes a weight where Stage 2 has `guided` samples")
            )
        return self

    @property
    def guided_by(self) -> str:
        return classifier_free(self.guidance)

    @property
    def resolution(self) -> int:
        return self.of.net.output_resolution


class Heun(Generator, kind="heun"):
    """EDM's deterministic sampler on a diffusion model: 2 points - 1 evaluations."""

    loader: ClassVar[str] = "pagoda_bench.pagoda.generate:heun"
    of: EDM
    points: int = Field(18, ge=2)
    guidance: Weight = 0.0  # w of D + w (D - D without label); above 0 at twice the evaluations

    @model_validator(mode="after")
    def _guidable(self) -> Heun:
        if self.guidance:
            _knows_no_label(self.of)
        return self

    @property
    def guided_by(self) -> str:
        return classifier_free(self.guidance)

    @property
    def resolution(self) -> int:
        return self.of.net.output_resolution


class Upsampled(Generator, kind="upsampled"):
    """Another generator's images, enlarged: the floor that growth must beat."""

    loader: ClassVar[str] = "pagoda_bench.sampling.generators:upsampled"
    of: Generator
    to: int = Field(ge=1)
    filter: Literal["nearest", "bicubic"] = "bicubic"

    @property
    def guided_by(self) -> str:
        return self.of.guided_by

    @property
    def resolution(self) -> int:
        return self.to


class RealImages(Generator, kind="real"):
    """Images of the data itself: the ceiling. Sample index i is image `i` of the split, from its far end backwards,
    so that it never meets the reference half, which is taken from the near end."""

    loader: ClassVar[str] = "pagoda_bench.sampling.generators:real"
    data: DataConfig
    at: int = Field(ge=1)
    split: Split = "val"

    @property
    def resolution(self) -> int:
        return self.at
