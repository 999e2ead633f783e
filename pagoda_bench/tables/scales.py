"""A scale: the named set of values that turns a table's grid into recipes.

The sections of a scale are the fields of the recipes that they make, less the inputs, which the methods put in. They are
plain values until a recipe is made of them, so a wrong key is refused by the recipe that knows its keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Config, Recipe, walk
from pagoda_bench.recipes.data import DataConfig, Split
from pagoda_bench.recipes.features import Features, Pretrained
from pagoda_bench.recipes.imported import Imported, ReleasedOneStep, ReleasedTeacher
from pagoda_bench.recipes.registry import read_recipe
from pagoda_bench.recipes.scores import Reference
from pagoda_bench.recipes.stages import EDM, Distill, FeatureNet, Grow, Pairs, TeacherPairs
from pagoda_bench.recipes.values import merged
from pagoda_bench.recipes.work import Work

Seed = Annotated[int, Field(ge=0)]


class Sampling(Config):
    """How many samples are scored against how many real images. Blocks are disjoint ranges of `n` sample indices."""

    n: int = Field(gt=1)
    reference: int = Field(gt=1)
    blocks: int = Field(1, ge=1)
    neighbours: int = Field(3, ge=1)
    split: Split = "val"  # of the reference
    keep: int | None = Field(None, gt=1)  # images of the reference whose features are kept, for precision and recall


class Scale(Config):
    """The values of one scale. `grow` has one entry for each resolution in `grown`."""

    name: str
    data: DataConfig
    base: int = Field(ge=1)
    grown: tuple[int, ...]
    seed: Seed = 0  # of every stage that does not set its own; the judge's is `features.seed`, for whatever runs it compares
    seeds: tuple[Seed, ...] = ()  # of several trainings of every row, over which tables give errors; none: `seed` alone
    features: dict[str, Any]
    judged_by: dict[str, Any] = Field(default_factory=dict)  # over `features`, for a judge that no row has trained with
    teacher: dict[str, Any]
    pairs: dict[str, Any]
    guided: dict[str, Any] = Field(default_factory=dict)  # fields of the teacher's guided samples; none: no student of guidance
    distill: dict[str, Any]
    grow: tuple[dict[str, Any], ...]
    edm: dict[str, Any]
    points: int = Field(18, ge=2)  # of the Heun sampler; it evaluates the network 2 points - 1 times
    points_top: int | None = Field(None, ge=2)  # of the multi-step row at the top, where it differs
    score: Sampling
    full: Sampling
    count_ahead: bool = True  # false where a step is more than one machine holds: rows of equal work then wait for the chain
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)  # values of methods from other packages, by method

    @model_validator(mode="after")
    def _levels(self) -> Scale:
        expected = tuple(self.base * 2 ** (i + 1) for i in range(len(self.grown)))
        if self.grown != expected:
            raise ValueError(f"grown must double from base {self.base}: {list(expected)}, not {list(self.grown)}")
        if len(self.grow) != len(self.grown):
            raise ValueError(f"grow has {len(self.grow)} entries for {len(self.grown)} grown resolutions")
        return self

    @property
    def resolutions(self) -> tuple[int, ...]:
        return (self.base, *self.grown)

    @property
    def top(self) -> int:
        return self.resolutions[-1]

    def trainings(self) -> list[Scale]:
        """This scale, once for each training seed. The judge is the same in all."""
        return [self.model_copy(update={"seed": seed}) for seed in self.seeds or (self.seed,)]

    def judge(self) -> Features:
        """The network that scores: the one that losses look through, unless `judged_by` makes another of it."""
        return self._features(merged(self.features, self.judged_by), "judged_by" if self.judged_by else "features")

    def looked_through(self) -> Features:
        """The network of this scale's `features`: one that it trains, or {kind: pretrained, ...}."""
        return self._features(self.features, "features")

    def feature_net(self) -> FeatureNet:
        """The network of this scale that losses may look through. `UserError` where it trains none."""
        if self.features.get("kind") == Pretrained.kind:
            raise UserError(
                f"scale '{self.name}' trains no feature network, which this method looks through: choose another loss"
            )
        return FeatureNet.load({**self.features, "data": self.data}, self._where("features"))

    def _features(self, section: dict[str, Any], name: str) -> Features:
        if section.get("kind") == Pretrained.kind:
            return Pretrained.load(section, self._where(name))
        return FeatureNet.load({**section, "data": self.data}, self._where(name))

    def teacher_model(self) -> EDM:
        """PaGoDA's teacher, at the base resolution. With `teacher.released`, the recipe.json of an imported model, its weights
        are the teacher, and the rest of the section is for nothing."""
        if (path := self.teacher.get("released")) is not None:
            return self._at(self._released_teacher(Path(str(path))), self.base)
        return self._at(EDM.load({"seed": self.seed, **self.teacher, "data": self.data}, self._where("teacher")), self.base)

    def _released_teacher(self, path: Path) -> ReleasedTeacher:
        where = self._where("teacher.released")
        return ReleasedTeacher.load({"of": _imported(path, where), "data": self.data}, where)

    def _released_generator(self, path: Path, resolution: int, pairs: Pairs, section: str) -> ReleasedOneStep:
        where = self._where(f"{section}.released")
        of = _imported(path, where)
        if of.net.output_resolution != resolution:
            raise UserError(f"{where}: {path} makes {of.net.output_resolution} px, this level is of {resolution}")
        return ReleasedOneStep.load({"of": of, "pairs": pairs, "features": self.looked_through()}, where)

    def edm_model(self) -> EDM:
        """The multi-step row: trained directly at the top, for as much work as the whole PaGoDA chain."""
        section = {"seed": self.seed, **self.edm, "data": self.data, "match": self.work_of(self.top)}
        section["train"] = {"steps": 1, **section.get("train", {})}  # ignored: `match` decides
        return self._at(EDM.load(section, self._where("edm")), self.top)

    def distilled(self) -> Distill:
        """The one-step generator at the base. With `distill.released`, the recipe.json of an imported model, that model is it,
        and the rest of the section is for nothing."""
        pairs = Pairs.load({"seed": self.seed, **self.pairs, "teacher": self.teacher_model()}, self._where("pairs"))
        if (path := self.distill.get("released")) is not None:
            if self.guided:
                raise UserError(
                    f"{self._where('guided')}: a released generator learns no guidance here: leave the section away"
                )
            return self._released_generator(Path(str(path)), self.base, pairs, "distill")
        section = {"seed": self.seed, **self.distill, "pairs": pairs, "features": self.looked_through()}
        if self.guided:
            guided = {"seed": self.seed, **self.guided, "teacher": pairs.teacher}
            section["guided"] = TeacherPairs.load(guided, self._where("guided"))
        return Distill.load(section, self._where("distill"))

    def pagoda_model(self, resolution: int) -> Distill | Grow:
        """The one-step generator at a resolution of this scale: distilled at the base, grown above it. A level whose section
        says `released`, as that of the base may, is an imported model's, and nothing below it is made."""
        model: Distill | Grow = self.distilled()
        for level, at in enumerate(self.grown):
            if at > resolution:
                break
            if (path := self.grow[level].get("released")) is not None:
                model = self._released_generator(Path(str(path)), at, model.pairs, f"grow.{level}")
                continue
            section = {"seed": self.seed, **self.grow[level], "base": model}
            model = Grow.load(section, self._where(f"grow.{level}"))
        if model.net.output_resolution != resolution:
            raise UserError(f"scale '{self.name}' has no {resolution} px; its resolutions are {_text(self.resolutions)}")
        return model

    def work_of(self, resolution: int) -> Recipe:
        """What rows of equal work are matched with: the work of the one-step generator at a resolution and all it takes."""
        model = self.pagoda_model(resolution)
        known = not any(isinstance(recipe, Imported) for recipe in walk(model))  # no step of released weights can be counted
        return Work(of=model) if self.count_ahead and known else model

    def reference(self, resolution: int, sampling: Sampling) -> Reference:
        return Reference(
            data=self.data,
            features=self.judge(),
            resolution=resolution,
            n=sampling.reference,
            split=sampling.split,
            keep=sampling.keep,
        )

    def _at(self, model: EDM, resolution: int) -> EDM:
        if model.net.output_resolution != resolution:
            raise UserError(
                f"scale '{self.name}': the network of {'teacher' if resolution == self.base else 'edm'} makes "
                f"{model.net.output_resolution} px, the scale needs {resolution}: set its net.resolution"
            )
        return model

    def _where(self, section: str) -> str:
        return f"scale '{self.name}', {section}"


def _imported(path: Path, where: str) -> Imported:
    recipe = read_recipe(path)
    if not isinstance(recipe, Imported):
        raise UserError(f"{where}: {path} is no imported model but '{recipe.kind}'")
    return recipe


def _text(resolutions: tuple[int, ...]) -> str:
    return ", ".join(str(r) for r in resolutions)
