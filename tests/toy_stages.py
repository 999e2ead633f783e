"""Recipes and runners that cost nothing, for the tests of store, plan and command line; and, run as a program, a process
that makes an artifact and is killed at a chosen file operation.

    python toy_stages.py kill-everywhere FOLDER     see `kill_everywhere`
    python toy_stages.py make STORE SECONDS         makes one artifact, taking so long
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from pagoda_bench.artifacts.checkpoint import save_atomic
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.digests import damage
from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Config, Recipe, result_neutral


class ToyTrain(Config):
    steps: int = 5
    batch: int = 1


class Toy(Recipe, kind="toy"):
    """A chain of hashes, with a checkpoint after each step."""

    runner: ClassVar[str] = "toy_stages:run_toy"
    seed: int = 0
    train: ToyTrain = ToyTrain()
    pause: float = result_neutral(0.0)


class ToySum(Recipe, kind="toy-sum"):
    """Its parts' payloads, hashed together."""

    runner: ClassVar[str] = "toy_stages:run_sum"
    parts: tuple[Recipe, ...]
    n: int = 10

    @property
    def title(self) -> str:
        return f"sum of {len(self.parts)}"


class ToyFailing(Recipe, kind="toy-failing"):
    """Fails as a user's mistake does."""

    runner: ClassVar[str] = "toy_stages:run_failing"
    parts: tuple[Recipe, ...] = ()


def run_toy(recipe: Toy, context: StageContext) -> None:
    steps, checkpoint = recipe.train.steps, context.work / "state.json"
    done, state = json.loads(checkpoint.read_text()) if checkpoint.is_file() else (0, str(recipe.seed))
    while done < steps:
        state = hashlib.sha256(f"{done} {state}".encode()).hexdigest()
        done += 1
        count_step()
        time.sleep(recipe.pause)
        content = json.dumps([done, state])
        save_atomic(checkpoint, lambda path, content=content: path.write_text(content))
        context.progress(done, steps, state=state[:4])
    (context.out / "deep").mkdir()
    (context.out / "state.txt").write_text(state)
    (context.out / "deep" / "again.txt").write_text(state * 3)
    context.record(training_flops=100.0 * steps, device="toy")


def run_sum(recipe: ToySum, context: StageContext) -> None:
    parts = "".join((context.input(part) / "state.txt").read_text() for part in recipe.parts)
    assert all(context.provenance(part)["kind"] == part.kind for part in recipe.parts)
    (context.out / "state.txt").write_text(hashlib.sha256(parts.encode()).hexdigest())
    context.record(training_flops=1)


def run_failing(recipe: ToyFailing, context: StageContext) -> None:
    raise UserError("it was meant to fail")


STEPS_LOG: list[Path] = []  # where steps that were really computed are counted, one byte each


def count_step() -> None:
    for path in STEPS_LOG:
        with path.open("ab") as file:
            file.write(b".")


def make(recipe: Recipe, store: Store, session: str | None = None) -> Any:
    """Makes `recipe` by its runner, without the plan."""
    with store.making(recipe, session=session) as context:
        if context is not None:
            globals()[recipe.runner.partition(":")[2]](recipe, context)
    return store.find(recipe, session)


def interrupt(recipe: Recipe, store: Store, name: str, content: str, session: str | None = None) -> None:
    """Ends an attempt at `recipe` as Ctrl-C does, after a file of that name was written to its work folder."""
    with suppress(KeyboardInterrupt), store.making(recipe, session=session) as context:
        (context.work / name).write_text(content)
        raise KeyboardInterrupt


def kill_everywhere(folder: Path, session: str | None) -> dict[str, Any]:
    """For every file operation that making an artifact does below the store, in turn: a process that is killed (SIGKILL)
    just before it, then one that is killed so in going on, then one that ends. Returns what each ended in.

    With `session` an artifact is there already, and is replaced.
    """
    recipe, ended = Toy(seed=3, train=ToyTrain(steps=3)), []
    os.fsync = lambda descriptor: None  # a kill, unlike a power failure, loses nothing of what was written
    make(recipe, Store(folder / "warm"))  # what is worked out once a process need not be so in every child
    for number in range(1, 1000):
        root, log = folder / f"{session}-{number}", folder / f"{session}-{number}.log"
        if session:
            make(recipe, Store(root))
        killed = _child(root, log, recipe, session, number)
        visible = root / recipe.kind / recipe.key
        if visible.is_dir() and (problem := damage(visible, recipe.key)):
            return {"problem": f"visible after a kill at operation {number}: {problem}"}
        killed_again = killed and number % 3 == 0 and _child(root, log, recipe, session, number // 2 + 1)
        assert not _child(root, log, recipe, session, None)
        artifact = Store(root).find(recipe, session)
        left = [str(p) for area in (".work", ".staging") for p in (root / area).iterdir()]
        ended.append(
            {
                "digest": artifact.digest if artifact else None,
                "steps": log.stat().st_size,
                "kills": killed + killed_again,
                "attempts": artifact.provenance["attempts"] if artifact else None,
                "left": left,
            }
        )
        if not killed:
            return {"ended": ended}
    return {"problem": "it never ended"}


def _child(root: Path, log: Path, recipe: Recipe, session: str | None, kill_at: int | None) -> bool:
    """Makes the artifact in a child process; True when that was killed at its file operation number `kill_at`."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in OPERATIONS and any(isinstance(a, (str, Path)) and str(a).startswith(str(root)) for a in arguments):
                seen += 1
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        STEPS_LOG.append(log)
        sys.addaudithook(hook)
        make(recipe, Store(root), session)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"the child failed: {status}"
    return os.WIFSIGNALED(status)


OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.rmtree"}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["kill-everywhere", folder]:
            print(json.dumps([kill_everywhere(Path(folder), session) for session in (None, "again")]))
        case ["make", root, seconds]:
            STEPS_LOG.append(Path(root).with_suffix(".log"))
            store = Store(Path(root))
            print(make(Toy(seed=7, pause=float(seconds) / 5), store).digest)
