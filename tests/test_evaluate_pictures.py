"""Metrics that need more than features, through the one pass: captions, pairs of images, a classifier of their own."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import encoded, folder_of, refusal
from test_evaluate import images, network, weights
from test_evaluate_command import command
from test_inputs import tar_of
from torch import Tensor

from pagoda_bench.data.embedded import Embedded
from pagoda_bench.metrics.captions import captions_of
from pagoda_bench.metrics.cas import classifier_accuracy, describe
from pagoda_bench.metrics.evaluate import evaluate
from pagoda_bench.metrics.extractors import Extractor
from pagoda_bench.metrics.gather import Wanted, gather
from pagoda_bench.metrics.inputs import Array
from pagoda_bench.metrics.opening import open_images
from pagoda_bench.metrics.precision import in_both_precisions
from pagoda_bench.metrics.score_schema import Score, differences, load
from pagoda_bench.metrics.settings import PROTOCOLS
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.sampling.generators import FAR

__all__ = ["network", "weights"]  # fixtures
WORDS = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0)}
COLOURS = [list(WORDS)[i % 3] for i in range(12)]


class Reader(Extractor):
    """Stands for CLIP: an image is its mean colour, a text the colours it names."""

    def __init__(self) -> None:
        super().__init__("reader", "ab", "none", {"image": 3})

    def extract(self, pixels: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        return {"image": pixels.float().mean((2, 3))}

    def text(self, prompts: Sequence[str]) -> Tensor:
        said = [[WORDS[word] for word in prompt.split() if word in WORDS] for prompt in prompts]
        return torch.from_numpy(np.array([np.sum(each, axis=0) for each in said], np.float32))


def spoken(pixels: np.ndarray, captions: Any = None, **options: Any) -> Score:
    networks = {"clip-vit-l-14": Reader()}
    (found,) = evaluate(pixels, metrics=["clip_score"], extractors=networks, captions=captions, batch=5, **options)
    return found


def test_the_clip_score_is_that_of_each_image_with_its_own_caption() -> None:
    pixels = images(12, 1)
    captions = [f"a {word} one" for word in COLOURS]
    colours = pixels.mean((1, 2))
    cosines = colours[np.arange(12), np.arange(12) % 3] / np.linalg.norm(colours, axis=1)
    found = spoken(pixels, captions)
    assert found.value == pytest.approx(100 * cosines.mean(), rel=1e-6)
    assert found.stderr == pytest.approx(100 * cosines.std() / 12**0.5, rel=0.3)
    assert found.protocol["convention"] == "percent"
    halves = spoken(pixels, captions, seeds=2)
    assert halves.values == pytest.approx([100 * cosines[:6].mean(), 100 * cosines[6:].mean()], rel=1e-6)
    other = spoken(pixels, [*captions[:-1], "a red one"])
    assert differences(found.protocol, other.protocol)[0].startswith("captions ")
    assert "12 captions" in refusal(lambda: spoken(images(13, 1), captions))
    assert "image 1 is empty" in refusal(lambda: spoken(pixels, ["red", " ", *captions]))
    assert "has no captions" in refusal(lambda: spoken(pixels))


def test_captions_come_from_beside_the_images_and_from_files(tmp_path: Path) -> None:
    files = {f"{i:02}.png": encoded(image) for i, image in enumerate(images(12, 1))}
    texts = {f"{i:02}.txt": f"{word} \n".encode() for i, word in enumerate(COLOURS)}
    folder_of(tmp_path / "beside", files | texts)
    tar_of(tmp_path / "a.tar", files | texts)
    folder_of(tmp_path / "bare", files)
    (tmp_path / "a.txt").write_text("\n".join(COLOURS) + "\n")
    (tmp_path / "list.json").write_text(json.dumps(COLOURS))
    (tmp_path / "names.json").write_text(json.dumps(dict(zip(reversed(files), reversed(COLOURS), strict=True))))
    bare = open_images(tmp_path / "bare")
    for source in ("beside", "a.tar"):
        assert captions_of(open_images(tmp_path / source), None, 12) == COLOURS
    for name in ("a.txt", "list.json", "names.json"):
        assert captions_of(bare, tmp_path / name, 12) == COLOURS
    assert captions_of(bare, str(tmp_path / "a.txt"), 3) == COLOURS[:3]
    (tmp_path / "beside" / "03.txt").unlink()
    tar_of(tmp_path / "b.tar", files | dict(list(texts.items())[1:]))
    assert "no '03.txt'" in refusal(lambda: captions_of(open_images(tmp_path / "beside"), None, 12))
    assert "no '00.txt'" in refusal(lambda: captions_of(open_images(tmp_path / "b.tar"), None, 12))
    assert "has no captions" in refusal(lambda: captions_of(bare, None, 12))
    assert "by file name" in refusal(lambda: captions_of(Array(images(12, 1)), tmp_path / "names.json", 12))
    (tmp_path / "names.json").write_text('{"00.png": "red"}')
    assert "none for '01.png'" in refusal(lambda: captions_of(bare, tmp_path / "names.json", 12))
    (tmp_path / "list.json").write_text("[1]")
    assert "something else than texts" in refusal(lambda: captions_of(bare, tmp_path / "list.json", 12))
    (tmp_path / "list.json").write_text("[")
    assert "no JSON" in refusal(lambda: captions_of(bare, tmp_path / "list.json", 12))
    assert "cannot be read" in refusal(lambda: captions_of(bare, tmp_path / "none.txt", 12))


def test_captions_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'pagoda-bench[eval]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    cells = [{"bytes": encoded(image), "path": None} for image in images(3, 1)]
    parquet.write_table(pyarrow.table({"image": cells, "text": COLOURS[:3]}), tmp_path / "a.parquet")
    assert open_images(tmp_path / "a.parquet").texts() == COLOURS[:3]
    parquet.write_table(pyarrow.table({"image": cells, "caption": ["red", None, "blue"]}), tmp_path / "b.parquet")
    assert "row 1 of 'caption'" in refusal(lambda: open_images(tmp_path / "b.parquet").texts())


def test_captions_of_the_embedded_data_are_those_of_the_real_row() -> None:
    """Sample i stands beside the validation image that `real` shows at i: class i mod 10, counted from the far end."""
    found = captions_of(Array(images(25, 1)), "embedded", 25)
    numbers = FAR // 10 * 10 + np.arange(25)
    assert found == Embedded(EmbeddedData()).captions(numbers, "val")
    assert found[2].split()[2] == "ring"


def test_a_network_that_reads_no_texts_is_refused(network: Extractor) -> None:
    call = lambda: evaluate(images(4, 1), metrics=["clip_score"], extractors={"e": network}, extractor="e", captions=COLOURS)  # noqa: E731
    assert "reads no texts" in refusal(call)


def unlike(network: Any, a: np.ndarray, b: np.ndarray) -> float:
    """Of two images: maps brought to length 1 place by place, squared differences, means over places, added up."""
    total = 0.0
    maps = [network.network.maps(torch.from_numpy(x[None].transpose(0, 3, 1, 2) / np.float32(127.5) - 1)) for x in (a, b)]
    for x, y in zip(*maps, strict=True):
        p, q = (m[0].double().numpy() for m in (x, y))
        p, q = (m / (np.sqrt((m**2).sum(0)) + 1e-10) for m in (p, q))
        total += ((p - q) ** 2).sum(0).mean()
    return total


def test_diversity_is_the_mean_distance_of_pairs(network: Extractor) -> None:
    pixels = images(8, 1)
    (found,) = evaluate(pixels, metrics=["lpips_diversity"], extractors={"embedded": network})
    each = [unlike(network, pixels[i], pixels[j]) for i, j in combinations(range(8), 2)]
    assert found.value == pytest.approx(np.mean(each), rel=1e-5)
    assert (found.spread_of, found.protocol["pairs_within"]) == ("28 pairs", "the set")
    labelled = Array(pixels, labels=np.arange(8) % 4)
    (by_class,) = evaluate(labelled, metrics=["lpips_diversity"], extractors={"embedded": network})
    assert by_class.value == pytest.approx(np.mean([unlike(network, pixels[i], pixels[i + 4]) for i in range(4)]), rel=1e-5)
    assert differences(found.protocol, by_class.protocol) == ["pairs within the set vs each class"]
    reading = {"reader": Reader()}
    call = lambda: evaluate(pixels, metrics=["lpips_diversity"], extractors=reading, extractor="reader")  # noqa: E731
    assert "compares no pairs" in refusal(call)


def test_images_that_are_kept_lie_in_a_file_past_the_limit() -> None:
    pixels = images(9, 1)
    for limit, kind in ((10, np.memmap), (10**6, np.ndarray)):
        found = gather(Array(pixels), {}, Wanted(pixels=True), batch=4, memory_limit=limit)
        assert type(found.images) is kind
        np.testing.assert_array_equal(found.images, pixels)


def coloured(n: int, seed: int, classes: int = 4, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Stripes of one direction or the other, dark or light: four classes that a mean tells apart only by two."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    wave = 40 * np.where(np.arange(side) % 4 < 2, 1, -1)
    stripes = np.where((labels % 2 == 0)[:, None, None], wave[:, None], wave[None, :])
    grey = 70 + 110 * (labels // 2)[:, None, None] + stripes
    return np.clip(grey[..., None] + rng.normal(0, 10, (n, side, side, 3)), 0, 255).astype(np.uint8), labels


def test_a_classifier_learns_from_samples_what_they_show() -> None:
    real = coloured(120, 0)
    good = classifier_accuracy(coloured(160, 1), real, steps=40)
    assert good.value > 0.95
    assert good.value == pytest.approx(good.right.mean())
    again = classifier_accuracy(coloured(160, 1), real, steps=40)
    np.testing.assert_array_equal(good.right, again.right)
    pixels, labels = coloured(160, 1)
    turned = classifier_accuracy((pixels, labels ^ 1), real, steps=40)  # every class shows another one
    assert turned.value < 0.1
    lost = classifier_accuracy((pixels[labels != 3], labels[labels != 3]), real, steps=40)
    assert lost.by_class[3] == 0
    assert lost.value == pytest.approx(0.75, abs=0.05)
    blurred = np.broadcast_to(pixels.mean((1, 2), keepdims=True), pixels.shape).astype(np.uint8)
    assert 0.2 < classifier_accuracy((blurred, labels), real, steps=40).value < 0.8


@pytest.mark.parametrize(
    ("generated", "real", "words"),
    [
        (coloured(1, 0), coloured(9, 0), "1 generated images are too few"),
        (coloured(9, 0), coloured(9, 0, side=16), "8 px, real images of 16 px"),
        (coloured(9, 0, side=12), coloured(9, 0, side=12), "12 x 12 px: it is for squares of 8, 16, 32, 64 px"),
        ((coloured(9, 0)[0], np.zeros(8, int)), coloured(9, 0), "8 labels of 9 generated images"),
        (coloured(9, 0), (coloured(9, 0)[0], np.full(9, -1)), "from 0"),
    ],
)
def test_images_a_classifier_cannot_use_are_one_line(generated: Any, real: Any, words: str) -> None:
    message = refusal(lambda: classifier_accuracy(generated, real, steps=1))
    assert words in message
    assert "\n" not in message


def test_the_command_scores_folders_of_classes(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = PROTOCOLS["embedded"].model_copy(update={"steps": 40})
    monkeypatch.setitem(PROTOCOLS, "embedded", quick)
    for name, seed in (("samples", 1), ("real", 0)):
        pixels, labels = coloured(40, seed)
        folder_of(tmp_path / name, {f"{label}/{i:02}.png": encoded(pixels[i]) for i, label in enumerate(labels)})
    line = ["evaluate", tmp_path / "samples", "--ref", tmp_path / "real", "--metrics", "cas,lpips_diversity"]
    code, output = command(*line, "--weights", f"embedded={weights}", "--json", tmp_path / "out.json")
    assert code == 0
    assert "lpips_diversity" in output
    scores = {score.metric: score for score in load(tmp_path / "out.json")}
    assert scores["cas"].value > 0.9
    assert scores["cas"].stderr is not None
    assert scores["cas"].protocol["convention"] == describe(40)
    assert scores["cas"].protocol["seed"] == quick.seed
    assert scores["cas"].protocol["reference_n"] == 40
    assert scores["lpips_diversity"].protocol["pairs_within"] == "each class"
    flat = images(6, 1)
    np.savez(tmp_path / "flat.npz", arr_0=flat)
    bare = ["evaluate", tmp_path / "flat.npz", "--ref", tmp_path / "real", "--metrics", "cas"]
    assert "lack 'labels'" in refusal(lambda: command(*bare))
    texts = ["evaluate", tmp_path / "flat.npz", "--metrics", "clip_score", "--captions", tmp_path / "none.txt"]
    assert "none.txt cannot be read" in refusal(lambda: command(*texts))


def test_bfloat16_is_given_where_a_metric_cannot_tell(weights: Path) -> None:
    call: dict[str, Any] = {"weights": {"embedded": weights}, "metrics": ["fd", "precision"]}
    found = in_both_precisions(images(300, 1), images(200, 2), **call)
    for score in found:
        (mark,) = [mark for mark in score.marks if mark.startswith("bfloat16 moves it by")]
        exact, coarse = (
            evaluate(images(300, 1), images(200, 2), [score.metric], weights=call["weights"], precision=name)[0]
            for name in ("float32", "bfloat16")
        )
        assert f"{coarse.value - exact.value:+.3g}" in mark
        limit = exact.stderr if exact.stderr is not None else 0.013 * exact.value
        chosen = coarse if abs(coarse.value - exact.value) < limit else exact
        assert score.value == chosen.value
        assert score.protocol["precision"] == chosen.protocol["precision"]
    assert "not the networks" in refusal(lambda: in_both_precisions(images(9, 1), extractors={"a": Reader()}))


def test_a_shift_above_the_noise_keeps_float32(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda_bench.metrics.precision.noise", lambda score: (0.0, "nothing"))
    call: dict[str, Any] = {"weights": {"embedded": weights}, "metrics": ["fd"]}
    (score,) = in_both_precisions(images(300, 1), images(200, 2), **call)
    assert score.protocol["precision"].startswith("float32")
    assert score.marks[-1].endswith("not less than nothing (0): float32 is given")
