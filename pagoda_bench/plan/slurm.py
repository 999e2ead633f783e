"""The SLURM launcher: a sweep becomes arrays, one per level of the plan and shape of request, and the call returns.

A level waits for the arrays of the levels below that make what it needs, however their elements end (`afterany`): a stage
looks for its inputs itself, so one failure does not hold up the others of its array. submitit writes the batch scripts,
submits the arrays and starts the tasks; each task is a command and a JSON file (see slurm_task).
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagoda_bench.artifacts.checkpoint import write_json
from pagoda_bench.artifacts.locks import Locks
from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError, nearest
from pagoda_bench.plan import slurm_query as slurm
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.processes import user as me
from pagoda_bench.plan.requests import Profile, Request, shapes
from pagoda_bench.plan.slurm_task import StageTask
from pagoda_bench.plan.snapshot import freeze
from pagoda_bench.plan.sweeps import AREA, Job, Sweep, Task, sweeps, tasks_of
from pagoda_bench.plan.watch import made

if TYPE_CHECKING:
    from submitit import SlurmExecutor

MAX_JOBS = 10_000


def submit_plan(
    plan: Plan,
    profile: Profile,
    *,
    name: str,
    data: Mapping[str, Path] | None = None,
    max_jobs: int = MAX_JOBS,
    about: Mapping[str, Any] | None = None,
) -> Sweep:
    """Submits what `plan` has to make and returns at once. `about` goes into the sweep's sweep.json.

    What another sweep of the same store has in the queue is not submitted again: what needs it waits for that job. A
    retraining waits for jobs of its own session alone.

    Raises:
        UserError: nothing was submitted (or what was is cancelled again), and why.
    """
    requests = [profile.request(recipe) for recipe in plan.to_make]
    _ready(profile, requests)
    if (jobs := sum(request.shards for request in requests)) > max_jobs:
        raise UserError(f"this is {jobs} jobs, more than --max-jobs {max_jobs}: ask for less, or raise that")
    plan.begin()
    with submitting(plan.store):
        code = freeze(plan.store.root / AREA)
        said = {"cluster": profile.to_dict(), "code": code, **(about or {})}
        sweep = Sweep.create(plan, name, executor="slurm", data=data or {}, **said)
        try:
            submit_tasks(sweep, list(sweep.tasks), profile, plan.store)
        except BaseException:
            shutil.rmtree(sweep.folder, ignore_errors=True)
            raise
    return sweep


def resume(sweep: Sweep, keys: Sequence[str], profile: Profile, store: Store) -> int:
    """Submits stages of a sweep again, under the code and into the folder of the first time; returns how many."""
    _ready(profile, [profile.request(sweep.recipe(key)) for key in keys])
    with submitting(store):
        sweep.reserve()
        if sweep.about["cluster"] != profile.to_dict():
            write_json(sweep.folder / "sweep.json", {**sweep.about, "cluster": profile.to_dict()})
        (sweep.folder / "closed").unlink(missing_ok=True)
        return submit_tasks(sweep, keys, profile, store)


@contextmanager
def submitting(store: Store) -> Iterator[None]:
    """Two submissions to one store come one after the other, so that the second sees the jobs of the first."""
    with Locks(store.root / AREA / ".locks").held(
        "submit", lambda who: store.notify(f"waiting for {who}, which is submitting")
    ):
        yield


def submit_tasks(sweep: Sweep, keys: Sequence[str], profile: Profile, store: Store) -> int:
    """One call of sbatch for each level, shape and `MaxArraySize` elements. Must run inside `submitting`."""
    session = sweep.about["session"]
    live = live_jobs(store, session)
    wanted = [t for key in keys if key not in live and made(t := sweep.tasks[key], store, session) is None]
    sweep.borrow({key: live[key] for key in keys if key in live}, own=[task.key for task in wanted])
    requests = {task.key: profile.request(sweep.recipe(task.key)) for task in wanted}
    limit = slurm.max_array_size()
    makers = {key: {job.partition("_")[0] for job in jobs} for key, (jobs, _) in live.items()}  # what makes a key
    submitted: list[str] = []
    try:
        for level in sorted({task.level for task in wanted}):
            tasks = [task for task in wanted if task.level == level]
            for shape in shapes(requests[task.key] for task in tasks):
                alike = [task for task in tasks if requests[task.key] == shape]
                size = per_call(limit, shape)
                for first in range(0, len(alike), size):
                    chunk = alike[first : first + size]
                    after = sorted({job for task in chunk for key in task.needs for job in makers.get(key, ())}, key=int)
                    job = _sbatch(sweep, chunk, shape, profile, after)
                    submitted.append(job.id)
                    sweep.add_job(job)
                    makers |= {task.key: {job.id} for task in chunk}
    except BaseException:
        if submitted:  # a part of a sweep is of no use to anybody
            slurm.cancel(submitted)
        raise
    return len(wanted)


def per_call(limit: int, shape: Request) -> int:
    """How many stages of a shape go into one array; the shards of one stage stay together."""
    if shape.shards > limit:
        raise UserError(f"shards = {shape.shards} is more than an array of this cluster may have elements ({limit})")
    return limit // shape.shards


def live_jobs(store: Store, session: str | None = None) -> dict[str, tuple[tuple[str, ...], str]]:
    """Key -> (jobs, their user), for all stages that some sweep of this store has in the queue or running. With `session`
    only those of that retraining, which takes nothing that others make. `UserError` when SLURM does not answer."""
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    queues: dict[str, dict[str, slurm.Seen]] = {}
    for sweep in sweeps(store):
        if sweep.closed or sweep.about["executor"] != "slurm" or session not in (None, sweep.about["session"]):
            continue
        for user in sweep.users - queues.keys():
            queues[user] = _queue(user)
        live = {job: user for user in sweep.users for job, seen in queues[user].items() if seen.live}
        for key, jobs in sweep.elements().items():
            if alive := tuple(job for job in jobs if job in live):
                found[key] = (alive, live[alive[0]])
    return found


def _queue(user: str) -> dict[str, slurm.Seen]:
    """What a user has in the queue: nothing, if SLURM does not know who that is."""
    found = slurm.queue(user)
    if found is None and slurm.queue(me()) is None:
        raise UserError("SLURM does not answer ('squeue' fails), so what is in the queue already is not known: try again later")
    return found or {}


def _ready(profile: Profile, requests: Sequence[Request]) -> None:
    """Refuses what SLURM would refuse, as far as that can be known before."""
    slurm.need_slurm()
    _submitit()
    # A node's own disk cannot be seen from here; a shared one, or a plain mistake, can.
    scratch = Path(os.path.expandvars(profile.scratch or ""))
    if "$" not in str(scratch) and scratch.exists() and not (scratch.is_dir() and os.access(scratch, os.W_OK)):
        raise UserError(f"scratch {scratch} is no folder that can be written to: change 'scratch' in the cluster's profile")
    known, machines = slurm.partitions(), slurm.nodes()
    for request in shapes(requests):
        asked = (request.partition or profile.partition or "").split(",")  # several: SLURM takes whichever comes first
        for partition in asked if known else ():
            if partition and partition not in known:
                raise UserError(f"unknown partition '{partition}'{nearest(partition, filter(None, known))}")
        longest = max((known[partition] for partition in asked if partition in known), default=float("inf"))
        if request.minutes > longest:
            named = f"partition '{','.join(asked)}'" if any(asked) else "the default partition"
            raise UserError(
                f"a stage asks for {request.time} ({request.minutes} minutes), {named} allows "
                f"{longest:.0f}: change 'time' in the cluster's profile"
            )
        _fits(request, [node for partition in asked for node in machines.get(partition, ())], ",".join(asked))


def _fits(request: Request, nodes: Sequence[slurm.Node], partition: str) -> None:
    """SLURM may leave a job that no node can hold in the queue for ever. Nothing is known where `nodes` is empty."""
    named = f"partition '{partition}'" if partition else "the default partition"
    wanted = {"CPUs": request.cpus * request.tasks, "GB of memory": request.mem_gb or 0, "GPUs": request.gpus}
    has = [{"CPUs": node.cpus, "GB of memory": node.mem_gb, "GPUs": node.gpus} for node in nodes]
    for what, count in wanted.items() if has else ():
        if count > (most := max(node[what] for node in has)):
            raise UserError(
                f"a stage asks for {count:g} {what} on a node, the largest of {named} has {most:.3g}: "
                "change 'stages' in the cluster's profile"
            )
    whole = sum(all(node[what] >= count for what, count in wanted.items()) for node in has)
    if has and whole < request.nodes:
        raise UserError(
            f"a stage asks for {request.nodes} nodes with {', '.join(f'{n:g} {what}' for what, n in wanted.items() if n)}, "
            f"{named} has {whole}: change 'stages' in the cluster's profile"
        )


def _submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError:
        raise UserError("submitting to SLURM needs submitit: pip install 'pagoda-bench[slurm]'") from None
    return submitit


def executor(folder: Path, profile: Profile, request: Request, name: str, setup: Sequence[str] = ()) -> SlurmExecutor:
    """submitit's executor for one shape of request."""
    submitit = _submitit()
    # A notice during Python's start would end it; the task's own clock makes up for one that is ignored here.
    python = f'sh -c \'trap "" USR2; exec "$@"\' sh {profile.python or shlex.quote(sys.executable)}'
    ready: SlurmExecutor = submitit.SlurmExecutor(folder=folder, python=python)
    ready._throttling = 0.0  # its pause between submissions is for calls by the hundred
    ready.update_parameters(**parameters(profile, request, name), setup=[*profile.setup, *setup])
    return ready


def parameters(profile: Profile, request: Request, name: str) -> dict[str, Any]:
    """What submitit is told, by its names."""
    partition, qos = request.partition or profile.partition, request.qos or profile.qos
    # one process that fails, or is through long before the others, takes the rest of its step along
    together = ["--kill-on-bad-exit=1", "--wait=600"] if request.nodes * request.tasks > 1 else []
    said: dict[str, Any] = {
        "job_name": name,
        "time": request.minutes,
        "nodes": request.nodes,
        "ntasks_per_node": request.tasks if request.tasks > 1 or request.nodes > 1 else None,
        "cpus_per_task": request.cpus,
        "partition": partition,
        "qos": qos,
        "account": profile.account,
        "constraint": request.constraint or profile.constraint,
        "exclude": profile.exclude,
        "mem": None if request.mem_gb is None else f"{max(1, round(request.mem_gb * 1024))}M",
        "array_parallelism": profile.parallel,
        "signal_delay_s": profile.signal_delay,
        "stderr_to_stdout": True,
        "srun_args": [f"--cpus-per-task={request.cpus}", *together, *profile.srun_args],
        "wckey": profile.wckey,
    }
    more: dict[str, Any] = {"requeue": True, **profile.options}
    if profile.reservation:
        more["reservation"] = profile.reservation
    if request.gpus:
        kind = f"{profile.gpu_type}:" if profile.gpu_type else ""
        option = "gres" if profile.gpu_option == "gres" else "gpus-per-node"
        more[option] = f"{'gpu:' if option == 'gres' else ''}{kind}{request.gpus}"
    said["additional_parameters"] = more
    return {key: value for key, value in said.items() if value is not None or key == "wckey"}


def _sbatch(sweep: Sweep, tasks: Sequence[Task], request: Request, profile: Profile, after: Sequence[str]) -> Job:
    """One call of sbatch, in a fresh folder of submitit's."""
    folder = sweep.next_submission()
    code = sweep.about["code"]["path"]
    setup = [f"export PYTHONPATH={shlex.quote(code)}${{PYTHONPATH:+:$PYTHONPATH}}"] if code else []
    runner = executor(folder, profile, request, f"{sweep.name.rsplit('-', 3)[0]}:{tasks[0].kind}", setup)
    if after:
        runner.update_parameters(dependency="afterany:" + ":".join(after))
    n = request.shards
    parts = [(task.key, f"{i}/{n}" if n > 1 else None) for task in tasks for i in range(n)]
    jobs = submit_array(runner, [StageTask(str(sweep.folder), key, request.minutes, shard) for key, shard in parts])
    keys = tuple(key for key, _ in parts)
    return Job(jobs[0].job_id.partition("_")[0], len(jobs) > 1, keys, f"submissions/{folder.name}", me())


def submit_array(runner: SlurmExecutor, callables: Sequence[Any]) -> Sequence[Any]:
    """submitit's submission; what sbatch refuses becomes one line."""
    submitit = _submitit()
    try:
        return runner.submit_array(list(callables))
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        words = [line.strip().removeprefix("sbatch: ") for line in str(error).splitlines() if line.strip()]
        said = "; ".join(w for w in words if "error" in w.lower()) or "; ".join(words)
        raise UserError(f"SLURM refuses the submission, nothing was submitted: {said}") from None


def count_calls(tasks: Sequence[Task], profile: Profile, recipes: Mapping[str, Any], limit: int) -> int:
    """How many calls of sbatch a submission will take."""
    groups: dict[tuple[int, Request], int] = {}
    for task in tasks:
        group = (task.level, profile.request(recipes[task.key]))
        groups[group] = groups.get(group, 0) + 1
    return sum(-(-count // per_call(limit, shape)) for (_, shape), count in groups.items())


def describe_submission(plan: Plan, profile: Profile) -> str:
    """For a dry run: e.g. "12 jobs in 5 arrays on 4 levels"."""
    tasks = tasks_of(plan)
    limit = slurm.max_array_size() if shutil.which("scontrol") else 1001
    calls = count_calls(tasks, profile, {r.key: r for r in plan.to_make}, limit)
    levels = len({task.level for task in tasks})
    jobs = sum(profile.request(recipe).shards for recipe in plan.to_make)
    return f"{jobs} jobs in {calls} calls of sbatch on {levels} levels (arrays of at most {limit})"
