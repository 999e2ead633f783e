"""`pagoda-bench cancel` and `resume`: stop a sweep or a part of it, and go on with what is missing."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import click

from pagoda_bench.cli.common import open_store, store_option
from pagoda_bench.errors import UserError


@click.command(
    epilog="""\b
Examples:
  pagoda-bench cancel table1              all of it
  pagoda-bench cancel table1 grow/3f2a    that stage, and what needs what it makes
"""
)
@click.argument("name", metavar="SWEEP")
@click.argument("keys", nargs=-1, metavar="[[KIND/]KEY]...")
@store_option
def cancel(name: str, keys: tuple[str, ...], store_path: Path | None) -> None:
    """Cancel the jobs of SWEEP, or some with all that depends on them. Running stages save their work first."""
    from pagoda_bench.plan import slurm_query
    from pagoda_bench.plan.sweeps import find_sweep
    from pagoda_bench.plan.watch import overview

    store = open_store(store_path)
    sweep = find_sweep(store, name)
    alive = {t.key: t.job for t in overview(sweep, store).tasks if t.state in ("running", "pending")}
    if sweep.about["executor"] == "local":
        if keys:
            raise UserError("the stages of a local sweep are cancelled together: leave the keys out")
        if sweep.about["host"] != socket.gethostname():
            raise UserError(f"{sweep.name} runs on {sweep.about['host']}: cancel it there")
        if alive:
            try:
                os.kill(int(sweep.about["pid"]), signal.SIGTERM)
            except ProcessLookupError:  # it ended meanwhile
                alive = {}
            except PermissionError:
                raise UserError(f"{sweep.name} was started by {sweep.about['user']}, who alone can cancel it") from None
        click.echo(f"{len(alive)} stages cancelled")
        return
    wanted = sweep.dependants(sweep.pick(keys)) if keys else list(sweep.tasks)
    others = sweep.borrowed
    own = {key: jobs for key, jobs in sweep.elements().items() if key not in others}  # not what another sweep has in the queue
    jobs = [job for key in wanted if key in alive for job in own.get(key, ())]
    if not keys:  # whole arrays: shorter for the scheduler
        jobs = sorted({job.partition("_")[0] for job in jobs}, key=int)
    slurm_query.need_slurm()
    slurm_query.cancel(jobs)
    click.echo(f"{sum(key in alive and key in own for key in wanted)} stages cancelled")


@click.command(
    epilog="""\b
Examples:
  pagoda-bench resume table1                  whatever is not done and not in the queue
  pagoda-bench resume table1 grow/3f2a        that stage, what of the sweep needs it, and what these need
  pagoda-bench resume table1 --cluster big    with another profile: more memory, more time
"""
)
@click.argument("name", metavar="SWEEP")
@click.argument("keys", nargs=-1, metavar="[[KIND/]KEY]...")
@click.option("--cluster", metavar="NAME|FILE", help="Another profile of the cluster than the first time.")
@click.option("--jobs", type=int, metavar="N", help="For a local sweep: processes at a time.")
@store_option
def resume(name: str, keys: tuple[str, ...], cluster: str | None, jobs: int | None, store_path: Path | None) -> int:
    """Submit what SWEEP lacks again: failed, cancelled and blocked stages. Each goes on from its last checkpoint, under the
    code of the first submission."""
    from pagoda_bench.plan.dag import Plan
    from pagoda_bench.plan.local import check_jobs, run_local
    from pagoda_bench.plan.requests import Profile, load_profile
    from pagoda_bench.plan.slurm import resume as submit_again
    from pagoda_bench.plan.sweeps import find_sweep
    from pagoda_bench.plan.watch import overview

    check_jobs(jobs)
    store = open_store(store_path)
    sweep = find_sweep(store, name)
    here = sweep.about["executor"] == "local"
    if here and cluster is not None:
        raise UserError(f"--cluster is for sweeps on a cluster; {sweep.name} ran on this machine")
    if not here and jobs is not None:
        raise UserError(f"--jobs is for local sweeps; of {sweep.name} the cluster's profile says it ('parallel')")
    # without what it needs a job would only say that it is missing
    wanted = set(sweep.upstream(sweep.dependants(sweep.pick(keys)))) if keys else set(sweep.tasks)
    tasks = overview(sweep, store).tasks
    missing = [t.key for t in tasks if t.key in wanted and t.state in ("failed", "blocked", "not submitted")]
    if not missing:
        click.echo("nothing to resume: every stage is done, running or in the queue")
        return 0
    if here:
        places = {digest: Path(path) for digest, path in sweep.about["data"].items()}
        targets = [sweep.recipe(key) for key in (missing if keys else sweep.about["targets"]) if key in sweep.tasks]
        asked = sweep.about.get("asked") or sweep.about["targets"]  # a sweep of a part knows what it is a part of
        plan = Plan(targets, store, session=sweep.about["session"], asked=asked)
        about = {"collect": sweep.about.get("collect"), "asked": asked}
        return int(bool(run_local(plan, data=places, jobs=jobs, name=sweep.name.rsplit("-", 3)[0], about=about).failures))
    profile = load_profile(cluster) if cluster else Profile.load(sweep.about["cluster"], sweep.name)
    click.echo(f"submitted {submit_again(sweep, missing, profile, store)} jobs again: {sweep.name}")
    return 0
