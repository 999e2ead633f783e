"""Greedy growing: the core trained with a shallow UViT at low resolution, then a U-Net grown around it.

What the paper leaves unsaid (sizes, schedules, optimisers: see README.md) are options here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from baselines.greedy.presets import PRESETS
from baselines.sections import match_of, section
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Config, Recipe
from pagoda_bench.recipes.data import Strata
from pagoda_bench.recipes.methods import describe
from pagoda_bench.recipes.samplers import SamplerConfig
from pagoda_bench.recipes.stages import Generator, classifier_free
from pagoda_bench.recipes.trained import Trained
from pagoda_bench.recipes.values import merged

if TYPE_CHECKING:
    from pagoda_bench.tables.scales import Scale


class TextConfig(Config):
    """Where the tokens come from. "small": words of the caption, embedded and mixed by layers of the core that are trained
    with it. "t5" and "clip": the last hidden states of a pretrained encoder (`name`), frozen, then one layer of the core."""

    encoder: Literal["small", "t5", "clip"] = "small"
    name: str = ""  # of the pretrained encoder: a folder, or a name that transformers or open_clip knows
    tokens: int = Field(16, ge=2)
    words: int = 4096  # of the small encoder's table; a word's row is a hash of it
    width: int = 64  # of the tokens before the core
    depth: int = 1  # layers of the small encoder

    @model_validator(mode="after")
    def _named(self) -> TextConfig:
        if (self.encoder == "small") == bool(self.name):
            raise ValueError("the encoders 't5' and 'clip' need a name, 'small' takes none")
        return self


class CoreConfig(Config):
    """What is kept when the model grows: conditioning layers, time layers, and a transformer on a fixed grid."""

    grid: int = Field(8, ge=1)  # tokens a side
    width: int = 128
    depth: int = Field(4, ge=1)
    heads: int = 4
    mlp: float = 4.0
    classes: int = 10
    text: TextConfig | None = None  # captions in the place of classes

    @model_validator(mode="after")
    def _divisible(self) -> CoreConfig:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"a core of width {self.width} cannot have {self.heads} heads: use an even multiple of the heads")
        return self


class OuterConfig(Config):
    """What surrounds the core. Without `widths` it is the shallow UViT: the entry convolution of stride `patch` reaches the
    core's grid at once. With them a U-Net: `patch`, then one level for each width, from the highest resolution to the lowest,
    each halving the grid; in front of the core and behind it stands one residual block of the core's width in both."""

    resolution: int
    patch: int = Field(1, ge=1)
    widths: tuple[int, ...] = ()
    blocks: int = Field(1, ge=1)  # residual blocks of a level, on the way down and on the way up each


class ProcessConfig(Config):
    """Variance-preserving diffusion with the cosine schedule in logSNR, shifted by 2 log(shift / resolution) (Hoogeboom et
    al. 2023, Eq. 4; `shift` None: not at all), the network predicting v (Salimans and Ho 2022)."""

    shift: int | None = 32  # the resolution at which the schedule is the plain cosine
    deviation: float = Field(1.0, gt=0)  # of the data: images are divided by it, 1 leaves them in [-1, 1]
    logsnr_min: float = -15.0
    logsnr_max: float = 15.0
    loss: Literal["v", "epsilon"] = "v"  # whose squared error is averaged
    strata: Strata = "in_order"
    drop: float = Field(0.1, ge=0, lt=1)  # share of images whose condition is left out, for guidance


class GreedyCore(Trained, kind="greedy-core", version=2):
    """Phase 1: the core inside a shallow UViT, at low resolution."""

    runner: ClassVar[str] = "baselines.greedy.train:core"
    distributed: ClassVar[bool] = True

    core: CoreConfig
    outer: OuterConfig
    process: ProcessConfig = ProcessConfig()

    @property
    def title(self) -> str:
        return f"greedy core {self.outer.resolution}px"


class GreedyGrown(Trained, kind="greedy-grown", version=2):
    """Phase 2: new encoder and decoder layers at a higher resolution around the core of `base`.

    `freeze`: "always" (the paper), "until" step `thaw_at`, or "never" (fine-tuned from the first step). Where `base` is grown
    itself, its levels below the new ones start from its weights (growth by octaves) and train. With `scratch` in the place of
    `base` everything starts at random and trains: the end-to-end model of the same size.
    """

    runner: ClassVar[str] = "baselines.greedy.train:grown"
    distributed: ClassVar[bool] = True

    base: GreedyCore | GreedyGrown | None = None
    scratch: CoreConfig | None = None
    outer: OuterConfig
    freeze: Literal["always", "until", "never"] = "always"
    thaw_at: int = Field(0, ge=0)
    process: ProcessConfig = ProcessConfig()

    @model_validator(mode="after")
    def _one_core(self) -> GreedyGrown:
        if (self.base is None) == (self.scratch is None):
            raise ValueError("give base (a trained core) or scratch (the size of a new one), not both")
        if (self.freeze == "until") != (self.thaw_at > 0):
            raise ValueError("thaw_at is the step until which freeze='until' holds the core: give both or neither")
        if self.scratch is not None and self.freeze != "never":
            raise ValueError("a core from scratch must train: freeze='never'")
        return self

    @property
    def core(self) -> CoreConfig:
        if self.base is not None:
            return self.base.core
        assert self.scratch is not None
        return self.scratch

    @property
    def title(self) -> str:
        how = "scratch" if self.base is None else {"always": "grown", "until": "thawed", "never": "fine-tuned"}[self.freeze]
        return f"greedy {how} {self.outer.resolution}px"


class Greedy(Generator, kind="greedy"):
    """Samples of a phase, by any sampler. `guidance` w: denoised = c + w (c - u), at twice the evaluations; 0 is off.

    Captions are those of the validation images that the row of real images shows, index by index.
    """

    loader: ClassVar[str] = "baselines.greedy.sample:load"
    of: GreedyGrown | GreedyCore
    sampler: SamplerConfig = SamplerConfig()
    guidance: float = Field(0.0, ge=0)

    @property
    def guided_by(self) -> str:
        return classifier_free(self.guidance)

    @property
    def resolution(self) -> int:
        return self.of.outer.resolution


KNOWN = {"core", "low", "grown", "process", "sampler", "guidance", "octaves", "match", "mode", "thaw_at"}
MODES = ("frozen", "thawed", "tuned", "scratch")


@describe(
    title="Greedy growing (Shallow-UViT)",
    paper="arXiv 2405.16759",
    reference="baselines/greedy, written from the abstract and reviews: the paper's sizes are not published",
    weights="none published",
    licence="no code or weights published",
    tested="frozen core bit-identical; closed-form Gaussian denoiser in v-prediction; parameter counts on the meta device",
    at="all",
    toy={
        "core": {"grid": 4, "width": 32, "depth": 1, "heads": 2},
        "low": {"outer": {"patch": 2}, "train": {"steps": 4, "batch": 8, "warmup": 1}},
        "grown": {"outer": {"patch": 1, "widths": [16, 16]}, "train": {"steps": 4, "batch": 8, "warmup": 1}},
        "sampler": {"points": 3},
        "match": None,
    },
)
def build(scale: Scale, resolution: int) -> Generator:
    """The generator at a resolution of the scale: the shallow model at the base, grown around its core above."""
    where = f"scale '{scale.name}', methods.greedy"
    given = scale.methods.get("greedy", {})
    values = section(PRESETS, given, scale.name, "greedy", KNOWN)
    if "thaw_at" in given and values.get("mode") != "thawed":
        raise UserError(f"{where}: thaw_at is the step from which mode 'thawed' trains the core: give both or neither")
    shared: dict[str, Any] = {"data": scale.data, "seed": scale.seed, "process": values.get("process", {})}
    shared["match"] = match_of(values, scale, resolution)
    if resolution == scale.base:
        model: Recipe = _low(values, {**shared, "share": 1.0}, scale.base, where)
    else:
        model = _grown(values, shared, scale, resolution, where)
    options = {"sampler": values.get("sampler", {}), "guidance": values.get("guidance", 0.0)}
    return Greedy.load({"of": model, **options}, where)


def _low(values: dict[str, Any], shared: dict[str, Any], base: int, where: str) -> GreedyCore:
    low = dict(values["low"])
    outer = {"resolution": base, **low.pop("outer", {})}
    process = merged(shared["process"], low.pop("process", {}))
    return GreedyCore.load({**low, **shared, "core": values["core"], "outer": outer, "process": process}, f"{where}.low")


def _grown(values: dict[str, Any], shared: dict[str, Any], scale: Scale, resolution: int, where: str) -> GreedyGrown:
    grown = dict(values["grown"])
    outer = dict(grown.pop("outer", {}))
    everywhere, shared = shared, {**shared, "process": merged(shared["process"], grown.pop("process", {}))}
    mode = values.get("mode", "frozen")
    if mode not in MODES:
        raise UserError(f"{where}.mode: '{mode}' is none of {', '.join(MODES)}")
    if mode == "scratch":
        start: dict[str, Any] = {"scratch": values["core"], "freeze": "never"}
        return _level(grown, shared, outer, start, values["core"].get("grid", 8), resolution, 1.0, where)
    low_share = values["low"].get("share", 0.5)
    below: GreedyCore | GreedyGrown = _low(values, {**everywhere, "share": low_share}, scale.base, where)
    steps = [r for r in scale.grown if r <= resolution] if values.get("octaves") else [resolution]
    freeze = {"frozen": "always", "thawed": "until", "tuned": "never"}[mode]
    for number, at in enumerate(steps, start=1):
        start = {"base": below, "freeze": freeze, "thaw_at": values.get("thaw_at", 0) if freeze == "until" else 0}
        share = low_share + (1.0 - low_share) * number / len(steps)
        below = _level(grown, shared, outer, start, below.core.grid, at, share, where)
    assert isinstance(below, GreedyGrown)
    return below


def _level(
    grown: dict[str, Any], shared: dict[str, Any], outer: dict[str, Any], start: dict[str, Any], grid: int, at: int,
    share: float, where: str,
) -> GreedyGrown:  # fmt: skip
    """The model at `at` px: of the widths, which are those of the top resolution, the innermost that it has levels for."""
    levels = max(0, (at // outer.get("patch", 1) // grid).bit_length() - 1)
    widths = tuple(outer.get("widths", ()))
    if len(widths) < levels:
        raise UserError(
            f"{where}.grown.outer.widths: {at} px over a grid of {grid} needs {levels} widths, there are {len(widths)}"
        )
    chosen = {**outer, "resolution": at, "widths": widths[len(widths) - levels :]}
    return GreedyGrown.load({**grown, **shared, **start, "outer": chosen, "share": share}, f"{where}.grown")
