"""The package as somebody else installs it: what is in the wheel, that it runs away from the checkout, that pins are whole."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pagoda_bench import __version__

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def needed(names: list[str]) -> Iterator[Requirement]:
    """Requirements of `names` and of all that they bring in, as they are installed here."""
    todo = [Requirement(name) for name in names]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        mark = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if mark in seen:
            continue
        seen.add(mark)
        yield requirement
        for line in importlib.metadata.requires(requirement.name) or []:
            below = Requirement(line)
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
                todo.append(below)


def run_installed(unpacked: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The console script of the unpacked wheel, in `folder`, with the wheel before the checkout."""
    code = "import sys; from pagoda_bench.cli.main import main; sys.argv[0] = 'pagoda-bench'; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(unpacked), "COLUMNS": "120"}
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_the_version_is_said_once(project: dict[str, Any]) -> None:
    assert project["version"] == __version__
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_every_dependency_is_pinned_and_within_its_range(project: dict[str, Any], pins: dict[str, str]) -> None:
    direct = [*project["dependencies"], *project["optional-dependencies"]["dev"], *["hatchling"]]
    for requirement in needed(direct):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt lacks {name}"
        assert requirement.specifier.contains(pins[name], prereleases=True), f"{requirement} excludes the pinned {pins[name]}"


def test_pins_are_plain() -> None:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[a-z0-9]+(?:-[a-z0-9]+)*==[\w.]+", line), line


def test_the_wheel_holds_code_types_and_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert {"pagoda_bench/py.typed", "pagoda_bench/cli/main.py"} <= names
    assert "pagoda-bench = pagoda_bench.cli.main:main" in entry_points
    assert {n.split("/")[0].removesuffix(f"-{__version__}.dist-info") for n in names} == {"pagoda_bench", "baselines"}
    baselines = {p.relative_to(ROOT).as_posix() for p in (ROOT / "baselines").rglob("*.py")}
    assert baselines <= names
    assert "[pagoda_bench.methods]\n" in entry_points
    assert "greedy = baselines.greedy.recipes:build" in entry_points
    for source, target in (("experiments", "*.yaml"), ("paper_tables", "*.csv"), ("results", "*.csv")):
        expected = {f"pagoda_bench/_data/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / source).rglob(target)}
        assert expected <= names
    released = {
        f"pagoda_bench/_data/{p.relative_to(ROOT).as_posix()}"
        for p in ROOT.glob("results/released/**/*")
        if p.is_file() and ".locks" not in p.parts
    }
    assert released <= names
    assert not [n for n in names if re.search(r"__pycache__|/tests/|\.png$|\.svg$", n)]


def test_the_wheel_brings_the_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (license_file,) = (n for n in archive.namelist() if n.endswith("licenses/LICENSE"))
        assert archive.read(license_file) == (ROOT / "LICENSE").read_bytes()


def test_resources_are_found_in_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    code = "from pagoda_bench import resources; print(resources.folder('experiments') / 'table1.yaml')"
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    found = Path(done.stdout.strip())
    assert found.is_relative_to(unpacked)
    assert found.read_bytes() == (ROOT / "experiments" / "table1.yaml").read_bytes()


def test_the_installed_program_plans_a_table_from_any_directory(unpacked: Path, tmp_path: Path) -> None:
    done = run_installed(unpacked, tmp_path, "reproduce", "table1", "--scale", "smoke", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout
    assert not list(tmp_path.iterdir()), "a dry run must leave nothing behind"


def test_the_installed_program_knows_the_baselines(unpacked: Path, tmp_path: Path) -> None:
    done = run_installed(unpacked, tmp_path, "methods", "greedy", "samples", "--json")
    assert done.returncode == 0, done.stderr
    assert [row["name"] for row in json.loads(done.stdout)] == ["greedy", "samples"]
    assert not done.stderr


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs the processor time of one child")
def test_help_is_quick(tmp_path: Path) -> None:
    """At most 0.4 s: the processor time of the quickest of five, so that a busy machine does not fail it."""
    command = [sys.executable, "-c", "from pagoda_bench.cli.main import main; main()", "--help"]
    spent = []
    for _ in range(5):
        with (tmp_path / "help.txt").open("w") as out:
            child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0, (tmp_path / "help.txt").read_text()
        spent.append(usage.ru_utime + usage.ru_stime)
    assert "reproduce" in (tmp_path / "help.txt").read_text()
    assert min(spent) <= 0.4
