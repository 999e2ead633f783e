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

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.recipes.methods import describe
from pagoda_bench.recipes.registry import registered
from pagoda_bench.recipes.samplers import Sampled, SamplerConfig
from pagoda_bench.recipes.stages import EDM, Generator, Heun, OneStep, RealImages, Upsampled
from pagoda_bench.tables.released import released
from pagoda_bench.tables.scales import Scale

Method = Callable[[Scale, int], Generator]


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
    """The diffusion model at the base resolution, sampled in many steps."""
    _only(scale, "teacher", resolution, scale.base)
    return _sampled(scale, "teacher", scale.teacher_model(), scale.points)


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
    """One step: distilled at the base, grown above it."""
    return OneStep(of=scale.pagoda_model(resolution))


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
    return _sampled(scale, "edm", scale.edm_model(), scale.points_top or scale.points)


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


def _sampled(scale: Scale, method: str, model: EDM, points: int) -> Generator:
    options = scale.methods.get(method, {})
    if not options:
        return Heun(of=model, points=points)
    return Sampled(
        of=model, sampler=SamplerConfig.load({"points": points, **options}, f"scale '{scale.name}', methods.{method}")
    )


def _only(scale: Scale, method: str, resolution: int, at: int) -> None:
    if resolution != at:
        raise UserError(f"method '{method}' of scale '{scale.name}' makes {at} px, not {resolution}: mend `at` of its row")
