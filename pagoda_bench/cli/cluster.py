"""`pagoda-bench cluster`: does a cluster do what its profile says, before anyone spends a day."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from pagoda_bench.cli.common import (
    Group,
    data_option,
    data_places,
    echo_columns,
    echo_json,
    json_option,
    open_store,
    store_option,
)
from pagoda_bench.errors import UserError

MEGABYTES = 64


@click.group(
    cls=Group,
    epilog="""\b
Examples:
  pagoda-bench cluster check
  pagoda-bench cluster check --cluster mine --kind edm
""",
)
def cluster() -> None:
    """Look at a cluster through its profile."""


@cluster.command(
    epilog="""\b
Examples:
  pagoda-bench cluster check --cluster mine                  what a node sees
  pagoda-bench cluster check --cluster mine --kind edm       with the request that a teacher would make
  pagoda-bench cluster check --data /data/ILSVRC2012.zip     can the nodes read the images?
"""
)
@click.option("--cluster", "name", metavar="NAME|FILE", help="The profile [default: see docs/slurm.md].")
@click.option("--kind", default="default", show_default=True, help="The kind of stage whose request is tried.")
@click.option("--wait", "seconds", type=click.FloatRange(min=1), default=300, show_default=True, help="Seconds to wait for it.")
@data_option
@store_option
@json_option
def check(
    name: str | None, kind: str, seconds: float, data_paths: tuple[str, ...], store_path: Path | None, as_json: bool
) -> int:
    """Submit a tiny job and report what its node sees: GPU, driver, torch, the images, the speed of store and scratch.

    The exit code is 1 when something that a stage needs is not there.
    """
    from pagoda_bench.plan.requests import load_profile
    from pagoda_bench.plan.slurm_probe import probe

    profile = load_profile(name)
    store = open_store(store_path)
    report = probe(profile, kind, store.root, [str(path) for path in data_places(data_paths).values()], seconds)
    if as_json:
        echo_json(report)
    else:
        echo_columns(
            [(key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)) for key, value in report.items()]
        )
    return int(bool(report["problems"]))


@cluster.command(
    "look",
    hidden=True,
    epilog="\b\nExamples:\n  pagoda-bench cluster look STORE REPORT.json [DATA]...   (what the job of 'check' runs)\n",
)
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("report", type=click.Path(path_type=Path))
@click.argument("data", nargs=-1)
@click.option("--scratch", help="The profile's, variables and all.")
def look(store: Path, report: Path, data: tuple[str, ...], scratch: str | None) -> None:
    """Write what this machine sees to a JSON file."""
    from pagoda_bench.artifacts.checkpoint import write_json

    write_json(report, seen_here(store, data, scratch))


def seen_here(store: Path, data: tuple[str, ...], scratch: str | None = None) -> dict[str, Any]:
    """What a stage would find on this machine."""
    problems = [f"{path}: no such file or folder on {socket.gethostname()}" for path in data if not Path(path).exists()]
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    torch_version, cuda, names = _torch()
    if gpus and not cuda:
        problems.append("SLURM gave a GPU, but torch cannot use it: driver, or a torch without CUDA")
    place = Path(os.path.expandvars(scratch)) if scratch else Path(tempfile.gettempdir())
    speeds = {}
    for name, folder in (("store", store), ("scratch", place)):
        try:
            speeds[name] = f"{_speed(folder):.0f} MB/s"
        except OSError as error:
            problems.append(f"cannot write to the {name} {folder}: {error.strerror}")
    return {
        "node": socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch_version,
        "cuda": cuda,
        "gpus given": gpus,
        "gpus": names,
        "driver": _driver(),
        "cpus": len(os.sched_getaffinity(0)),
        "store": str(store),
        "store writes": speeds.get("store", ""),
        "scratch": str(place),
        "scratch writes": speeds.get("scratch", ""),
        "free": f"{shutil.disk_usage(_there(store)).free / 1e9:.0f} GB",
        "data": list(data),
        "problems": problems,
    }


def _torch() -> tuple[str, bool, list[str]]:
    """Asked of another process: a broken CUDA can end the one that asks."""
    program = (
        "import json, torch; c = torch.cuda.is_available(); "
        "print(json.dumps([torch.__version__, c, [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]]))"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=240)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it does not start"])[-1]
        return f"broken: {last}", False, []
    version, cuda, names = json.loads(done.stdout.splitlines()[-1])
    return str(version), bool(cuda), [str(name) for name in names]


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "none"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return (done.stdout.splitlines() or ["it does not answer"])[0]


def _speed(folder: Path) -> float:
    """Megabytes a second of one file written to the disk that holds `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".speed-") as file:
        block, start = os.urandom(2**20), time.monotonic()
        for _ in range(MEGABYTES):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return MEGABYTES * 2**20 / 1e6 / (time.monotonic() - start)


def _there(path: Path) -> Path:
    """The nearest folder above that exists."""
    for place in (path, *path.parents):
        if place.exists():
            return place
    raise UserError(f"{path}: no folder above it exists")
