"""The stage that lets a program make images, and takes them over as plain pixels."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from baselines.samples.read import read_images
from baselines.samples.recipes import CommandImages
from pagoda_bench.artifacts.checkpoint import save_atomic
from pagoda_bench.errors import UserError

NPZ = "images.npz"
TAIL = 400  # characters of what a failing program said


def run(recipe: CommandImages, ctx: Any) -> None:
    """Payload: `images.npz` with `arr_0` uint8 (n, R, R, 3) and `arr_1` int64 labels.

    An interrupted program is started again with the same folder, so that it may go on from what it left there.

    Raises:
        UserError: the program cannot be started, fails, takes too long, or leaves other images than were asked for.
    """
    folder: Path = ctx.work / "made"
    folder.mkdir(exist_ok=True)
    labels = np.arange(recipe.n, dtype=np.int64) % recipe.classes
    table = ctx.work / "labels.csv"
    save_atomic(table, lambda path: path.write_text("index,label\n" + "".join(f"{i},{k}\n" for i, k in enumerate(labels))))
    fill = {"out": folder, "n": recipe.n, "resolution": recipe.size, "labels": table, "seed": recipe.seed}
    # Words that name files are given from where the command was written; the program itself runs in its own folder.
    words = [_filled(word, fill, recipe) for word in shlex.split(recipe.command)]
    ctx.progress(0, recipe.n)
    _call(words, folder, recipe.minutes)
    images, _ = read_images(folder / NPZ if (folder / NPZ).is_file() else folder, recipe.size)
    if len(images) < recipe.n:
        raise UserError(f"{words[0]} made {len(images)} images where {recipe.n} were asked for: see {{n}} and {{labels}}")
    arrays: dict[str, Any] = {"arr_0": images[: recipe.n], "arr_1": labels}
    save_atomic(ctx.out / NPZ, lambda path: np.savez(path, **arrays))
    shutil.rmtree(folder)
    ctx.progress(recipe.n, recipe.n)
    ctx.record(images=recipe.n, device="the program's own")


def _filled(word: str, fill: dict[str, Any], recipe: CommandImages) -> str:
    for name, value in fill.items():
        word = word.replace(f"{{{name}}}", str(value))
    return str(Path(word).absolute()) if word in recipe.programs else word


def _call(words: list[str], folder: Path, minutes: float) -> None:
    """Runs the program; its own output goes to files, so that it can neither block nor fill this process."""
    log = folder.parent / "program.log"
    with log.open("wb") as output:
        try:
            done = subprocess.run(
                words, cwd=folder, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=minutes * 60,
                env=os.environ | {"PAGODA_BENCH_OUT": str(folder)}, check=False,
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"not available: the program '{words[0]}' cannot be started ({error.strerror})") from None
        except subprocess.TimeoutExpired:
            raise UserError(f"'{words[0]}' did not end within {minutes:g} minutes: set options.minutes of its row") from None
    if done.returncode:
        said = " ".join(log.read_bytes().decode(errors="replace").split())[-TAIL:]
        raise UserError(f"'{words[0]}' ended with code {done.returncode}: {said or 'it said nothing'}")
