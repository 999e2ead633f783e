"""Stage 3 goes on from released one-step weights: they take the place of what is distilled, and the levels above are grown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from toy_scale import TRAIN, VALUES, context, make

from pagoda_bench.artifacts.provenance import UPSTREAM_FLOPS
from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda import released
from pagoda_bench.pagoda.cost import cost_of
from pagoda_bench.pagoda.generate import one_step
from pagoda_bench.pagoda.importing import recipe_of, run
from pagoda_bench.recipes.base import Recipe, walk
from pagoda_bench.recipes.formats import Format
from pagoda_bench.recipes.imported import Imported, ImportedOneStep, ReleasedOneStep
from pagoda_bench.recipes.stages import Distill, Grow, OneStep, TeacherPairs, UNetConfig
from pagoda_bench.tables import methods
from pagoda_bench.tables.scales import Scale
from tests.official import fill

NET = UNetConfig(resolution=8, channels=16, encoder=(1, 2), attention=(4,), grown_blocks=2)
GROWN = NET.model_copy(update={"decoder": (1.0, 1.0, 2.0)})


def weights(net: UNetConfig) -> dict[str, Tensor]:
    return fill(UNet(net).state_dict())


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    nets = {"pagoda-64": (NET,), "pagoda-128": (GROWN,), "edm-openai-64": (NET,), "cd-l2-64": (NET,)}
    monkeypatch.setattr("pagoda_bench.pagoda.importing.PUBLISHED", nets)
    return Store(tmp_path / "store")


def imported(store: Store, format_: Format, net: UNetConfig, folder: Path) -> Imported:
    path = folder / f"{format_}.pt"
    torch.save(weights(net), path)
    recipe = recipe_of(path, format_)
    with store.making(recipe, data={recipe.digest: path}) as context:
        assert context is not None
        run(recipe, context)
    return recipe


def recipe_json(store: Store, recipe: Recipe) -> str:
    artifact = store.find(recipe)
    assert artifact is not None
    return str(artifact.path / "recipe.json")


def scale(**sections: Any) -> Scale:
    teacher = {"net": NET.to_dict(), "train": TRAIN}
    return Scale.load({**VALUES, "teacher": teacher, **sections}, "a scale")


def test_a_level_is_grown_on_released_weights(store: Store, tmp_path: Path) -> None:
    """The plan makes teacher, pairs and the level; what is frozen keeps the file's values, what is new has learnt."""
    of = imported(store, "pagoda-64", NET, tmp_path)
    model = scale(distill={"released": recipe_json(store, of)}).pagoda_model(16)
    assert isinstance(model, Grow)
    assert isinstance(model.base, ReleasedOneStep)
    assert Grow.load(model.to_dict()) == model
    assert [r.kind for r in walk(model) if isinstance(r, Distill)] == ["released-one-step"]
    make(store, [model])
    made = load_file(store.find(model).path / "model.safetensors")  # type: ignore[union-attr]
    given = weights(NET)
    frozen = [key for key in given if not key.startswith("out.")]
    assert all(torch.equal(made[key], given[key].half()) for key in frozen)
    fresh = made.keys() - given.keys()
    assert fresh
    assert all(int(key.split(".")[1]) >= 4 for key in fresh)
    last = [made[key] for key in fresh if key.endswith("out_layers.3.weight")]  # these convolutions start at zero
    assert len(last) == 3
    assert all(float(value.abs().max()) > 0 for value in last)
    provenance = json.loads((store.find(model).path / "provenance.json").read_text())  # type: ignore[union-attr]
    assert provenance[UPSTREAM_FLOPS][f"released-one-step/{model.base.key}"] is None  # nobody counted it


def test_the_row_of_the_base_is_the_released_generator(store: Store, tmp_path: Path) -> None:
    of = imported(store, "pagoda-64", NET, tmp_path)
    found = methods.pagoda(scale(distill={"released": recipe_json(store, of)}), 8)
    assert isinstance(found, OneStep)
    assert isinstance(found.of, ReleasedOneStep)
    assert found.of.inputs() == [of], "neither pairs nor a teacher are needed for it"
    make(store, [found.of])
    indices, labels = np.arange(4), np.arange(4)
    images, nfe = one_step(found, context(store, [found.of], tmp_path)).sample(indices, labels)
    direct, _ = released.one_step(ImportedOneStep(of=of), context(store, [of], tmp_path)).sample(indices, labels)
    np.testing.assert_array_equal(images, direct)
    assert nfe == 1
    cost = cost_of(found.of)
    assert cost is not None
    assert (cost.flops, cost.parameters) == (0, sum(v.numel() for v in weights(NET).values()))


def test_whatever_judges_the_rows_a_released_generator_is_one(store: Store, tmp_path: Path) -> None:
    """As at the ImageNet scale, whose features are pretrained and whose losses look through projections."""
    of = imported(store, "pagoda-64", NET, tmp_path)
    sections = {
        "features": {"kind": "pretrained", "network": "inception"},
        "distill": {"released": recipe_json(store, of)},
        "grow": [{"width": 1, "train": TRAIN, "loss": {"features": "projected"}}],
    }
    for at in (8, 16):
        found = methods.pagoda(scale(**sections), at)
        assert found.resolution == at
        assert OneStep.load(found.to_dict()) == found


def test_released_weights_with_grown_levels_are_a_level_of_the_chain(store: Store, tmp_path: Path) -> None:
    of = imported(store, "pagoda-128", GROWN, tmp_path)
    levels = {"grown": [16, 32], "grow": [{"released": recipe_json(store, of)}, {"width": 0.5, "train": TRAIN}]}
    model = scale(**levels).pagoda_model(32)
    assert isinstance(model, Grow)
    assert isinstance(model.base, ReleasedOneStep)
    assert model.net.decoder == (0.5, 1.0, 1.0, 2.0)
    assert (model.base.net, model.net.output_resolution) == (GROWN, 32)
    assert not any(type(recipe) is Distill for recipe in walk(model))


def test_what_stage_3_cannot_go_on_from(store: Store, tmp_path: Path) -> None:
    generator, grown = imported(store, "pagoda-64", NET, tmp_path), imported(store, "pagoda-128", GROWN, tmp_path)
    for format_ in ("edm-openai-64", "cd-l2-64"):
        other = recipe_json(store, imported(store, format_, NET, tmp_path))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"distill.released: the weights of '{format_}' are no generator of PaGoDA"):
            scale(distill={"released": other}).pagoda_model(8)
    with pytest.raises(UserError, match="makes 16 px, this level is of 8"):
        scale(distill={"released": recipe_json(store, grown)}).pagoda_model(8)
    sections = {"distill": {"released": recipe_json(store, generator)}}
    teacher = {"net": {**NET.to_dict(), "resolution": 16, "attention": [8]}, "train": TRAIN}
    with pytest.raises(UserError, match="the weights take latents of 8 px and 10 classes, the teacher's are of 16 px"):
        ReleasedOneStep.load(
            {
                "of": generator,
                "pairs": scale(teacher=teacher, base=16, grown=[], grow=[]).distilled().pairs,
                "features": scale().looked_through(),
            },
            "x",
        )
    for option in ({"taught": 0.5}, {"target": "teacher"}):
        with pytest.raises(UserError, match="leave the options 'taught' and 'target' away"):
            methods.pagoda(scale(**sections, methods={"pagoda": option}), 16)


def test_a_recipe_cannot_say_that_released_weights_take_a_guidance_weight(store: Store, tmp_path: Path) -> None:
    of, found = imported(store, "pagoda-64", NET, tmp_path), scale(teacher={"net": NET.to_dict(), "train": TRAIN, "drop": 0.1})
    guided = TeacherPairs(teacher=found.teacher_model(), count=4, points=2, guidance=(0.0, 2.0))
    fields = {"of": of, "pairs": found.distilled().pairs, "features": found.looked_through()}
    assert OneStep(of=ReleasedOneStep.load(fields, "x")).guided_by == "none"
    with pytest.raises(UserError, match="leave train, loss and guided away"):
        ReleasedOneStep.load({**fields, "guided": guided}, "x")


def test_the_work_of_a_chain_on_released_weights_is_not_counted_ahead(store: Store, tmp_path: Path) -> None:
    of = imported(store, "pagoda-64", NET, tmp_path)
    assert scale().work_of(16).kind == "work"
    assert scale(distill={"released": recipe_json(store, of)}).work_of(16).kind == "grow"
