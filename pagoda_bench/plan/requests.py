"""What a stage asks of a cluster, and the profile that says how a cluster is asked.

Both are recipe-independent: a table by kind of stage, in the cluster's profile or in a sweep file. Nothing here enters a
recipe's key, so the same artifact is found whatever machine made it.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.recipes.base import KINDS, Config, Recipe

DEFAULT = "default"
CAUSES = ("preempted", "time limit", "killed", "CUDA error")  # what may pass if the stage is tried again


class Request(Config):
    """What one stage gets. `time` in any form of SLURM's; `mem_gb` None leaves it to the cluster.

    `gpus` and `mem_gb` are of each node, `tasks` (processes) too, `cpus` of each task. Several `nodes` or `tasks` are for
    stages that compute in several processes at once; `shards` jobs, each with all of this, share the work of stages that
    can be shared.
    """

    gpus: int = Field(0, ge=0)
    nodes: int = Field(1, ge=1)
    tasks: int = Field(1, ge=1)
    shards: int = Field(1, ge=1)
    cpus: int = Field(2, ge=1)
    mem_gb: float | None = Field(None, gt=0)
    time: str = "4:00:00"
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None

    @field_validator("time", mode="before")
    @classmethod
    def _readable(cls, value: Any) -> Any:
        minutes(str(value))
        return str(value)

    @property
    def minutes(self) -> int:
        return minutes(self.time)


class Retries(Config):
    """How often a stage is tried again for each cause, within one submission."""

    preempted: int = Field(100, ge=0)
    time_limit: int = Field(20, ge=0)
    killed: int = Field(2, ge=0)
    cuda_error: int = Field(1, ge=0)

    def of(self, cause: str) -> int:
        """The number for one of `CAUSES`; 0 for every other cause."""
        return int(getattr(self, cause.lower().replace(" ", "_"))) if cause in CAUSES else 0


class Profile(Config):
    """A cluster. `stages` holds requests by kind of stage, over those under `default`."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    reservation: str | None = None
    wckey: str | None = None
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    gpu_type: str | None = None
    setup: tuple[str, ...] = ()  # lines of shell before the stage: modules, environments, variables
    python: str | None = None  # what starts Python there, e.g. "apptainer exec --nv image.sif python"
    srun_args: tuple[str, ...] = ()
    signal_delay: int = Field(120, ge=10)  # seconds before the time limit at which a stage is told to save its work
    parallel: int = Field(256, ge=1)  # elements of one array that may run at a time
    scratch: str | None = None  # the TMPDIR of stages, e.g. "/local/$SLURM_JOB_ID"; made if need be, on the node
    threads: int | None = Field(None, ge=1)  # of a stage; None: as many as its CPUs
    options: dict[str, str] = Field(default_factory=dict)  # further options of sbatch, without their dashes
    retries: Retries = Retries()
    stages: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def request(self, recipe: Recipe) -> Request:
        """What `recipe`'s stage gets on this cluster."""
        values = {**self.stages.get(DEFAULT, {}), **self.stages.get(recipe.kind, {})}
        found = Request.load(values, f"stages.{recipe.kind}")
        if found.shards > 1 and not recipe.sharder:
            raise UserError(f"stages.{recipe.kind}: shards = {found.shards}: the work of this kind of stage cannot be shared")
        if found.nodes * found.tasks > 1 and not recipe.distributed:
            asked = f"nodes = {found.nodes}, tasks = {found.tasks}"
            raise UserError(f"stages.{recipe.kind}: {asked}: this kind of stage computes in one process: ask for 1 and 1")
        if found.shards > 1 and found.nodes * found.tasks > 1:
            raise UserError(f"stages.{recipe.kind}: give shards, or several nodes and tasks, not both")
        return found

    def checked(self, where: str) -> Profile:
        """Itself, once every request in it is known to be well-formed; a `UserError` otherwise."""
        known = {DEFAULT, *(kind for kind, config in KINDS.items() if issubclass(config, Recipe))}
        for kind, values in self.stages.items():
            if kind not in known:
                raise UserError(f"{where}: stages: unknown kind of stage '{kind}'" + nearest(kind, known))
            Request.load(values, f"{where}: stages.{kind}")
        return self

    def with_stages(self, stages: Mapping[str, Mapping[str, Any]], where: str) -> Profile:
        """A copy in which `stages` (of a sweep file) go before the profile's own."""
        merged = {kind: {**self.stages.get(kind, {}), **stages.get(kind, {})} for kind in {*self.stages, *stages}}
        return self.model_copy(update={"stages": merged}).checked(where)


def minutes(text: str) -> int:
    """A time in one of SLURM's forms (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S) as whole minutes, rounded up."""
    match = re.fullmatch(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(?:(\d+):)?(\d+):(\d+)|(\d+))", text.strip())
    if not match:
        raise ValueError(f"'{text}' is not a time that SLURM takes: write e.g. 90 (minutes), 4:00:00 or 2-12:00:00")
    days, day_hours, day_minutes, day_seconds, hours, middle, seconds, alone = (int(g or 0) for g in match.groups())
    total = days * 1440 + (day_hours + hours) * 60 + day_minutes + middle + alone
    total += math.ceil((day_seconds + seconds) / 60)
    if total < 1:
        raise ValueError(f"'{text}' is no time at all: give a stage at least a minute")
    return total


def config_folder() -> Path:
    """`pagoda-bench/clusters` in the user's folder of settings."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pagoda-bench" / "clusters"


def load_profile(name: str | None) -> Profile:
    """The profile in the file `name`, or of that name in the user's folder. None: $PAGODA_BENCH_CLUSTER, else the profile
    called `default`, else the only one there is, else SLURM's own defaults."""
    from pagoda_bench.recipes.registry import load_all

    load_all()
    folder = config_folder()
    there = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    name = name or os.environ.get("PAGODA_BENCH_CLUSTER")
    if name is None:
        path = there.get(DEFAULT) or (next(iter(there.values())) if len(there) == 1 else None)
        if path is None and there:
            raise UserError(f"{folder} holds several clusters: choose one with --cluster{nearest('', there)}")
        return Profile() if path is None else _read(path)
    if name.endswith(".toml") or "/" in name:
        return _read(Path(name))
    if name not in there:
        raise UserError(f"unknown cluster '{name}' in {folder}" + nearest(name, there))
    return _read(there[name])


def _read(path: Path) -> Profile:
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the cluster profile {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is no TOML: {' '.join(str(error).split())}") from None
    return Profile.load(value, str(path)).checked(str(path))


def shapes(requests: Iterable[Request]) -> list[Request]:
    """The different ones, in order of appearance."""
    return list(dict.fromkeys(requests))
