"""The commands evaluate, stats and compare."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from image_files import encoded, folder_of, refusal
from test_evaluate import images, weights

from pagoda_bench.cli.main import cli, main
from pagoda_bench.metrics.evaluate import evaluate
from pagoda_bench.metrics.score_schema import load
from pagoda_bench.nets.features import FeatureModel, save_half

__all__ = ["weights"]  # a fixture


def command(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)
    if done.exception:
        raise done.exception
    return int(done.return_value or 0), done.output


@pytest.fixture
def places(tmp_path: Path) -> Path:
    folder_of(tmp_path / "real", {f"{i:02}.png": encoded(image) for i, image in enumerate(images(40, 1))})
    np.savez(tmp_path / "a.npz", arr_0=images(60, 2))
    np.savez(tmp_path / "b.npz", arr_0=images(60, 3))
    return tmp_path


def test_the_command_measures_and_writes_scores(places: Path, weights: Path) -> None:
    options = ["--ref", places / "real", "--weights", f"embedded={weights}", "--metrics", "fd,prdc", "--self-check"]
    code, output = command("evaluate", places / "a.npz", *options, "--json", places / "out.json")
    assert code == 0
    assert "precision" in output
    scores = {score.metric: score for score in load(places / "out.json")}
    (direct,) = evaluate(images(60, 2), images(40, 1), ["fd"], weights={"embedded": weights})
    assert scores["fd"].value == pytest.approx(direct.value, rel=1e-6)
    assert scores["fd"].provenance["reference"] == str(places / "real")


def test_scores_that_cannot_be_written_are_shown(
    places: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, write: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("pagoda_bench.artifacts.checkpoint.save_atomic", full)
    options = ["--ref", str(places / "real"), "--weights", f"embedded={weights}", "--metrics", "fd", "--no-cache"]
    assert main(["evaluate", str(places / "a.npz"), *options, "--json", str(places / "out.json")]) == 2
    out, err = capsys.readouterr()
    assert "fd" in out
    said = err.splitlines()[-1]  # after those of progress
    assert said.startswith("pagoda-bench: error: --json ")
    assert said.endswith("cannot write the scores (No space left on device); they are shown above")


def test_compare_subtracts_like_and_refuses_unlike(places: Path, weights: Path) -> None:
    common = ["--ref", places / "real", "--weights", f"embedded={weights}", "--metrics", "fd"]
    command("evaluate", places / "a.npz", *common, "--json", places / "one.json")
    command("evaluate", places / "b.npz", *common, "--json", places / "two.json")
    command("evaluate", places / "b.npz", *common, "--n", 50, "--labels", "random", "--json", places / "fewer.json")
    code, output = command("compare", places / "one.json", places / "two.json")
    assert code == 0
    assert "better" in output
    code, output = command("compare", places / "one.json", places / "fewer.json")
    assert code == 1
    assert "N 60 vs 50" in output
    assert "labels not stated vs random" in output
    code, output = command("compare", places / "one.json", places / "fewer.json", "--json")
    assert "difference" not in json.loads(output)[0]


def test_stats_make_a_reference_that_knows_its_protocol(places: Path, weights: Path) -> None:
    np.savez(places / "real.npz", arr_0=images(300, 1))
    common = ["--weights", f"embedded={weights}"]
    command("stats", places / "real.npz", "--extractor", "embedded", *common, "--out", places / "stats.npz")
    for reference, out in (("stats.npz", "s.json"), ("real.npz", "i.json")):
        line = ["evaluate", places / "a.npz", "--ref", places / reference, "--metrics", "fd"]
        command(*line, *common, "--json", places / out)
    (a,), (b,) = load(places / "s.json"), load(places / "i.json")
    assert a.value == pytest.approx(b.value, rel=1e-9)
    assert a.protocol["reference_n"] == b.protocol["reference_n"] == 300
    torch.manual_seed(1)
    save_half(FeatureModel(5, 4, 16, folded=True).state_dict(), places / "other.safetensors")
    other = ["--weights", f"embedded={places / 'other.safetensors'}"]
    line = ["evaluate", places / "a.npz", "--ref", places / "stats.npz"]
    assert "another protocol (weights" in refusal(lambda: command(*line, *other, "--metrics", "fd"))
    assert "statistics alone" in refusal(lambda: command(*line, *common, "--metrics", "precision"))
    np.savez(places / "wide.npz", mu=np.zeros(9), sigma=np.eye(9))
    wide = ["evaluate", places / "a.npz", "--ref", places / "wide.npz", "--metrics", "fd"]
    assert "has statistics of pool3" in refusal(lambda: command(*wide, *common))


def test_a_failed_command_writes_nothing_and_says_one_line(
    places: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(places / "bad.npz", arr_0=np.zeros((4, 8, 8, 3)))
    before = sorted(places.iterdir())
    line = ["evaluate", str(places / "bad.npz"), "--ref", str(places / "real"), "--json", str(places / "out.json")]
    assert main([*line, "--weights", f"embedded={weights}"]) == 2
    error = capsys.readouterr().err
    assert "bad.npz" in error
    assert error.count("\n") == 1
    assert sorted(places.iterdir()) == before
    assert main([*line[:-1], str(places / "nowhere" / "out.json")]) == 2


def test_a_generator_is_sampled_and_scored_in_one_stream(places: Path, weights: Path, tmp_path: Path) -> None:
    recipe = {"kind": "real", "data": {"kind": "embedded", "master": 16}, "at": 16}
    (tmp_path / "generator.json").write_text(json.dumps(recipe))
    np.savez(places / "ref.npz", arr_0=images(40, 1, 16))
    line = ["evaluate", tmp_path / "generator.json", "--ref", places / "ref.npz", "--weights", f"embedded={weights}"]
    command(*line, "--metrics", "fd", "--n", 30, "--json", places / "g.json", "--store", tmp_path / "store")
    (score,) = load(places / "g.json")
    assert score.n == 30
    assert (score.protocol["labels"], score.protocol["guidance"]) == ("balanced over 10 classes", "none")
    assert "which has no end" in refusal(lambda: command(*line, "--store", tmp_path / "store"))


ADM_PAIR = ("VIRTUAL_imagenet256_labeled.npz", "admnet_guided_upsampled_imagenet256.npz")
ADM_FOLDER = os.environ.get("PAGODA_BENCH_ADM_PAIR", "")


@pytest.mark.slow
@pytest.mark.skipif(
    not all(Path(ADM_FOLDER, name).is_file() for name in ADM_PAIR) or not ADM_FOLDER,
    reason=f"put {' and '.join(ADM_PAIR)} into a folder and set PAGODA_BENCH_ADM_PAIR to it",
)
def test_the_published_pair_of_adm(tmp_path: Path) -> None:
    real, samples = (Path(ADM_FOLDER, name) for name in ADM_PAIR)
    found = {score.metric: score.value for score in evaluate(samples, real, protocol="adm")}
    published = {"is": 215.8370, "fid": 3.9426, "sfid": 6.1404, "precision": 0.8265, "recall": 0.5309}
    assert found == pytest.approx(published, rel=2e-3)


def test_statistics_take_neither_a_crop_nor_a_number_of_images(places: Path, weights: Path) -> None:
    """Both were passed over, and the crop stood in the protocol of a score that knew nothing of it."""
    options = ["--extractor", "embedded", "--weights", f"embedded={weights}"]
    command("stats", places / "real", *options, "--out", places / "stats.npz")
    reference = ["--ref", places / "stats.npz", "--weights", f"embedded={weights}", "--metrics", "fd"]
    assert "no --ref-crop" in refusal(lambda: command("evaluate", places / "a.npz", *reference, "--ref-crop", "adm:8"))
    assert "no --ref-n" in refusal(lambda: command("evaluate", places / "a.npz", *reference, "--ref-n", "5"))


def test_one_set_is_not_two_seeds(places: Path, weights: Path) -> None:
    """Its standard error was 0."""
    options = ["--metrics", "is", "--weights", f"embedded={weights}"]
    twice = [places / "a.npz", places / "real" / ".." / "a.npz"]
    assert "is given twice" in refusal(lambda: command("evaluate", *twice, *options))
    assert "--first is of a generator" in refusal(lambda: command("evaluate", places / "a.npz", *options, "--first", 3))


def test_a_list_of_no_names_does_not_mean_all_of_them(places: Path, weights: Path) -> None:
    network = ["--extractor", "embedded", "--weights", f"embedded={weights}"]
    wanted = ["stats", places / "real", *network, "--out", places / "stats.npz", "--features", ""]
    assert "--features: no name is given" in refusal(lambda: command(*wanted))
    command("evaluate", places / "a.npz", "--metrics", "is", *network[2:], "--json", places / "a.json")
    assert "--metrics: no name" in refusal(lambda: command("compare", places / "a.json", places / "a.json", "--metrics", ","))


def test_a_crop_is_of_a_size_that_memory_holds(places: Path) -> None:
    for size in ("8193", "99999999", "1" + "0" * 5000):
        wanted = f"--crop=adm:{size}"
        assert "more than 8,192 px" in refusal(
            lambda wanted=wanted: command("stats", places / "real", wanted, "--out", places / "stats.npz")
        )
