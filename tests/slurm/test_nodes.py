"""Sweeps on a private SLURM of two nodes: nodes that fail, stages in several processes, stages in shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import private_cluster
import pytest
from following import PROFILE, START, all_done, begun, digest, expected, slow, until
from toy_parallel import ToyMean, ToyShards
from toy_stages import Toy, ToySum

from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.inline import run_plan
from pagoda_bench.plan.slurm import submit_plan
from pagoda_bench.plan.sweeps import Sweep
from pagoda_bench.plan.watch import overview

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster() -> Iterator[private_cluster.Cluster]:
    if why := private_cluster.missing():
        pytest.skip(why)
    with private_cluster.cluster(cpus=2, nodes=2) as up:
        yield up


def node_of(cluster: private_cluster.Cluster, job: str) -> str:
    return cluster.run("squeue", "--noheader", f"--jobs={job}", "--format=%N").strip()


@pytest.mark.parametrize("how", ["crash", "down"])
def test_a_node_goes_down_and_comes_up(how: str, cluster: private_cluster.Cluster, store: Store, tmp_path: Path) -> None:
    """A machine that ends, or one that the administrator takes out of service while it computes: its stages go on from their
    checkpoints on the other one."""
    toys = [slow(seed, steps=40) for seed in (1, 2, 3)]
    sweep = submit_plan(Plan([ToySum(parts=tuple(toys))], store), PROFILE, name=how)
    until(begun(store, toys[0]), START, "it does not start")
    node = node_of(cluster, sweep.job_ids()[toys[0].key])
    if how == "crash":
        cluster.crash_node(node)
    else:
        cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=repair")
        cluster.wait_for_end(node)
    assert not overview(Sweep(sweep.folder), store).over
    all_done(cluster, sweep, store)
    assert [digest(store, toy) for toy in toys] == [expected(toy, tmp_path) for toy in toys]
    ran_on = [event["host"] for event in sweep.events(toys[0].key) if event["event"] == "start"]
    assert ran_on[0] == node
    assert set(ran_on[1:]) == {name for name in cluster.nodes if name != node}
    cluster.revive_node(node)
    again = Toy(seed=9)
    there = PROFILE.model_copy(update={"options": {"nodelist": node}})
    all_done(cluster, submit_plan(Plan([again], store), there, name="again"), store)


def test_ranks_on_two_nodes_make_one_artifact(
    cluster: private_cluster.Cluster, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_TELL", str(tmp_path))
    stages = {"toy-mean": {"nodes": 2, "tasks": 1, "time": "30"}}
    # These nodes have names that no resolver knows.
    profile = PROFILE.with_stages(stages, "test").model_copy(update={"setup": ("export MASTER_ADDR=127.0.0.1",)})
    sweep = submit_plan(Plan([ToyMean(size=2)], store), profile, name="ranks")
    all_done(cluster, sweep, store)
    artifact = store.find(ToyMean(size=2))
    assert artifact is not None
    assert (artifact.path / "mean.txt").read_text() == "2 [0.5, 1.0]"
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(2)] == cluster.nodes
    assert sweep.log(ToyMean(size=2).key, "rank-1").is_file()
    assert len([e for e in sweep.events(ToyMean(size=2).key) if e["event"] == "start"]) == 1


def test_shards_of_one_stage_are_elements_of_an_array(
    cluster: private_cluster.Cluster, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_STEPS_LOG", str(tmp_path / "steps"))
    shared = ToyShards(pause=0.2)
    above = ToySum(parts=(shared, Toy(seed=1)))
    sweep = submit_plan(Plan([above], store), PROFILE.with_stages({"toy-shards": {"shards": 3}}, "test"), name="shards")
    assert sorted(len(job.keys) for job in sweep.jobs) == [1, 1, 3]
    all_done(cluster, sweep, store)
    inline = run_plan(Plan([above], Store(tmp_path / "inline"))).artifacts
    assert {key: digest(store, sweep.recipe(key)) for key in sweep.tasks} == {key: a.digest for key, a in inline.items()}
    starts = [event for event in sweep.events(shared.key) if event["event"] == "start"]
    assert sorted(event["shard"] for event in starts) == ["0/3", "1/3", "2/3"]


def test_what_a_stage_cannot_do_is_refused_before_it_is_submitted(cluster: private_cluster.Cluster, store: Store) -> None:
    for asked, said in (({"shards": 2}, "cannot be shared"), ({"tasks": 2}, "computes in one process")):
        with pytest.raises(UserError, match=said):
            submit_plan(Plan([Toy()], store), PROFILE.with_stages({"toy": asked}, "test"), name="no")
