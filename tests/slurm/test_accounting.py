"""Sweeps on a private SLURM with an accounting database: what `sacct` alone knows, and accounts that are refused."""

from __future__ import annotations

from collections.abc import Iterator

import accounting
import pytest
from following import CPUS, PROFILE, START, all_done, begun, over, slow, until
from toy_stages import Toy, ToySum

from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError
from pagoda_bench.plan import slurm_query
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.slurm import resume, submit_plan
from pagoda_bench.plan.sweeps import Sweep, sweeps
from pagoda_bench.plan.watch import overview

pytestmark = pytest.mark.slurm
MINE = PROFILE.model_copy(update={"account": accounting.ACCOUNT})


@pytest.fixture(scope="module")
def cluster() -> Iterator[accounting.AccountedCluster]:
    if why := accounting.missing():
        pytest.skip(why)
    with accounting.accounted(CPUS) as up:
        yield up


def test_sacct_tells_the_end_of_a_job_that_never_began(cluster: accounting.AccountedCluster, store: Store) -> None:
    """Cancelled in the queue, so that no stage wrote anything down, and forgotten by the controller."""
    first, second = slow(steps=40), ToySum(parts=(slow(steps=40),))
    sweep = submit_plan(Plan([second], store), MINE, name="forgotten")
    job = sweep.job_ids()[second.key]
    until(begun(store, first), START, "it does not start")
    cluster.run("scancel", job)
    until(lambda: job not in cluster.run("squeue", "--noheader", "--states=all", "--format=%i"), 300, "it is remembered")
    until(lambda: (slurm_query.accounting([job]) or {}).get(job), 60, "the database does not know it")
    found = {task.key: task for task in overview(Sweep(sweep.folder), store).tasks}
    assert (found[second.key].state, found[second.key].cause) == ("failed", "cancelled")
    assert "sacct" in overview(Sweep(sweep.folder), store).answered
    over(cluster, sweep, store)
    assert resume(Sweep(sweep.folder), [second.key], MINE, store) == 1
    all_done(cluster, sweep, store)


def test_what_sacct_says_of_a_job(cluster: accounting.AccountedCluster, store: Store) -> None:
    toys = [Toy(seed=seed) for seed in range(2)]
    sweep = submit_plan(Plan(toys, store), MINE, name="told")
    all_done(cluster, sweep, store)
    ids = set(sweep.job_ids().values())
    array = sweep.jobs[0].id
    told: dict[str, slurm_query.Seen] = {}

    def ended() -> bool:  # the database hears of the elements one by one
        told.clear()
        told.update(slurm_query.accounting([array]) or {})
        return ids <= set(told) and all(seen.state == "COMPLETED" for seen in told.values())

    until(ended, 60, "no end is known")
    assert set(told) == ids
    assert all(seen.node == cluster.host and not seen.live for seen in told.values())


def test_an_account_that_is_not_ones_own_is_refused(cluster: accounting.AccountedCluster, store: Store) -> None:
    with pytest.raises(UserError, match=r"nothing was submitted.*account") as caught:
        submit_plan(Plan([Toy()], store), PROFILE.model_copy(update={"account": "theirs"}), name="no")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"nothing was submitted.*(qos|QOS)"):
        submit_plan(Plan([Toy()], store), MINE.model_copy(update={"qos": "rush"}), name="no")
    assert sweeps(store) == []
