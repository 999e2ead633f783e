"""Recipes and rows of cascaded diffusion (Ho et al. 2021, arXiv 2106.15282)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from baselines.cascade.presets import PRESETS
from baselines.sections import section
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Config
from pagoda_bench.recipes.data import Strata
from pagoda_bench.recipes.methods import describe
from pagoda_bench.recipes.stages import EDM, Generator, Heun, UNetConfig, Upsampled
from pagoda_bench.recipes.trained import Trained

if TYPE_CHECKING:
    from pagoda_bench.tables.scales import Scale


class Augmentation(Config):
    """What is done to the low-resolution image in training. Noise levels are EDM's sigma, of images in [-1, 1]."""

    noise: float = Field(1.0, ge=0)  # the highest level; the network is told which, so that sampling may choose. 0: none
    blur: tuple[float, float] | None = None  # bounds of the blur's standard deviation, in pixels; never at sampling
    blur_share: float = Field(0.5, ge=0, le=1)  # of the images
    blur_size: int = 3  # pixels of the kernel

    @model_validator(mode="after")
    def _sensible(self) -> Augmentation:
        if self.blur is not None and not 0 < self.blur[0] <= self.blur[1]:
            raise ValueError(f"blur wants two rising values above 0, not {list(self.blur)}")
        if self.blur_size % 2 == 0 or self.blur_size < 1:
            raise ValueError(f"blur_size must be odd, not {self.blur_size}")
        return self


class SuperResolution(Trained, kind="super-resolution"):
    """An EDM diffusion model of images at `net.resolution` px, given the image at `low` px.

    It is trained on real images of both sizes, so it needs no model below it. `after` is the stage before it in a row of
    equal work, whose work counts as spent; it has no part in the result.
    """

    runner: ClassVar[str] = "baselines.cascade.train:run"
    distributed: ClassVar[bool] = True

    net: UNetConfig
    low: int
    augment: Augmentation = Augmentation()
    filter: Literal["nearest", "bilinear", "bicubic"] = "bilinear"  # by which the low-resolution image is enlarged
    p_mean: float = -1.2
    p_std: float = 1.2
    strata: Strata = "in_order"
    after: EDM | SuperResolution | None = None

    @model_validator(mode="after")
    def _enlarges(self) -> SuperResolution:
        if self.net.output_resolution != self.net.resolution:
            raise ValueError("a super-resolution network has as many decoder levels as encoder levels")
        if self.low >= self.net.resolution or self.net.resolution % self.low:
            raise ValueError(f"{self.net.resolution} px is no multiple of low, {self.low} px, above it")
        return self

    @property
    def title(self) -> str:
        return f"super-resolution {self.low} to {self.net.resolution}px"


class Cascade(Generator, kind="cascade"):
    """A base model and the stages above it, each sampled by EDM's Heun with its number in `points` (base first).

    `levels` has one augmentation level for each stage: the noise level at which the image below is handed up, at most what
    the stage was trained for. The levels are chosen at sampling: one training serves a whole sweep of them.
    """

    loader: ClassVar[str] = "baselines.cascade.sample:load"

    base: EDM
    stages: tuple[SuperResolution, ...]
    points: tuple[int, ...]
    levels: tuple[float, ...]
    truncated: bool = False  # stop the model below at the level, instead of adding noise to its finished image

    @model_validator(mode="after")
    def _fits(self) -> Cascade:
        if not self.stages:
            raise ValueError("a cascade has at least one super-resolution stage")
        if (len(self.points), len(self.levels)) != (len(self.stages) + 1, len(self.stages)):
            raise ValueError(f"{len(self.stages)} stages take {len(self.stages) + 1} points and {len(self.stages)} levels")
        size = self.base.net.output_resolution
        for stage, level in zip(self.stages, self.levels, strict=True):
            if stage.low != size:
                raise ValueError(f"the stage to {stage.net.resolution} px wants {stage.low} px, and gets {size}")
            if level != 0 and not 0.002 < level <= stage.augment.noise:
                raise ValueError(
                    f"level {level:g}: the stage to {stage.net.resolution} px knows 0.002 to {stage.augment.noise:g}"
                )
            size = stage.net.resolution
        return self

    @property
    def resolution(self) -> int:
        return self.stages[-1].net.resolution

    def at_levels(self, levels: float | Sequence[float]) -> Cascade:
        """The same trained cascade with other augmentation levels; one number stands for all stages."""
        return Cascade.load({**self.to_dict(), "levels": _each(levels, len(self.stages))}, "cascade")


@describe(
    title="Cascaded diffusion",
    paper="arXiv 2106.15282 (Ho, Saharia, Chan, Fleet, Norouzi, Salimans 2021)",
    reference="baselines/cascade, written from the paper; EDM instead of DDPM",
    weights="none published",
    licence="no published code",
    tested="closed forms of a Gaussian data set; the augmentation against SciPy's Gaussian filter and its formulas",
    at="grown",
    toy={
        "stages": [
            {
                "match": None,
                "net": {"channels": 16, "encoder": (1, 2), "attention": (8,)},
                "train": {"steps": 6, "batch": 8, "warmup": 1},
                "augment": {"blur": (0.4, 0.6)},
            }
        ],
        "points": [3, 3],
        "levels": 0.3,
    },
)
def build(scale: Scale, resolution: int) -> Generator:
    """PaGoDA's teacher as the base, and the section's `stages` up to `resolution`."""
    values = section(PRESETS, scale.methods.get("cascade", {}), scale.name, "cascade")
    where = f"scale '{scale.name}', methods.cascade"
    base = scale.teacher_model()
    stages: list[SuperResolution] = []
    below = base.net.output_resolution
    for number, entry in enumerate(values.pop("stages")):
        net = {"resolution": resolution, **entry.get("net", {})}
        if int(net["resolution"]) > resolution:
            break
        matched = {} if "match" in entry else {"match": scale.work_of(resolution), "after": stages[-1] if stages else base}
        fields = {"seed": scale.seed, **matched, **entry, "data": scale.data, "low": below, "net": net}
        fields["train"] = {"steps": 1, **entry.get("train", {})}  # with `match`, that decides
        stages.append(SuperResolution.load(fields, f"{where}.stages.{number}"))
        below = stages[-1].net.resolution
    if not stages or below != resolution:
        raise UserError(f"{where}: no stage makes {resolution} px: its stages go from {base.net.output_resolution} to {below}")
    if measured := [stage for stage in stages if stage.match is not None]:
        stages = _whole(stages, measured[-1])
    default = [scale.points, *[scale.points_top or scale.points] * len(stages)]
    fields = {
        **values,
        "base": base,
        "stages": tuple(stages),
        "points": tuple(values.get("points", default))[: len(stages) + 1],
        "levels": _each(values.get("levels", 0.0), len(stages)),
    }
    return Cascade.load(fields, where)


@describe(
    title="Base of the cascade, bicubic",
    reference="pagoda_bench: the teacher's samples, enlarged",
    weights="none",
    licence="that of this repository",
    tested="the filter against PIL",
    at="grown",
)
def floor(scale: Scale, resolution: int) -> Generator:
    """What a cascade must beat: its own base, enlarged by a bicubic filter."""
    return Upsampled(of=Heun(of=scale.teacher_model(), points=scale.points), to=resolution, filter="bicubic")


def _whole(stages: list[SuperResolution], last: SuperResolution) -> list[SuperResolution]:
    """The last stage of a matched cascade spends what is left, whatever share its preset has for a taller cascade."""
    at = stages.index(last)
    return [*stages[:at], last.model_copy(update={"share": 1.0}), *stages[at + 1 :]]


def _each(levels: Any, count: int) -> tuple[float, ...]:
    """One level for each stage; a single number stands for all, and more than there are stages are left away."""
    return (float(levels),) * count if isinstance(levels, int | float) else tuple(float(level) for level in levels)[:count]
