"""Recipes and rows of consistency models: distilled from the EDM teacher (CD), trained alone (CT), and improved (iCT)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from baselines.consistency.presets import CD, CT, ICT
from baselines.sections import section
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Config
from pagoda_bench.recipes.methods import describe
from pagoda_bench.recipes.stages import EDM, FeatureNet, Generator, UNetConfig
from pagoda_bench.recipes.trained import Trained

if TYPE_CHECKING:
    from pagoda_bench.tables.scales import Scale


class Objective(Config):
    """The choices that tell the members of the family apart. The defaults are those of distillation at 64 px in the official
    scripts, but for the distance, which is LPIPS there and the squared error here."""

    schedule: Literal["fixed", "sqrt", "exponential"] = "fixed"  # of the number of noise levels over the training
    first: int = Field(40, ge=2)  # s0; with "fixed", the number of levels itself
    last: int = Field(40, ge=2)  # s1; not used with "fixed"
    levels: Literal["uniform", "lognormal"] = "uniform"  # how an interval of the grid is drawn
    p_mean: float = -1.1
    p_std: float = Field(2.0, gt=0)
    distance: Literal["l1", "l2", "pseudo-huber", "features"] = "l2"
    huber: float = Field(0.00054, gt=0)  # c = huber sqrt(d)
    eps: float = 1e-10  # of the distance "features", as PaGoDA's loss has it
    weight: Literal["uniform", "inverse-step"] = "uniform"  # 1, or 1 / (high - low)
    decay: float = Field(0.95, ge=0, lt=1)  # mu of the target network; 0: the target is the network itself
    adaptive: bool = False  # mu = exp(s0 ln decay / N), instead of `decay` throughout

    @model_validator(mode="after")
    def _grows(self) -> Objective:
        if self.last < self.first and self.schedule != "fixed":
            raise ValueError(f"last ({self.last}) is below first ({self.first}): a schedule of levels must grow")
        if self.adaptive and self.decay == 0:
            raise ValueError("adaptive needs a decay above 0: it is what mu starts from")
        return self


class Consistency(Trained):
    """What distillation and training have in common. `features` serve the distance of that name alone."""

    runner: ClassVar[str] = "baselines.consistency.train:run"
    distributed: ClassVar[bool] = True

    objective: Objective = Objective()
    features: FeatureNet | None = None
    optimizer: Literal["radam", "adam"] = "radam"

    @property
    def unet(self) -> UNetConfig:
        raise TypeError(f"{type(self).__name__} does not say its network")

    @model_validator(mode="after")
    def _seeing(self) -> Consistency:
        if (self.objective.distance == "features") != (self.features is not None):
            raise ValueError("the distance 'features' and a feature network go together: give both or neither")
        return self

    @property
    def title(self) -> str:
        return f"{self.kind} {self.unet.output_resolution}px"


class ConsistencyDistillation(Consistency, kind="cd"):
    """The network starts from the teacher's weights, and its targets from a step of `solver` down the teacher's ODE."""

    teacher: EDM
    solver: Literal["heun", "euler"] = "heun"

    @property
    def unet(self) -> UNetConfig:
        return self.teacher.net

    @model_validator(mode="after")
    def _same_data(self) -> ConsistencyDistillation:
        if self.data != self.teacher.data:
            raise ValueError("a student is distilled on its teacher's data: give both the same")
        return self


class ConsistencyTraining(Consistency, kind="ct"):
    """No teacher: the image itself stands where the teacher's denoised image would."""

    net: UNetConfig

    @property
    def unet(self) -> UNetConfig:
        return self.net


class ConsistencySampler(Generator, kind="consistency"):
    """One evaluation at sigma = 80, and one for every further noise level in `levels`, from high to low."""

    loader: ClassVar[str] = "baselines.consistency.sample:load"

    of: ConsistencyDistillation | ConsistencyTraining
    levels: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _falling(self) -> ConsistencySampler:
        if any(b >= a for a, b in zip((80.0, *self.levels), self.levels, strict=False)) or min(self.levels, default=1) <= 0.002:
            raise ValueError(f"levels must fall from below 80 and stay above 0.002, not {list(self.levels)}")
        return self

    @property
    def resolution(self) -> int:
        return self.of.unet.output_resolution


PAPER_CM = "arXiv 2303.01469 (Song, Dhariwal, Chen, Sutskever 2023)"
PAPER_ICT = "arXiv 2310.14189 (Song and Dhariwal 2023)"
TESTED = "closed forms of a Gaussian data set; diffusers' CMStochasticIterativeScheduler"
TOY_NET = {"resolution": 8, "channels": 16, "encoder": (1, 2), "attention": (4,)}
TOY_TRAIN = {"steps": 6, "batch": 8, "warmup": 1}


@describe(
    title="Consistency distillation",
    paper=PAPER_CM,
    reference="baselines/consistency, written from the paper; formulas as in openai/consistency_models",
    weights="openai/consistency_models at 64 px (pagoda-bench import); method 'released'",
    licence="MIT (published code and weights)",
    tested=TESTED,
    at="all",
    toy={"match": None, "train": TOY_TRAIN, "objective": {"distance": "l2", "first": 6}, "levels": [0.8]},
)
def cd(scale: Scale, resolution: int) -> Generator:
    """Distilled from PaGoDA's own teacher at the base. Above it, from a teacher at that resolution: of half the work, unless
    the section's `teacher` holds the fields of one."""
    values = section(CD, scale.methods.get("cd", {}), scale.name, "cd")
    levels, given = values.pop("levels", ()), values.pop("teacher", None)
    where = f"scale '{scale.name}', methods.cd"
    if given is None and resolution == scale.base:
        teacher = scale.teacher_model()
    else:
        matched = {} if "match" in values else {"match": scale.work_of(resolution), "share": 0.5}
        fields = {"seed": scale.seed, **_edm_fields(scale), "net": _net(scale, resolution), **matched, **(given or {})}
        fields["train"] = {"steps": 1 if matched else values["train"]["steps"], **fields["train"]}
        teacher = EDM.load({**fields, "data": scale.data}, f"{where}.teacher")
    fields = {"seed": scale.seed, **_common(scale, values, resolution), "teacher": teacher}
    return ConsistencySampler(of=ConsistencyDistillation.load(fields, where), levels=tuple(levels))


@describe(
    title="Consistency training",
    paper=PAPER_CM,
    reference="baselines/consistency, written from the paper; formulas as in openai/consistency_models",
    weights="openai/consistency_models at 64 px (pagoda-bench import); method 'released'",
    licence="MIT (published code and weights)",
    tested=TESTED,
    at="all",
    toy={"match": None, "train": TOY_TRAIN, "objective": {"distance": "l2", "last": 6}},
)
def ct(scale: Scale, resolution: int) -> Generator:
    """Trained on images alone, as first published."""
    return _trained(scale, resolution, "ct")


@describe(
    title="Improved consistency training",
    paper=PAPER_ICT,
    reference="baselines/consistency, written from the paper",
    weights="none published",
    licence="no published code",
    tested=TESTED,
    at="all",
    toy={"match": None, "train": TOY_TRAIN, "levels": [0.8, 0.2]},
)
def ict(scale: Scale, resolution: int) -> Generator:
    """Trained on images alone: no averaged target, pseudo-Huber distance, lognormal noise, exponential schedule."""
    return _trained(scale, resolution, "ict")


def _trained(scale: Scale, resolution: int, method: Literal["ct", "ict"]) -> Generator:
    values = section(CT if method == "ct" else ICT, scale.methods.get(method, {}), scale.name, method)
    levels, net = values.pop("levels", ()), values.pop("net", None) or _net(scale, resolution)
    fields = {"seed": scale.seed, **_common(scale, values, resolution), "net": net}
    model = ConsistencyTraining.load(fields, f"scale '{scale.name}', methods.{method}")
    return ConsistencySampler(of=model, levels=tuple(levels))


def _common(scale: Scale, values: dict[str, Any], resolution: int) -> dict[str, Any]:
    """The fields that do not depend on where the target comes from."""
    fields = {"match": scale.work_of(resolution), **values, "data": scale.data}
    fields["train"] = {"steps": 1, **fields.get("train", {})}  # with `match`, that decides
    if fields.get("objective", {}).get("distance") == "features":
        fields["features"] = scale.feature_net()
    return fields


def _edm_fields(scale: Scale) -> dict[str, Any]:
    return {"train": scale.edm.get("train", {}), **{k: v for k, v in scale.edm.items() if k not in ("net", "train")}}


def _net(scale: Scale, resolution: int) -> UNetConfig:
    """The teacher's network at the base; above it the multi-step row's, its patches halved with the resolution so that its
    core keeps its grid."""
    if resolution == scale.base:
        return scale.teacher_model().net
    top = UNetConfig.load(scale.edm.get("net", {}), f"scale '{scale.name}', edm.net")
    patch, rest = divmod(top.patch * resolution, top.resolution)
    if rest or patch < 1:
        raise UserError(
            f"scale '{scale.name}': the network of edm cannot be brought to {resolution} px by its patches alone: "
            "give the method's section a `net` (or, for cd, a `teacher`)"
        )
    return top.model_copy(update={"resolution": resolution, "patch": patch})
