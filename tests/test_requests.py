"""SLURM's words for times and arrays, and what a cluster's profile may say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from toy_stages import Toy, ToyTrain

from pagoda_bench.errors import UserError
from pagoda_bench.plan import slurm_query
from pagoda_bench.plan.requests import Profile, Request, Retries, load_profile, minutes
from pagoda_bench.plan.slurm_query import Seen

# Words of SLURM


@pytest.mark.parametrize(
    ("job", "expected"),
    [("7", ["7"]), ("7_2", ["7_2"]), ("7_[0-2,5%4]", ["7_0", "7_1", "7_2", "7_5"]), ("7_[3]", ["7_3"])],
)
def test_ids_of_arrays(job: str, expected: list[str]) -> None:
    assert slurm_query.expand(job) == expected


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:07", 7), ("12:00", 720), ("1:00:01", 3601), ("2-03:04:05", 183845), ("INVALID", 0)]
)
def test_run_times(text: str, seconds: float) -> None:
    assert slurm_query.seconds(text) == seconds


def test_an_odd_line_of_the_queue_is_passed_over() -> None:
    assert slurm_query.read_queue("\nsqueue: warning\n9|RUNNING|0:01|n|None\n") == {"9": Seen("RUNNING", 1.0, "n", "None")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90:30", 91), ("4:00:00", 240), ("0:00:30", 1), ("2-12", 3600), ("1-0:30", 1470), ("1-00:00:01", 1441)],
)
def test_times(text: str, expected: int) -> None:
    assert minutes(text) == expected
    assert Request(time=text).minutes == expected


@pytest.mark.parametrize("text", ["4h", "", "1:2:3:4", "0", "-5", "1-"])
def test_times_that_slurm_refuses(text: str) -> None:
    with pytest.raises(UserError, match=r"is no time at all|is not a time that SLURM takes"):
        Request.load({"time": text}, "stages.toy")


# Profiles


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin = 'x'", "unknown key 'partitoin'; did you mean 'partition'?"),
        ("[stages.toy]\ngpu = 1", "unknown key 'gpu'; did you mean 'gpus'?"),
        ("[stages.tooy]\ngpus = 1", "unknown kind of stage 'tooy'; did you mean 'toy'?"),
        ("[stages.toy]\ntime = '4h'", "'4h' is not a time that SLURM takes"),
        ("[retries]\npreemted = 3", "did you mean 'preempted'?"),
        ("partition = ", "is no TOML"),
    ],
)
def test_mistakes_in_a_profile(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_profile(str(path))
    assert str(path) in str(caught.value)


def test_where_profiles_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("PAGODA_BENCH_CLUSTER", raising=False)
    assert load_profile(None) == Profile()
    folder = tmp_path / "pagoda-bench" / "clusters"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text("partition = 'a'")
    assert load_profile(None).partition == "a"
    (folder / "other.toml").write_text("partition = 'b'")
    with pytest.raises(UserError, match="several clusters"):
        load_profile(None)
    monkeypatch.setenv("PAGODA_BENCH_CLUSTER", "other")
    assert load_profile(None).partition == "b"
    with pytest.raises(UserError, match="did you mean 'mine'"):
        load_profile("mien")


def test_requests_in_a_sweep_file_go_before_those_of_the_cluster() -> None:
    profile = Profile(stages={"default": {"cpus": 4}, "toy": {"gpus": 1, "time": "60"}})
    merged = profile.with_stages({"toy": {"gpus": 2}}, "sweep")
    assert merged.request(Toy(train=ToyTrain(steps=1))) == Request(cpus=4, gpus=2, time="60")


def test_only_what_may_pass_is_tried_again() -> None:
    causes = ("preempted", "time limit", "killed", "CUDA error", "refused", "out of memory")
    assert [Retries().of(cause) for cause in causes] == [100, 20, 2, 1, 0, 0]
