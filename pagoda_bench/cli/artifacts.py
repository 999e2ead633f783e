"""`pagoda-bench artifacts`: what is in the store, whether it is whole, and what may go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagoda_bench.cli.common import Group, bytes_text, echo_columns, echo_json, json_option, open_store, store_option
from pagoda_bench.errors import UserError, nearest

if TYPE_CHECKING:
    from pagoda_bench.artifacts.store import Artifact, Store
    from pagoda_bench.recipes.base import Recipe


@click.group(
    cls=Group,
    epilog="""\b
Examples:
  pagoda-bench artifacts ls
  pagoda-bench artifacts show grow/3f2a
  pagoda-bench artifacts verify
  pagoda-bench artifacts gc --delete
""",
)
def artifacts() -> None:
    """Look after the artifact store."""


@artifacts.command(
    epilog="""\b
Examples:
  pagoda-bench artifacts ls                 everything, local and released
  pagoda-bench artifacts ls distill grow    of these kinds
  pagoda-bench artifacts ls --json | jq -r '.[].key'
"""
)
@click.argument("kinds", nargs=-1, metavar="[KIND]...")
@store_option
@json_option
def ls(kinds: tuple[str, ...], store_path: Path | None, as_json: bool) -> None:
    """List artifacts: kind, key, where, size, when and in what time made, title."""
    from pagoda_bench.plan.progress import duration

    store = open_store(store_path)
    found = list(store.artifacts())
    if unknown := [kind for kind in kinds if kind not in {a.kind for a in found}]:
        raise UserError(f"no artifact of kind '{unknown[0]}'" + nearest(unknown[0], {a.kind for a in found}))
    rows = [_facts(a) for a in found if not kinds or a.kind in kinds]
    if as_json:
        echo_json(rows)
    elif rows:
        head = ("KIND", "KEY", "WHERE", "SIZE", "MADE (UTC)", "IN", "TITLE")
        table = [
            (
                r["kind"],
                r["key"],
                r["where"],
                bytes_text(r["bytes"]),
                (r["finished"] or "")[:16].replace("T", " "),
                "" if r["wall_seconds"] is None else duration(r["wall_seconds"]),
                r["title"],
            )
            for r in rows
        ]
        echo_columns([head, *table], right=(3, 5))
    else:
        click.echo(f"no artifacts in {store.root}")


@artifacts.command(
    epilog="""\b
Examples:
  pagoda-bench artifacts show 3f2a            by the first digits of its key
  pagoda-bench artifacts show grow/3f2a --json
"""
)
@click.argument("name", metavar="[KIND/]KEY")
@store_option
@json_option
def show(name: str, store_path: Path | None, as_json: bool) -> None:
    """Show an artifact's recipe, provenance and files."""
    from pagoda_bench.artifacts.checkpoint import read_json
    from pagoda_bench.artifacts.digests import RECIPE, files

    store = open_store(store_path)
    artifact = _pick(store, name)
    shown = {
        **_facts(artifact),
        "path": str(artifact.path),
        "digest": artifact.digest,
        "files": {file: status.st_size for file, status in files(artifact.path).items()},
        "recipe": read_json(artifact.path / RECIPE),
        "provenance": artifact.provenance,
    }
    if as_json:
        echo_json(shown)
        return
    click.echo(f"{artifact.name}  {shown['title']}  ({shown['where']})\n{artifact.path}\n")
    echo_columns([(file, bytes_text(size)) for file, size in shown["files"].items()], right=(1,))
    for title in ("recipe", "provenance"):
        click.echo(f"\n{title}")
        echo_json(shown[title])


@artifacts.command(
    epilog="""\b
Examples:
  pagoda-bench artifacts verify               all of them
  pagoda-bench artifacts verify grow/3f2a
"""
)
@click.argument("names", nargs=-1, metavar="[[KIND/]KEY]...")
@store_option
@json_option
def verify(names: tuple[str, ...], store_path: Path | None, as_json: bool) -> int:
    """Read every file and compare it with its digest. The exit code is 1 when one is damaged; nothing is changed."""
    store = open_store(store_path)
    chosen = [_pick(store, name) for name in names] if names else list(store.artifacts())
    problems = {artifact: store.verify(artifact, again=True) for artifact in chosen}
    if as_json:
        echo_json([{"name": a.name, "path": str(a.path), "problem": problem} for a, problem in problems.items()])
    else:
        for artifact, problem in problems.items():
            click.echo(f"{artifact.name}: {'whole' if problem is None else f'DAMAGED: {problem} ({artifact.path})'}")
    return int(any(problems.values()))


@artifacts.command(
    epilog="""\b
Examples:
  pagoda-bench artifacts export grow/3f2a --to results/released
"""
)
@click.argument("names", nargs=-1, required=True, metavar="[KIND/]KEY...")
@click.option("--to", "root", required=True, type=click.Path(path_type=Path, file_okay=False), help="The other store.")
@store_option
def export(names: tuple[str, ...], root: Path, store_path: Path | None) -> None:
    """Copy artifacts into another store, e.g. one that is given away."""
    store = open_store(store_path)
    for artifact in [_pick(store, name) for name in names]:
        click.echo(str(store.export(artifact, root).path))


@artifacts.command(
    epilog="""\b
Examples:
  pagoda-bench artifacts times                        what each stage took
  pagoda-bench artifacts times score/3f2a grow/77     these
  pagoda-bench artifacts times --to results/released  for those who have measured nothing yet
"""
)
@click.argument("names", nargs=-1, metavar="[[KIND/]KEY]...")
@click.option("--to", "root", type=click.Path(path_type=Path, file_okay=False), help="A store that is given away.")
@store_option
@json_option
def times(names: tuple[str, ...], root: Path | None, store_path: Path | None, as_json: bool) -> None:
    """List what stages took, by default all: the estimates of a plan are scaled from it.

    With --to they join, or replace, the entries of that store's times.json.
    """
    from dataclasses import asdict

    from pagoda_bench.plan.estimate import TIMES, measures, save_measures, saved_measures
    from pagoda_bench.plan.progress import duration

    if root is not None and as_json:
        raise UserError("--json prints, --to writes: give one of the two")
    store = open_store(store_path)
    found = list(measures([_pick(store, name) for name in names] if names else store.artifacts()))
    if root is not None:
        own = {(m.kind, m.key) for m in found}
        found += [m for m in saved_measures(root) if (m.kind, m.key) not in own]
        try:
            root.mkdir(parents=True, exist_ok=True)
            save_measures(found, root / TIMES)
        except OSError as error:
            raise UserError(f"--to {root}: cannot write {TIMES} there ({error.strerror}); choose another folder") from None
        click.echo(str(root / TIMES))
    elif as_json:
        echo_json([asdict(m) for m in found])
    else:
        lines = [(m.kind, m.key, duration(m.seconds), f"{m.flops:.1e}" if m.flops else "", m.what) for m in found]
        echo_columns([("KIND", "KEY", "TOOK", "FLOP", "WHAT"), *lines], right=(2, 3))


@artifacts.command(
    epilog="""\b
Examples:
  pagoda-bench artifacts gc                                   only say what would go
  pagoda-bench artifacts gc --older-than 0 --delete           interrupted work too, however fresh
  pagoda-bench artifacts gc --keep score/9b1c --delete        also every artifact that this score does not need
"""
)
@click.option("--delete", is_flag=True, help="Do it. Without this, only say what would go.")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=7,
    show_default=True,
    metavar="DAYS",
    help="Spare interrupted work, and artifacts, that were touched in the last DAYS days.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="RECIPE",
    help="A recipe.json, or the [KIND/]KEY of an artifact. May be given again. With it, artifacts go too: those "
    "that are neither named by a --keep nor upstream of one that is.",
)
@store_option
@json_option
def gc(delete: bool, older_than: float, keep: tuple[str, ...], store_path: Path | None, as_json: bool) -> None:
    """Clear the local store of what is not needed.

    Goes always: what processes that are gone left half written, damaged artifacts, and the trash. Goes after --older-than
    days: interrupted work (the checkpoints that a repeated command would go on from), and the marks of interrupted --retrain
    runs (without its mark, such a command starts anew). Goes only with --keep: artifacts. What a living process is making
    never goes, nor do the work of a stage and the mark of a retraining that wait in a queue, nor released artifacts.
    """
    from pagoda_bench.artifacts.gc import garbage, remove
    from pagoda_bench.plan.watch import living

    store = open_store(store_path)
    items = garbage(store, older_than * 86400, [_kept(store, name) for name in keep] if keep else None, *living(store))
    freed = remove(store, items) if delete else 0
    total = sum(item.size for item in items)
    if as_json:
        found = [{"path": str(item.path), "why": item.why, "bytes": item.size} for item in items]
        echo_json({"deleted": delete, "bytes": freed if delete else total, "garbage": found})
        return
    for item in items:
        click.echo(f"{bytes_text(item.size):>9}  {item.why}: {item.path.relative_to(store.root)}")
    if delete:
        click.echo(f"freed {bytes_text(freed)}")
    else:
        click.echo(f"{bytes_text(total)} could go" + ("; run this again with --delete" if items else ""))


def _facts(artifact: Artifact) -> dict[str, Any]:
    try:
        title = artifact.recipe.title
    except UserError:  # made by another release, or by a package that is not installed here
        title = "(recipe not known to this installation)"
    if artifact.lacks is not None:
        title = f"(damaged: {artifact.lacks} is missing)"
    return {
        "kind": artifact.kind,
        "key": artifact.key,
        "where": "released" if artifact.released else "local",
        "bytes": artifact.size,
        "finished": artifact.provenance.get("finished"),
        "wall_seconds": artifact.provenance.get("wall_seconds"),
        "title": title,
    }


def _pick(store: Store, name: str) -> Artifact:
    """The one artifact that `[KIND/]KEY`, or the first digits of the key, means; a local one before a released one."""
    kind, _, key = name.rpartition("/")
    found = [a for a in store.artifacts() if a.key.startswith(key) and kind in ("", a.kind)]
    names = {a.name for a in found}
    if len(names) == 1:
        return found[0]
    if not names:
        raise UserError(
            f"no artifact '{name}' in {store.root} or among the released ones: 'pagoda-bench artifacts ls' lists them"
        )
    raise UserError(f"'{name}' means {len(names)} artifacts ({', '.join(sorted(names)[:4])}, ...): give more digits")


def _kept(store: Store, name: str) -> Recipe:
    from pagoda_bench.recipes.registry import read_recipe

    return read_recipe(Path(name)) if name.endswith(".json") else _pick(store, name).recipe
