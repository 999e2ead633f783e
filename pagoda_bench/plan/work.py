"""The runner of `Work`: every stage of a chain is set up as if to train it, and one step of each is counted."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pagoda_bench.artifacts.checkpoint import write_json
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.digests import PROVENANCE
from pagoda_bench.artifacts.provenance import FLOPS, UPSTREAM_FLOPS
from pagoda_bench.plan.inline import load_runner
from pagoda_bench.recipes.base import walk
from pagoda_bench.recipes.features import Features
from pagoda_bench.recipes.work import PAYLOAD, Work


def run(recipe: Work, ctx: Any) -> None:
    """Payload: `work.json`, the operations of each stage by name, and their sum. Stages run as always, in a context that is
    only `counting`: they leave untrained networks, which the next one starts from."""
    stages = list(walk(recipe.of))
    folders: dict[str, Path] = {}
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=ctx.work) as place:
        for number, stage in enumerate(stages):
            out, work = Path(place) / stage.key, Path(place) / f"{stage.key}.work"
            out.mkdir()
            work.mkdir()
            own = StageContext(out, work, folders, ctx.data, counting=True)
            load_runner(stage)(stage, own)
            flops = own.facts.get(FLOPS, 0.0)
            write_json(out / PROVENANCE, {FLOPS: flops, UPSTREAM_FLOPS: dict(found)})
            folders[stage.key] = out
            if not isinstance(stage, Features):
                found[f"{stage.kind}/{stage.key}"] = flops
            ctx.progress(number + 1, len(stages), stage=stage.title)
    write_json(ctx.out / PAYLOAD, {"flops": float(sum(found.values())), "stages": found})
    ctx.record(**{FLOPS: 0.0})
