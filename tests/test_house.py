"""The house rules that a machine can check, over every file that belongs to the repository."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINES = 350
KILOBYTES = 500
RELEASED = re.compile(r"results/released/")  # payloads that make the first run fast
RELEASED_KILOBYTES = 3_000
RELEASED_TOTAL_KILOBYTES = 25_000
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".cff", ".json", ".csv", ".tex", ".svg", ".cfg", ""}

# Written so that this file is clean under its own rules.
MACHINE_PATH = re.compile(r"(?<![\w.~$}])/(?:root|work|farm|Users|home/[a-z]+|tmp/[a-z])(?:/|\b)")
REGISTRY_HOST = re.compile(r"p[y]pi\.org|p[y]thonhosted|registry\.n[p]mjs|deb\.d[e]bian\.org|p[y]torch\.org/whl", re.IGNORECASE)
LEFTOVER = re.compile(r"\b(?:T[O]DO|F[I]XME|X[X]X|raise Not[I]mplementedError)\b|assert [T]rue\b|pragma: no [c]over")


def repository_files() -> list[Path]:
    """Files that git tracks or would track; in an unpacked source archive, all that no tool left behind."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if (ROOT / ".git").exists() else None
    if done and done.returncode == 0:
        paths = [ROOT / name for name in done.stdout.split("\0") if name]
    else:
        paths = [p for p in ROOT.rglob("*") if not {"__pycache__", ".venv", "build", "dist"} & set(p.relative_to(ROOT).parts)]
    return sorted(p for p in paths if p.is_file())


FILES = repository_files()
SOURCES = [path for path in FILES if path.suffix == ".py"]
TEXTS = [path for path in FILES if path.suffix in TEXT and not (path.suffix == "" and path.name == "LICENSE")]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def matches(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    """`file:line: text` of every line that the pattern finds."""
    return [
        f"{name(path)}:{number}: {line.strip()[:100]}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def broad_excepts(source: str) -> list[int]:
    """Lines of handlers that catch everything and do not end in `raise`, of the same or of an error that carries it as its
    cause, so that a lost result could pass unseen."""

    def catches_all(kind: ast.expr | None) -> bool:
        kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
        return any(k is None or (isinstance(k, ast.Name) and k.id in ("Exception", "BaseException")) for k in kinds)

    def goes_on(handler: ast.ExceptHandler) -> bool:
        last = handler.body[-1]
        if not isinstance(last, ast.Raise):
            return False
        return last.exc is None or (isinstance(last.cause, ast.Name) and last.cause.id == handler.name)

    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ExceptHandler) and catches_all(node.type) and not goes_on(node)
    ]


def test_the_repository_was_found() -> None:
    assert {"pyproject.toml", "pagoda_bench/__init__.py", "tests/test_house.py"} <= {name(path) for path in FILES}


def test_modules_stay_short() -> None:
    long = {name(path): lines for path in SOURCES if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LINES}
    assert not long


def test_no_path_of_somebodys_machine() -> None:
    assert not matches(MACHINE_PATH, TEXTS)


def test_no_package_registry_is_named() -> None:
    assert not matches(REGISTRY_HOST, TEXTS)


def test_nothing_is_left_unfinished() -> None:
    assert not matches(LEFTOVER, SOURCES)


def test_no_broad_except() -> None:
    assert not [f"{name(path)}:{line}" for path in SOURCES for line in broad_excepts(path.read_text(encoding="utf-8"))]


def test_files_stay_small() -> None:
    sizes = {name(path): path.stat().st_size / 1000 for path in FILES}
    released = {path: size for path, size in sizes.items() if RELEASED.match(path)}
    assert not {path: size for path, size in sizes.items() if path not in released and size > KILOBYTES}
    assert not {path: size for path, size in released.items() if size > RELEASED_KILOBYTES}
    assert sum(released.values()) <= RELEASED_TOTAL_KILOBYTES


@pytest.mark.parametrize(
    ("pattern", "bad", "good"),
    [
        (
            MACHINE_PATH,
            ["see /" + "home/ann/x", "'/" + "root/data'"],
            ["a/home/b", "~/" + "work/x", "either/or", "/usr/bin/env"],
        ),
        (REGISTRY_HOST, ["https://p" + "ypi.org/simple"], ["a package registry", "github.com/sony/pagoda"]),
        (LEFTOVER, ["# TO" + "DO later", "raise Not" + "ImplementedError"], ["todos", "NotImplemented"]),
    ],
)
def test_the_patterns_see_what_they_should(pattern: re.Pattern[str], bad: list[str], good: list[str]) -> None:
    assert all(pattern.search(line) for line in bad)
    assert not any(pattern.search(line) for line in good)


@pytest.mark.parametrize(
    ("handler", "lines"),
    [
        ("except Exception:\n    pass", [3]),
        ("except (ValueError, BaseException):\n    print()", [3]),
        ("except:\n    pass", [3]),
        ("except ValueError:\n    pass", []),
        ("except BaseException:\n    print()\n    raise", []),
        ("except Exception as error:\n    raise ValueError() from error", []),
        ("except Exception as error:\n    raise ValueError() from None", [3]),
        ("except Exception:\n    raise ValueError()", [3]),
    ],
)
def test_broad_excepts_are_seen(handler: str, lines: list[int]) -> None:
    assert broad_excepts(f"try:\n    f()\n{handler}\n") == lines
