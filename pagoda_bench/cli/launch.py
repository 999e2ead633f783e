"""From a plan to what runs it: here, in processes of this machine, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pagoda_bench.errors import UserError, nearest

if TYPE_CHECKING:
    from pagoda_bench.plan.dag import Plan
    from pagoda_bench.plan.inline import Outcome
    from pagoda_bench.plan.requests import Profile

EXECUTORS = ("inline", "local", "slurm")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Launch:
    """What the user said about how to run. `about` tells `collect` how to make the result of it again."""

    executor: str = "inline"
    jobs: int | None = None
    cluster: str | None = None
    max_jobs: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def profile(self) -> Profile:
        """The cluster's profile, with the sweep's own requests."""
        from pagoda_bench.plan.requests import load_profile

        return load_profile(self.cluster).with_stages(self.stages, "sweep")

    def check(self, out: Path | None = None, *, publish: bool = False) -> None:
        """Refuses what contradicts itself, before anything is planned. `out` and `publish` are for who writes the result,
        which with SLURM is another command."""
        from pagoda_bench.plan.local import check_jobs

        if self.executor not in EXECUTORS:
            raise UserError(f"unknown executor '{self.executor}'{nearest(self.executor, EXECUTORS)}")
        if self.jobs is not None and self.executor != "local":
            raise UserError(f"--jobs is for --executor local, not {self.executor}")
        if self.cluster is not None and self.executor != "slurm":
            raise UserError(f"--cluster is for --executor slurm, not {self.executor}")
        if self.executor == "slurm" and out is not None:
            raise UserError("--out: with --executor slurm 'pagoda-bench collect SWEEP --out DIR' writes the result, later")
        if self.executor == "slurm" and publish:
            raise UserError(
                "--publish: with --executor slurm nothing is written yet; when the jobs are through, the same command without "
                "--executor finds what they made and publishes it"
            )
        check_jobs(self.jobs)
        if self.stages:  # whatever runs them: a wrong kind is a slip of the file
            from pagoda_bench.plan.requests import Profile
            from pagoda_bench.recipes.registry import load_all

            load_all()
            Profile().with_stages(self.stages, "sweep")


def launch_options(command: F) -> F:
    """--executor, --jobs, --cluster."""
    where = "With --executor slurm: a profile, by name or as a TOML file [default: see docs/slurm.md]."
    command = click.option("--cluster", "cluster", metavar="NAME|FILE", help=where)(command)
    processes = "With --executor local: processes at a time [default: one a GPU, else one]."
    command = click.option("--jobs", type=int, metavar="N", help=processes)(command)
    names = f"What runs the stages: {', '.join(EXECUTORS)}."
    return click.option("--executor", default="inline", show_default=True, metavar="NAME", help=names)(command)


def launch(plan: Plan, places: Mapping[str, Path], how: Launch, name: str) -> Outcome | None:
    """Runs a plan; None when it was submitted and goes on without this process."""
    from pagoda_bench.plan.inline import run_plan

    if how.max_jobs is not None and len(plan.to_make) > how.max_jobs:
        raise UserError(f"this is {len(plan.to_make)} jobs, more than --max-jobs {how.max_jobs}: ask for less, or raise that")
    if how.executor == "inline" or not plan.to_make:
        return run_plan(plan, data=places, keep_going=True)
    about = {"collect": dict(how.about)}
    if how.executor == "local":
        from pagoda_bench.plan.local import run_local

        return run_local(plan, data=places, jobs=how.jobs, name=name, about=about)
    from pagoda_bench.plan.slurm import MAX_JOBS, submit_plan

    profile = how.profile()
    sweep = submit_plan(plan, profile, name=name, data=places, max_jobs=how.max_jobs or MAX_JOBS, about=about)
    submitted, already = sum(len(job.keys) for job in sweep.jobs), len(sweep.tasks) - len(sweep.job_ids())
    waits = f" ({already} more were in the queue already)" if already else ""
    click.echo(f"submitted {submitted} jobs{waits} in {len(sweep.jobs)} calls of sbatch: {sweep.name}")
    click.echo(f"  pagoda-bench status {sweep.name} --watch     pagoda-bench collect {sweep.name}")
    return None


def dry_run(plan: Plan, how: Launch) -> None:
    """Shows a plan, and for a cluster what it would be submitted as."""
    import sys

    from rich.console import Console

    from pagoda_bench.plan.tree import render_tree

    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(render_tree(plan))
    if how.executor == "slurm":
        from pagoda_bench.plan.slurm import describe_submission

        click.echo(describe_submission(plan, how.profile()))
