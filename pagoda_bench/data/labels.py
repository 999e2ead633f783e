"""Labels files: which image has which class, and optionally which split.

  labels.csv, labels.tsv  columns `file` and `label`, optionally `split`; with a header line in any order, or without one
                          in this order
  labels.txt              `file label` a line, parted by white space; the label is the last word; `#` begins a comment line
  labels.json             {"file": "label", ...}, or a list of ["file", "label"] or of {"file": ..., "label": ..., "split": ...}

`file` is relative to the labels file, with '/'. A label is a name or a whole number.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from typing import Any, NamedTuple

from pagoda_bench.errors import UserError

LABELS_FILES = ("labels.csv", "labels.tsv", "labels.txt", "labels.json")
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Row(NamedTuple):
    file: str
    label: str
    split: str
    where: str


def parse_labels(content: bytes, name: str) -> list[Row]:
    """The rows of a labels file, in the format that its `name` says. Raises `UserError` with the line."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8 text: save it as UTF-8") from None
    ending = suffix(name)
    if ending == ".json":
        rows = _json_rows(text, name)
    elif ending == ".txt":
        lines = [(f"{name} line {i}", line.strip()) for i, line in enumerate(text.splitlines(), 1)]
        rows = [
            (where, dict(zip(("file", "label"), line.rsplit(None, 1), strict=False)))
            for where, line in lines
            if line and not line.startswith("#")
        ]
    else:
        rows = _table_rows(text, name, "\t" if ending == ".tsv" else ",")
    if not rows:
        raise UserError(f"{name} names no images: give each image a line with its file and its label")
    return [_row(where, row) for where, row in rows]


def _table_rows(text: str, name: str, delimiter: str) -> list[tuple[str, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = ["file", "label", "split"]
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        for cells in reader:
            lower = [cell.strip().lower() for cell in cells]
            if not rows and {"file", "label"} <= set(lower):
                columns = lower
            elif any(lower):
                rows.append((f"{name} line {reader.line_num}", dict(zip(columns, map(str.strip, cells), strict=False))))
    except csv.Error as error:
        raise UserError(f"{name} line {reader.line_num} cannot be read ({error}): mend the quotes") from None
    return rows


def _json_rows(text: str, name: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON ({error})") from None
    if isinstance(value, dict):
        return [(f"{name} entry '{file}'", {"file": file, "label": label}) for file, label in value.items()]
    if not isinstance(value, list):
        raise UserError(f"{name} holds neither an object nor a list: write {{'file': 'label'}}".replace("'", '"'))
    rows: list[tuple[str, dict[str, Any]]] = []
    for i, item in enumerate(value, 1):
        pair = dict(zip(("file", "label", "split"), item, strict=False)) if isinstance(item, list) else item
        rows.append((f"{name} entry {i}", pair if isinstance(pair, dict) else {}))
    return rows


def _row(where: str, row: dict[str, Any]) -> Row:
    file, label, split = row.get("file"), row.get("label"), row.get("split") or ""
    if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
        label = str(label)
    if not isinstance(file, str) or not file or not isinstance(label, str) or not label:
        raise UserError(f"{where}: a file and a label (a name or a whole number) are wanted")
    if not isinstance(split, str) or (split and split.lower() not in SPLIT_NAMES):
        raise UserError(f"{where}: the split '{split}' is none of train, val, test")
    return Row(posixpath.normpath(file.replace("\\", "/")), label, SPLIT_NAMES.get(split.lower(), ""), where)


def suffix(name: str) -> str:
    """The last extension in lower case, with its dot."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > name.rfind("/") else ""
