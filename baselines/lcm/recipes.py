"""Recipe and rows of latent consistency distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from baselines.latent import presets as latent
from baselines.latent.recipes import Autoencoder, LatentDiffusion, model_of
from baselines.lcm.presets import PRESETS
from baselines.sections import match_of, section
from pagoda_bench.recipes.base import Config, Recipe
from pagoda_bench.recipes.methods import describe
from pagoda_bench.recipes.stages import Generator, UNetConfig, classifier_free
from pagoda_bench.recipes.trained import Trained
from pagoda_bench.recipes.values import merged

if TYPE_CHECKING:
    from pagoda_bench.tables.scales import Scale


class GuidedObjective(Config):
    """The choices of the distillation. Defaults are the official script's, and the noise schedule that of its teacher, Stable
    Diffusion; but for the range of w, which is 5 to 15 there, with text."""

    points: int = Field(50, ge=2)  # times of the grid: the skipping step is k = 1000 / points
    w: tuple[float, float] = (0.0, 2.0)  # drawn evenly between these, per image; 0 is no guidance
    distance: Literal["huber", "l2"] = "huber"
    huber: float = Field(1e-3, gt=0)
    decay: float = Field(0.95, ge=0, lt=1)  # mu of the target network; 0: the target is the network itself
    width: int = Field(256, ge=4, multiple_of=2)  # of the embedding of w
    beta_min: float = Field(0.00085, gt=0, lt=1)
    beta_max: float = Field(0.012, gt=0, lt=1)

    @model_validator(mode="after")
    def _makes_sense(self) -> GuidedObjective:
        if 1000 % self.points:
            raise ValueError(f"points must divide 1000, so that the skipping step is whole, not {self.points}")
        if not 0 <= self.w[0] <= self.w[1]:
            raise ValueError(f"w must be a range from 0 upwards, not {list(self.w)}")
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min {self.beta_min:g} is above beta_max {self.beta_max:g}: noise must grow with time")
        return self


class LatentConsistency(Trained, kind="lcm"):
    """The student starts from the teacher's weights; its targets from one guided DDIM step down the teacher's ODE."""

    runner: ClassVar[str] = "baselines.lcm.train:run"
    distributed: ClassVar[bool] = True

    teacher: LatentDiffusion
    objective: GuidedObjective = GuidedObjective()

    def inputs(self) -> list[Recipe]:
        return [*super().inputs(), self.teacher.autoencoder]  # images become latents by it

    @model_validator(mode="after")
    def _guidable(self) -> LatentConsistency:
        if self.data != self.teacher.data:
            raise ValueError("a student is distilled on its teacher's data: give both the same")
        if not self.teacher.drop:
            raise ValueError("guidance needs a teacher that has seen images without a label: set its `drop` above 0")
        return self

    @property
    def net(self) -> UNetConfig:
        """The student's network is also told the guidance weight, in the way of Meng et al. 2022 (arXiv 2210.03142)."""
        return self.teacher.unet.model_copy(update={"guidance": self.objective.width})

    @property
    def title(self) -> str:
        return f"latent consistency {self.teacher.autoencoder.resolution}px"


class LatentConsistencySampler(Generator, kind="latent-consistency"):
    """Latents by multistep consistency sampling, decoded. Evaluations are the student's, one a step: guidance costs none."""

    loader: ClassVar[str] = "baselines.lcm.sample:load"

    of: LatentConsistency
    through: Autoencoder
    steps: int = Field(4, ge=1)
    w: float

    @model_validator(mode="after")
    def _within(self) -> LatentConsistencySampler:
        low, high = self.of.objective.w
        if not low <= self.w <= high:
            raise ValueError(f"w={self.w:g} lies outside what the student was trained for, {low:g} to {high:g}")
        if self.steps > self.of.objective.points:
            raise ValueError(f"steps={self.steps} is more than the {self.of.objective.points} times that the student knows")
        return self

    @property
    def guided_by(self) -> str:
        return classifier_free(self.w)

    @property
    def resolution(self) -> int:
        return self.of.teacher.autoencoder.resolution


KNOWN = {"autoencoder", "diffusion", "distillation", "steps", "w", "match"}
_TOY_TRAIN = {"steps": 4, "batch": 8, "warmup": 1}


@describe(
    title="Latent consistency distillation",
    paper="arXiv 2310.04378 (Luo, Tan, Huang, Li, Zhao 2023)",
    reference="baselines/lcm, written from the paper; formulas as in diffusers' distillation script",
    weights="SimianLuo/LCM_Dreamshaper_v7 and latent-consistency/lcm-sdxl (text to image); the first: method lcm-released",
    licence="MIT (published code and LCM_Dreamshaper_v7)",
    tested="closed form of a guided Gaussian; diffusers' LCMScheduler, DDIMScheduler and TimestepEmbedding",
    at="top",
    toy={
        "autoencoder": {"net": {"widths": [8, 16], "groups": 4}, "train": _TOY_TRAIN},
        "diffusion": {
            "net": {"channels": 16, "encoder": [1, 2], "attention": [4], "group_channels": 4},
            "train": _TOY_TRAIN,
        },
        "distillation": {"train": _TOY_TRAIN, "objective": {"points": 10, "width": 16}},
        "steps": 3,
        "match": None,
    },
)
def build(scale: Scale, resolution: int) -> Generator:
    """The autoencoder of `latent` at this scale, a teacher of its latents that drops labels, and the student."""
    where = f"scale '{scale.name}', methods.lcm"
    values = section(PRESETS, scale.methods.get("lcm", {}), scale.name, "lcm", KNOWN)
    below = section(latent.PRESETS, scale.methods.get("latent", {}), scale.name, "latent")
    values = merged(below, values)  # of the autoencoder and the teacher: what is said here, else there
    match = match_of(values, scale, resolution)
    teacher = model_of(values, match, scale, resolution, where)
    fields = {**values["distillation"], "data": scale.data, "seed": scale.seed, "match": match, "teacher": teacher}
    student = LatentConsistency.load(fields, f"{where}.distillation")
    row = {name: values[name] for name in ("steps", "w") if name in values}
    return LatentConsistencySampler.load({"of": student, "through": teacher.autoencoder, **row}, where)
