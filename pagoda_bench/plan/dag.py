"""The plan: which stages the wanted artifacts need, less what is there already."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pagoda_bench.artifacts.locks import Faults
from pagoda_bench.artifacts.retrains import AREA, lock_of, session_of, touch
from pagoda_bench.artifacts.store import Artifact, Store
from pagoda_bench.plan.estimate import Estimate, Estimator
from pagoda_bench.recipes.base import Recipe

State = Literal["cached", "released", "to make"]


@dataclass(frozen=True)
class Node:
    """One artifact of a plan. `half_made`: an interrupted attempt left checkpoints to go on from."""

    recipe: Recipe
    state: State
    half_made: bool = False


class Plan:
    """`targets` and what they need that is not there. What lies upstream of an artifact that is there is left out.

    `nodes`, by key, lists inputs before what needs them. With `retrain` every artifact, whether cached or released, counts
    as absent until this retraining has made it once. A retraining has a name of its own, its `session`, which its artifacts
    carry in their provenance and which a mark in the store keeps while it is unfinished: the same targets with `retrain`
    after an interruption go on with the same session. Old artifacts stay in place until the new ones replace them.

    With `session` the plan is the rest, or a part of the rest, of the retraining of that name, whose targets had the keys
    `asked` (default: those of `targets`).
    """

    def __init__(
        self,
        targets: Sequence[Recipe],
        store: Store,
        retrain: bool = False,
        *,
        session: str | None = None,
        asked: Sequence[str] = (),
    ) -> None:
        self.targets = tuple({target.key: target for target in targets}.values())
        self.asked = tuple(asked) or tuple(target.key for target in self.targets)
        self.store = store
        self._joins = session is None  # another process may have begun the same
        self.session = (self._marked() or secrets.token_hex(8)) if retrain and session is None else session
        self.nodes: dict[str, Node] = {}
        for target in self.targets:
            self._visit(target)

    def _visit(self, recipe: Recipe) -> None:
        if recipe.key in self.nodes:
            return
        artifact = self.store.find(recipe, self.session)
        if artifact is None:
            for parent in recipe.inputs():
                self._visit(parent)
        self.nodes[recipe.key] = Node(recipe, _state(artifact), artifact is None and self.store.half_made(recipe))

    @property
    def to_make(self) -> list[Recipe]:
        """What has to be made, in an order in which it can be."""
        return [node.recipe for node in self.nodes.values() if node.state == "to make"]

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Time and training work of what is to make, by key, where something comparable was measured before."""
        estimator = Estimator(self.store)
        return {r.key: e for r in self.to_make if (e := estimator.estimate(r)) is not None}

    # The mark of an unfinished retraining

    @property
    def _mark(self) -> Path:
        name = hashlib.sha256(" ".join(sorted(self.asked)).encode()).hexdigest()[:20]
        return self.store.root / AREA / f"{name}.json"

    def _marked(self) -> str | None:
        return session_of(self._mark)

    @contextmanager
    def running(self) -> Iterator[None]:
        """`begin`, and while the body makes the plan a lock that says so. A process that joins another's retraining goes on
        without it."""
        self.begin()
        if self.session is None:
            yield
            return
        with self.store.locked(lock_of(self.session), wait=False):
            yield

    def begin(self) -> None:
        """Marks the retraining as begun. If another process has begun the same one since, this plan joins it."""
        if self.session is None:
            return
        with Faults(self.store.root):
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            ours = self._mark.with_suffix(f".{self.session}-{os.getpid()}")
            ours.write_text(f'{{"session": "{self.session}"}}\n', encoding="ascii")
            try:
                os.link(ours, self._mark)  # whole at once, and only if there is none
            except FileExistsError:
                if self._joins:
                    self.session = self._marked() or self.session
                touch(self.store.root, self.session)
            finally:
                ours.unlink()

    def end(self) -> None:
        """Takes the mark away if all that was asked for is made: the next `retrain` starts anew. The mark of another session
        stays."""
        if self.session is not None and self._marked() == self.session and all(map(self._made, self.asked)):
            self._mark.unlink(missing_ok=True)

    def _made(self, key: str) -> bool:
        """Whether this retraining has made the artifact of that key; its contents are not read."""
        return any(Artifact(p).provenance.get("session") == self.session for p in self.store.root.glob(f"[!.]*/{key}"))


def _state(artifact: Artifact | None) -> State:
    if artifact is None:
        return "to make"
    return "released" if artifact.released else "cached"
