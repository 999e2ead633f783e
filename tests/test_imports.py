"""Imports run downward only, and what plans, lists and renders never loads torch."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "pagoda_bench"

# From the top to the bottom. A part may import from lower layers and from its neighbours in the same layer, as long as
# the neighbours do not import each other in a circle.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("tables", "budgets"),
    ("plan",),
    ("pagoda",),
    ("training", "sampling", "metrics"),
    ("nets", "diffusion", "data"),
    ("recipes", "artifacts"),
    ("errors", "resources"),
)
DEPTH = {part: depth for depth, layer in enumerate(LAYERS) for part in layer}
WITHOUT_TORCH = ("recipes", "artifacts", "plan", "tables", "budgets", "cli", "errors", "resources")
MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """`pagoda_bench/nets/unet.py` as `pagoda_bench.nets.unet`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of every import in a file, those inside functions and type-checking blocks too."""
    package = dotted(path).split(".") if path.name == "__init__.py" else dotted(path).split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base == "pagoda_bench":  # from pagoda_bench import resources
                found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, base))
    return found


def part_of(name: str) -> str | None:
    """The part of the package that a dotted name belongs to; None outside the package and for the package itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "pagoda_bench" and len(parts) > 1 and parts[1] in DEPTH else None


def violations(path: Path) -> list[str]:
    mine = part_of(dotted(path))
    found = []
    for line, name in imports(path):
        other = part_of(name)
        where = f"{path.relative_to(PACKAGE.parent)}:{line} imports {name}"
        if name.split(".")[0] == "baselines":
            found.append(f"{where}: the harness must not know a baseline by name")
        elif other and mine and DEPTH[other] < DEPTH[mine]:
            found.append(f"{where}: '{other}' is above '{mine}'")
        elif other and mine is None:
            found.append(f"{where}: the top of the package must stay empty")
    return found


def test_every_part_has_a_layer() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
    assert parts <= set(DEPTH), f"add to LAYERS: {sorted(parts - set(DEPTH))}"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_run_downward(path: Path) -> None:
    assert not violations(path)


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("nets/unet.py", "from pagoda_bench.training import loop", "'training' is above 'nets'"),
        ("recipes/base.py", "def f():\n    import pagoda_bench.cli.main", "'cli' is above 'recipes'"),
        ("data/resize.py", "from ..sampling.noise import noise", "'sampling' is above 'data'"),
        ("errors.py", "from pagoda_bench import plan", "'plan' is above 'errors'"),
        ("cli/main.py", "import baselines.gan", "baseline by name"),
    ],
)
def test_the_rule_sees_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, line: str, words: str) -> None:
    path = tmp_path / "pagoda_bench" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line, encoding="utf-8")
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "pagoda_bench")
    (found,) = violations(path)
    assert words in found


def test_neighbours_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {part: set() for part in DEPTH}
    for path in MODULES:
        if mine := part_of(dotted(path)):
            graph[mine] |= {other for _, name in imports(path) if (other := part_of(name)) and other != mine}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def loaded_by(*modules: str) -> set[str]:
    """The top-level names in `sys.modules` of a fresh interpreter that has imported `modules`."""
    code = f"import sys, {', '.join(modules)}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_planning_and_rendering_never_load_torch() -> None:
    modules = [dotted(path) for path in MODULES if part_of(dotted(path)) in WITHOUT_TORCH and path.name != "__main__.py"]
    assert "torch" not in loaded_by(*modules)


def test_the_command_line_starts_light() -> None:
    heavy = {"torch", "numpy", "scipy", "matplotlib", "PIL", "safetensors", "sklearn"}
    assert not heavy & loaded_by("pagoda_bench.cli.main")


def test_named_runners_and_loaders_exist() -> None:
    """Recipes name the code that makes them as "module:function" without importing it; each such name leads somewhere."""
    for path in sorted((PACKAGE / "recipes").glob("*.py")):
        importlib.import_module(dotted(path))
    from pagoda_bench.recipes.base import KINDS

    named = {
        name
        for config in KINDS.values()
        for field in ("runner", "loader")
        if config.__module__.startswith("pagoda_bench.") and (name := getattr(config, field, ""))
    }
    assert named
    assert not [name for name in sorted(named) if not is_defined(*name.split(":"))]


def is_defined(module: str, function: str) -> bool:
    """Whether the source of `module` defines `function` at its top, judged without importing it."""
    stem = PACKAGE.parent.joinpath(*module.split("."))
    file = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
    if not file.is_file():
        return False
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == function for node in body)
