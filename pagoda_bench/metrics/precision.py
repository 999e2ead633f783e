"""May a network run in bfloat16? Measured: how far it moves each metric, against what drawing other samples moves it.

    for score in in_both_precisions(images, reference, ["fid"], protocol="adm", device="cuda"):
        print(score.value, score.protocol["precision"], score.marks)

bfloat16 is worth its rounding only where the metric cannot tell: there the score in bfloat16 is given, elsewhere the one in
float32. Either says the shift. What holds for one network, one metric and images like these need not be measured each time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.evaluate import evaluate
from pagoda_bench.metrics.score_schema import Score
from pagoda_bench.metrics.significance import FLOOR_LEAST


def noise(score: Score) -> tuple[float, str]:
    """What a shift of a score is compared with, and how that is called: its standard error; where nothing is known of it, the
    least gap that retraining leaves conclusive (arXiv 2606.20536)."""
    if score.stderr is not None:
        return score.stderr, "its standard error"
    return FLOOR_LEAST * abs(score.value), f"{100 * FLOOR_LEAST:g} % of it"


def in_both_precisions(*arguments: Any, **options: Any) -> list[Score]:
    """Scores as of `evaluate`, each in bfloat16 where that moves it by less than its noise and in float32 otherwise, with a
    mark that says by how much. Takes the arguments of `evaluate` without `precision`, and networks by name or file only.

    Raises `UserError` as `evaluate` does, and for networks in memory: they have one precision already.
    """
    if options.get("extractors"):
        raise UserError("both precisions are measured with networks that are loaded here: give their files, not the networks")
    exact = evaluate(*arguments, **options, precision="float32")
    coarse = evaluate(*arguments, **{**options, "self_check": False}, precision="bfloat16")
    found = []
    for one, other in zip(exact, coarse, strict=True):
        limit, what = noise(one)
        shift = other.value - one.value
        kept, verdict = (other, "less than") if abs(shift) < limit else (one, "not less than")
        used = kept.protocol["precision"].split()[0]
        mark = f"bfloat16 moves it by {shift:+.3g}, {verdict} {what} ({limit:.3g}): {used} is given"
        found.append(replace(kept, marks=[*kept.marks, mark]))
    return found
