"""The same tables in LaTeX with booktabs. The fragment compiles in a document that loads `booktabs` and `graphicx`."""

from __future__ import annotations

from collections.abc import Sequence

from pagoda_bench.tables.render import Column, Line, Sheet

_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "–": "--", "—": "---", "é": r"\'e", "×": r"$\times$",
}  # fmt: skip


def escape(text: str) -> str:
    """Plain text for LaTeX, in ASCII where the tables need it."""
    return "".join(_ESCAPES.get(c, c) for c in text)


def latex(tables: Sequence[Sheet]) -> str:
    """The tables as `table` environments, each no wider than the text."""
    return "% needs \\usepackage{booktabs} and \\usepackage{graphicx}\n" + "\n".join(_latex(sheet) for sheet in tables)


def _latex(sheet: Sheet) -> str:
    heads = ["px", "Row", *(c.head for c in sheet.columns)]
    columns = "rl" + "r" * len(sheet.columns)
    if sheet.published:
        heads.append(sheet.published)
        columns += "@{\\hspace{2em}}l"
    notes = " ".join(sheet.notes)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(sheet.title)}. {escape(notes)}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(escape(h) for h in heads) + r" \\",
        r"\midrule",
    ]
    above = 0
    for line in sheet.lines:
        if above and line.resolution != above:
            lines.append(r"\addlinespace")
        px = str(line.resolution) if line.resolution != above else ""
        above = line.resolution
        lines.append(" & ".join([px, escape(line.label), *_texts(line, sheet.columns), *_tail(line, sheet)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""])


def _texts(line: Line, columns: Sequence[Column]) -> list[str]:
    texts = [(column, escape(column.text(line))) for column in columns]
    return [rf"\textbf{{{text}}}" if column.metric in line.best else text for column, text in texts]


def _tail(line: Line, sheet: Sheet) -> list[str]:
    return [rf"\emph{{{escape(line.published)}}}" if line.published else ""] if sheet.published else []
