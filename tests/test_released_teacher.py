"""The published chain starts from released weights: they take the place of the teacher, and everything after it stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_scale import VALUES

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.store import Store
from pagoda_bench.data.shards import Sharded
from pagoda_bench.diffusion import solvers
from pagoda_bench.diffusion.edm import denoise, karras_grid
from pagoda_bench.errors import UserError
from pagoda_bench.pagoda import pairs, released
from pagoda_bench.pagoda.importing import recipe_of, run
from pagoda_bench.pagoda.teacher import upstream_work
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.imported import Imported, ReleasedTeacher
from pagoda_bench.recipes.stages import EDM, Distill, Pairs, UNetConfig
from pagoda_bench.tables import methods
from pagoda_bench.tables.scales import Scale
from tests.official import fill, filled_net

NET = UNetConfig(resolution=8, channels=8, encoder=(1, 2), attention=(4,), head_channels=8, classes=10)


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Imported]:
    monkeypatch.setattr("pagoda_bench.pagoda.importing.PUBLISHED", {"edm-openai-64": (NET,), "adm-64": (NET,)})
    path = tmp_path / "weights.safetensors"
    save_file(fill(filled_net(NET).state_dict()), path)
    store, recipe = Store(tmp_path / "store"), recipe_of(path, "edm-openai-64")
    with store.making(recipe, data={recipe.digest: path}) as context:
        assert context is not None
        run(recipe, context)
    return store, recipe


def scale(store: Store, recipe: Imported, **pagoda: Any) -> Scale:
    artifact = store.find(recipe)
    assert artifact is not None
    values = {
        **VALUES,
        "teacher": {**VALUES["teacher"], "released": str(artifact.path / "recipe.json")},
        "grown": [],
        "grow": [],
    }
    return Scale.load({**values, "methods": {"pagoda": pagoda}}, "a scale")


def test_the_chain_has_the_released_weights_for_a_teacher(imported: tuple[Store, Imported]) -> None:
    store, recipe = imported
    model = scale(store, recipe).pagoda_model(8)
    assert isinstance(model, Distill)
    teacher = model.pairs.teacher
    assert isinstance(teacher, ReleasedTeacher)
    assert (teacher.net, teacher.of) == (NET, recipe)
    assert EDM.load(teacher.to_dict()) == teacher
    assert recipe in teacher.inputs()


def test_pairs_are_made_with_the_weights_of_the_file(imported: tuple[Store, Imported], tmp_path: Path) -> None:
    store, recipe = imported
    teacher = ReleasedTeacher(of=recipe, data=EmbeddedData(master=8))
    with store.making(teacher) as context:
        assert context is not None
        released.teacher(teacher, context)
    made = store.find(teacher)
    assert made is not None
    state = load_file(made.path / "model.safetensors")
    assert all(torch.equal(state[key], value) for key, value in filled_net(NET).state_dict().items())
    asked = Pairs(teacher=teacher, count=6, points=3, dtype="float32", shard=500)
    ctx = StageContext.for_test(tmp_path / "out", tmp_path / "work", {teacher.key: made.path})
    pairs.run(asked, ctx)
    image, labels = pairs.Pairing(asked, ctx).images(np.arange(6), 8)
    with torch.inference_mode():
        z = solvers.invert(lambda x, s: denoise(filled_net(NET), x, s, labels), image, karras_grid(3))
    np.testing.assert_allclose(Sharded(tmp_path / "out" / "latents")[np.arange(6)], z.numpy(), rtol=1e-3, atol=1e-2)
    after = StageContext.for_test(tmp_path / "o", tmp_path / "w", {teacher.key: made.path})
    with pytest.raises(UserError, match="is not known, so no row can be matched"):
        upstream_work(teacher, after)  # of weights whose training nobody counted


def test_what_is_no_released_teacher(imported: tuple[Store, Imported], tmp_path: Path) -> None:
    store, recipe = imported
    data = EmbeddedData(master=8)
    with pytest.raises(UserError, match="are no EDM teacher: import edm-openai-64"):
        ReleasedTeacher.load({"of": recipe.model_copy(update={"format": "adm-64"}), "data": data})
    with pytest.raises(UserError, match="leave net, train and match away"):
        ReleasedTeacher.load({"of": recipe, "data": data, "train": {"steps": 5}})
    with pytest.raises(UserError, match="leave the option 'taught' away"):
        methods.pagoda(scale(store, recipe, taught=0.5), 8)
    other = scale(store, recipe).model_copy(update={"base": 16})
    with pytest.raises(UserError, match="makes 8 px, the scale needs 16"):
        other.teacher_model()
    path = tmp_path / "edm.json"
    path.write_text(json.dumps(Scale.load(VALUES, "toy").teacher_model().to_dict()))
    wrong = Scale.load({**VALUES, "teacher": {"released": str(path)}}, "a scale")
    with pytest.raises(UserError, match="is no imported model but 'edm'"):
        wrong.teacher_model()
