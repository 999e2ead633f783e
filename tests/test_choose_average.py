"""Which of the published averages is best is decided afterwards: each is a generator of its own, scored by `evaluate`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pagoda_bench.artifacts.store import Store
from pagoda_bench.data import open_dataset
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.frechet import frechet_from_features
from pagoda_bench.metrics.score_schema import load
from pagoda_bench.nets.features import FeatureModel, from_network, load_half
from pagoda_bench.nets.unet import UNet
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.inline import run_plan
from pagoda_bench.recipes.scores import Reference
from pagoda_bench.sampling.noise import noise
from tests.test_evaluate_command import command
from tests.tiny_chain import BASE, DATA, FEATURES, SHORT

DOCS = Path(__file__).parent.parent / "docs" / "training.md"
FIRST, N = 1000, 40


def script() -> str:
    """The lines of the docs that write a generator for each average."""
    text = DOCS.read_text(encoding="utf-8")
    return text.split("```python\n")[1].split("```")[0]


def test_every_average_is_scored_by_the_lines_of_the_docs(tmp_path: Path) -> None:
    recipe = BASE.model_copy(update={"train": SHORT.model_copy(update={"emas": (0.2, 0.3)})})
    store = Store(tmp_path / "store")
    run_plan(Plan([recipe, Reference(data=DATA, features=FEATURES, resolution=8, n=10)], store))
    made, features = store.find(recipe), store.find(FEATURES)
    assert made is not None
    assert features is not None
    (tmp_path / "generator.py").write_text(script())
    done = subprocess.run(
        [sys.executable, "generator.py", str(made.path)], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    files = done.stdout.split()
    assert files == ["ema-0.999.json", "ema-0.2.json", "ema-0.3.json"]
    numbers = np.arange(N)
    real = open_dataset(DATA).images(numbers, 8, "val")
    np.savez(tmp_path / "real.npz", arr_0=real)

    options = ["--ref", tmp_path / "real.npz", "--metrics", "fd", "--n", N, "--first", FIRST, "--store", tmp_path / "store"]
    weights = features.path / "features.safetensors"
    found = {}
    for file in files:
        out = tmp_path / f"score-{file}"
        command("evaluate", tmp_path / file, *options, "--weights", f"embedded={weights}", "--json", out)
        found[file] = load(out)[0].value
    # Each by hand: the network of that file, its images on the same noise, their distance.
    model = FeatureModel.load(weights, 10, FEATURES.width, FEATURES.resolution)
    seen = model.features(real)[0]
    for file, name in zip(files, ("model", "model-0.2", "model-0.3"), strict=True):
        net = UNet(recipe.net)
        net.load_state_dict(load_half(made.path / f"{name}.safetensors"))
        z = torch.from_numpy(noise(FIRST + numbers, (3, 8, 8))) * 80.0
        with torch.no_grad():  # c_in = 1 / sqrt(80^2 + 0.5^2); the network's output is the image
            images = from_network(net(z / (80.0**2 + 0.25) ** 0.5, 80.0, torch.from_numpy((FIRST + numbers) % 10)))
        assert found[file] == pytest.approx(frechet_from_features(seen, model.features(images)[0]), rel=5e-3)
    assert len(set(found.values())) == 3

    (tmp_path / "other.json").write_text((tmp_path / files[0]).read_text().replace("0.999}", "0.5}"))
    assert json.loads((tmp_path / "other.json").read_text())["ema"] == 0.5
    with pytest.raises(UserError, match=r"keeps the averages 0.999, 0.2, 0.3, not 0.5: choose one of them"):
        command("evaluate", tmp_path / "other.json", *options, "--weights", f"embedded={weights}")
