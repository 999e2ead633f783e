"""Methods: from the values of a scale and a resolution to the generator that a row of a table scores.

A method is a function `(scale, resolution) -> Generator`. PaGoDA and the rows beside it stand below; a method of another
package joins the same registry by an entry point and appears in a table as soon as a row names it:

    [project.entry-points."pagoda_bench.methods"]
    mine = "my_package.recipes:build"

Its own values live in the scale under `methods.mine`, and reach it as `scale.methods["mine"]`; nothing has to be imported
from here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.recipes.base import Config
from pagoda_bench.recipes.methods import describe
from pagoda_bench.recipes.registry import registered
from pagoda_bench.recipes.samplers import Sampled, SamplerConfig
from pagoda_bench.recipes.stages import EDM, Generator, Heun, OneStep, RealImages, TeacherPairs, Upsampled
from pagoda_bench.recipes.values import merged
from pagoda_bench.tables.released import released
from pagoda_bench.tables.scales import Scale

Method = Callable[[Scale, int], Generator]
OWN = ("taught", "guidance")  # options of the teacher's row that are none of its sampler's


class PagodaOptions(Config):
    """Options of a row of PaGoDA, or the scale's section `methods.pagoda`."""

    guidance: float = Field(0.0, ge=0)  # w, of a student that has learnt it (the scale's section `guided`)
    taught: float = Field(1.0, gt=0, le=1)  # share of the teacher's training steps: a worse teacher
    target: Literal["data", "teacher"] = "data"  # what G is compared with: real images (L_rec), the teacher's (L_dstl)


@describe(
    title="EDM teacher",
    paper="arXiv 2206.00364",
    reference="pagoda_bench/pagoda/teacher.py, pagoda_bench/diffusion",
    weights="EDM ImageNet-64 in OpenAI's format, ADM ImageNet-64 (pagoda-bench import); method 'released'",
    licence="openai/consistency_models MIT, openai/guided-diffusion MIT",
    tested="closed-form Gaussian denoiser; outputs of the official PaGoDA code; diffusers' EDMEulerScheduler (first order)",
    at="base",
    toy={},
)
def teacher(scale: Scale, resolution: int) -> Generator:
    """The diffusion model at the base resolution, sampled in many steps; with the option `taught`, trained for that share of
    its steps; with `guidance`, by Heun's method under that weight."""
    _only(scale, "teacher", resolution, scale.base)
    options = dict(scale.methods.get("teacher", {}))
    own = _options(scale, "teacher", {name: options.pop(name) for name in OWN if name in options})
    model = _varied(scale, own).teacher_model()
    if not own.guidance:
        return _sampled(scale, "teacher", model, scale.points, options)
    where = f"scale '{scale.name}', methods.teacher"
    return Heun.load({"points": scale.points, **options, "of": model, "guidance": own.guidance}, where)


@describe(
    title="PaGoDA",
    paper="arXiv 2405.14822",
    reference="pagoda_bench/pagoda",
    weights="the official 64, 128, 256 and 512 px checkpoints (pagoda-bench import); method 'released'",
    licence="sony/pagoda MIT",
    tested="outputs of the official code on formula weights (docs/pagoda.md)",
    at="all",
    toy={},
)
def pagoda(scale: Scale, resolution: int) -> Generator:
    """One step: distilled at the base, grown above it. `PagodaOptions` says what a row may vary."""
    options = _options(scale, "pagoda", scale.methods.get("pagoda", {}))
    imported = any("released" in section for section in (scale.distill, *scale.grow))
    if imported and (options.taught != 1 or options.target != "data"):
        raise UserError(
            f"scale '{scale.name}': released generators are not distilled here: leave the options 'taught' and 'target' away"
        )
    model = _varied(scale, options).pagoda_model(resolution)
    return OneStep.load({"of": model, "guidance": options.guidance}, f"scale '{scale.name}', methods.pagoda")


@describe(
    title="EDM, many steps",
    paper="arXiv 2206.00364",
    reference="pagoda_bench/pagoda/teacher.py; samplers: pagoda_bench/sampling/diffusion.py (options solver, churn, eta)",
    licence="NVlabs/edm CC BY-NC-SA 4.0; nothing of it is used",
    tested="closed-form Gaussian denoiser, order of convergence; diffusers' EDMEulerScheduler and DDIMScheduler",
    toy={},
)
def edm(scale: Scale, resolution: int) -> Generator:
    """Many steps at the top resolution, for the training work of the whole PaGoDA chain; by another sampler than Heun's where
    the row or the scale's section `methods.edm` gives options of `SamplerConfig`."""
    _only(scale, "edm", resolution, scale.top)
    options = scale.methods.get("edm", {})
    return _sampled(scale, "edm", scale.edm_model(), scale.points_top or scale.points, options)


@describe(title="PaGoDA base, pixels repeated", reference="pagoda_bench/data/resize.py", licence="-", tested="closed forms")
def nearest_upsampling(scale: Scale, resolution: int) -> Generator:
    """The one-step base, each pixel repeated."""
    return Upsampled(of=OneStep(of=scale.distilled()), to=resolution, filter="nearest")


@describe(title="PaGoDA base, bicubic", reference="pagoda_bench/data/resize.py", licence="-", tested="Pillow's bicubic filter")
def bicubic_upsampling(scale: Scale, resolution: int) -> Generator:
    """The one-step base, enlarged by a bicubic filter."""
    return Upsampled(of=OneStep(of=scale.distilled()), to=resolution, filter="bicubic")


@describe(
    title="Real images",
    reference="pagoda_bench/data",
    licence="that of the data",
    tested="disjoint from the reference",
    at="all",
)
def real(scale: Scale, resolution: int) -> Generator:
    """Validation images that the reference does not hold: the ceiling, and the noise floor of the distance."""
    return RealImages(data=scale.data, at=resolution)


BUILT_IN: dict[str, Method] = {
    "teacher": teacher,
    "pagoda": pagoda,
    "edm": edm,
    "nearest": nearest_upsampling,
    "bicubic": bicubic_upsampling,
    "real": real,
    "released": released,
}


def known() -> list[str]:
    return sorted({*BUILT_IN, *(entry.name for entry in registered())})


def find(name: str) -> Method:
    """The method called `name`; `UserError` when there is none, when two packages claim it, or when it cannot be loaded."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    entries = [entry for entry in registered() if entry.name == name]
    if not entries:
        raise UserError(f"unknown method '{name}'{nearest(name, known())}")
    if len({entry.value for entry in entries}) > 1:
        raise UserError(f"method '{name}' is claimed by {' and '.join(sorted({e.value for e in entries}))}: remove one")
    try:
        method = entries[0].load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"method '{name}' ({entries[0].value}) cannot be loaded: {error}") from None
    if not callable(method):
        raise UserError(f"method '{name}' ({entries[0].value}) is no function (scale, resolution) -> Generator")
    function: Method = method
    return function


def _options(scale: Scale, method: str, values: dict[str, Any]) -> PagodaOptions:
    return PagodaOptions.load(values, f"scale '{scale.name}', methods.{method}")


def _varied(scale: Scale, options: PagodaOptions) -> Scale:
    """The scale with another teacher, or with the teacher's samples for pairs: noise-to-data pairs have no mirror images."""
    update: dict[str, Any] = {}
    if options.taught != 1:
        if "released" in scale.teacher:
            raise UserError(f"scale '{scale.name}': a released teacher is not trained here: leave the option 'taught' away")
        steps = max(1, round(options.taught * scale.teacher_model().train.steps))
        update["teacher"] = merged(scale.teacher, {"train": {"steps": steps}})
    if options.target == "teacher":
        update["pairs"] = {**scale.pairs, "kind": TeacherPairs.kind, "flip": False}
    return scale.model_copy(update=update) if update else scale


def _sampled(scale: Scale, method: str, model: EDM, points: int, options: dict[str, Any]) -> Generator:
    if not options:
        return Heun(of=model, points=points)
    return Sampled(
        of=model, sampler=SamplerConfig.load({"points": points, **options}, f"scale '{scale.name}', methods.{method}")
    )


def _only(scale: Scale, method: str, resolution: int, at: int) -> None:
    if resolution != at:
        raise UserError(f"method '{method}' of scale '{scale.name}' makes {at} px, not {resolution}: mend `at` of its row")
