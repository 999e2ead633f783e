"""A fault in a stage, which is no mistake of the user: what it costs, and what is said."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from toy_stages import Toy, ToyFailing, ToySum

from pagoda_bench.artifacts.store import Store
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.inline import run_plan
from pagoda_bench.plan.progress import Lines


def test_a_fault_of_a_stage_costs_what_needs_it_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("out of\n memory")

    monkeypatch.setattr("toy_stages.run_failing", broken)
    store, lines = Store(tmp_path / "store"), Lines(io.StringIO())
    part, good = Toy(seed=1), ToySum(parts=(Toy(seed=2),))
    bad = ToyFailing(parts=good.parts)
    with pytest.raises(RuntimeError):
        run_plan(Plan([bad, good], store), report=lines)
    outcome = run_plan(Plan([ToySum(parts=(part, bad)), good], store), keep_going=True, report=lines)
    assert outcome.failures[bad.key] == "RuntimeError: out of memory"
    assert outcome.artifacts.keys() >= {recipe.key for recipe in (part, *good.parts, good)}
    said = lines._stream.getvalue()
    assert "Traceback" in said
    assert "in broken" in said
