"""Options and words that several verbs share."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagoda_bench.errors import UserError, nearest

if TYPE_CHECKING:
    from pagoda_bench.artifacts.store import Store


class Group(click.Group):
    """A group of commands that names the nearest one for an unknown one, and shows its help when none is given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            raise UserError(f"unknown command '{args[0]}'" + nearest(args[0], known))
        return super().resolve_command(ctx, args)


class Folder(click.Path):
    """A folder, there or not. Nothing at all, as of a variable that is not set, would mean the current one: refused."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name of the folder is empty", param, ctx)
        try:
            os.lstat(value)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self.fail(f"{os.fspath(value)[:80]}...: {error.strerror}", param, ctx)
        return super().convert(value, param, ctx)


store_option = click.option(
    "--store",
    "store_path",
    type=Folder(),
    help="The artifact store [default: $PAGODA_BENCH_STORE, else pagoda-bench/store in the user's cache folder].",
)
data_option = click.option(
    "--data",
    "data_paths",
    multiple=True,
    metavar="[DIGEST=]PATH",
    help="Where the images are: a folder or a zip. With DIGEST, for the data of that digest only; may be given again.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def listed(text: str, option: str) -> list[str]:
    """The names in "a,b,c"; a `UserError` when there is none, as of a variable that is not set: it would mean all of them."""
    if not (names := [name.strip() for name in text.split(",") if name.strip()]):
        raise UserError(f"{option}: no name is given: write some with commas, or leave the option away")
    return names


def open_store(path: Path | None) -> Store:
    """The store that the user chose, with the released artifacts of this installation behind it."""
    from pagoda_bench.artifacts.store import Store, default_root
    from pagoda_bench.resources import released_roots

    return Store(path or default_root(), released_roots())


def data_places(values: Sequence[str]) -> dict[str, Path]:
    """The values of `--data` as a map from digest, or "*" for any, to place; a `UserError` when a place is not there."""
    places: dict[str, Path] = {}
    for value in values:
        match = re.fullmatch(r"([0-9a-f]{64})=(.+)", value)
        digest, place = match.groups() if match else ("*", value)
        if not place:
            raise UserError("--data: the name of the place is empty")
        try:
            there = Path(place).exists()
        except OSError as error:  # e.g. a name that is too long
            raise UserError(f"--data {place[:80]}...: {error.strerror}") from None
        if not there:
            raise UserError(f"--data {place}: no such file or folder")
        if digest in places:
            raise UserError("--data: two places for the same images; for different images write --data DIGEST=PATH")
        places[digest] = Path(place).absolute()
    return places


def echo_json(value: Any) -> None:
    """Prints indented JSON on stdout."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False))


def echo_columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Prints rows of equal length in aligned columns; those whose index is in `right` are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        click.echo("  ".join(cells).rstrip())


def bytes_text(count: float) -> str:
    """E.g. "512 B", "1.2 kB", "3.4 MB" (powers of 1000)."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"
