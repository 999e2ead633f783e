"""The methods `samples` (a folder or an npz of images) and `command` (a program that makes them)."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from baselines.sections import class_count
from pagoda_bench.errors import Unavailable, UserError
from pagoda_bench.metrics.protocol import NOT_STATED
from pagoda_bench.recipes.base import Recipe, result_neutral
from pagoda_bench.recipes.methods import describe
from pagoda_bench.recipes.stages import Generator

if TYPE_CHECKING:
    from pagoda_bench.tables.scales import Scale

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
LABELS = "labels.csv"


class Theirs(Generator):
    """Images alone do not say what guided them."""

    @property
    def guided_by(self) -> str:
        return NOT_STATED


class GivenImages(Theirs, kind="given-images"):
    """Images of somebody else's, square and of `size` px: an npz (`arr_0` uint8 NHWC, perhaps `arr_1` labels) or a folder of
    image files, perhaps with a `labels.csv` (index,label). The digest is their identity; where they lie is not."""

    loader: ClassVar[str] = "baselines.samples.read:given"
    digest: str
    size: int
    place: str = result_neutral("")

    @property
    def resolution(self) -> int:
        return self.size


class CommandImages(Recipe, kind="command-images"):
    """Images that a program makes, in its own environment: this process reads its images and nothing else of it.

    The command is split into words as a shell would, and run without one, in an empty folder. In its words stand
    `{out}` (the folder where it puts image files that sort in the order of their index, or one `images.npz`), `{n}`,
    `{resolution}`, `{labels}` (a CSV of index,label, one line an image, balanced) and `{seed}`.
    """

    runner: ClassVar[str] = "baselines.samples.make:run"

    command: str
    n: int = Field(gt=0)
    size: int
    classes: int = Field(gt=0)
    seed: int = 0
    release: str = ""  # any text: change it when the program or its weights changed
    programs: dict[str, str] = Field(default_factory=dict)  # SHA-256 of the files that the command names
    minutes: float = result_neutral(600.0)

    @property
    def title(self) -> str:
        return f"command {shlex.split(self.command)[0]} {self.size}px N={self.n}"


class FromCommand(Theirs, kind="from-command"):
    """What a `CommandImages` made."""

    loader: ClassVar[str] = "baselines.samples.read:made"
    of: CommandImages

    @property
    def resolution(self) -> int:
        return self.of.size


@describe(
    title="Somebody's images",
    reference="baselines/samples",
    weights="any: images only",
    licence="that of the images",
    tested="real images written out and read back score what the real images score",
    at="all",
)
def samples(scale: Scale, resolution: int) -> Generator:
    """A folder or npz: `samples: PATH` in a row. Sample i of label l is their (i // classes)-th image of that label where they
    have labels; without labels it is image i, and labels are not asked for."""
    place = _option(scale, "samples", {"samples"}, str)
    path = Path(place).expanduser()
    if not path.exists():
        raise Unavailable(f"not available: {place}: no such file or folder: put the images there, or name another place")
    return GivenImages(digest=digest(path), size=resolution, place=str(path.absolute()))


@describe(
    title="A program's images",
    reference="baselines/samples",
    weights="any: loaded by the program, in its own environment",
    licence="that of the program",
    tested="a program that writes real images scores what they score",
    at="all",
)
def command(scale: Scale, resolution: int) -> Generator:
    """`command: LINE` in a row, with `options: {n: ..., seed: ..., release: ...}`; `n` is by default what the scale scores."""
    line = _option(scale, "command", {"command", "n", "seed", "release", "minutes"}, str)
    values = {"n": scale.score.n * scale.score.blocks, **scale.methods["command"]}
    words = _words(line)
    values |= {"size": resolution, "classes": class_count(scale.data), "programs": _programs(words)}
    return FromCommand(of=CommandImages.load(values, f"scale '{scale.name}', methods.command"))


def digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, or over the sorted (name, SHA-256) pairs of a folder's images and labels."""
    if path.is_file():
        return _sha(path)
    names = sorted(p.name for p in path.iterdir() if p.suffix.lower() in IMAGES or p.name == LABELS)
    if not names:
        raise UserError(f"samples: {path} holds no images ({', '.join(IMAGES)})")
    lines = "".join(f"{name} {_sha(path / name)}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _option(scale: Scale, name: str, known: set[str], kind: type) -> Any:
    section = scale.methods.get(name, {})
    if not isinstance(section.get(name), kind):
        raise UserError(f"method '{name}' of scale '{scale.name}': write the row as '{name}: ...' or set methods.{name}.{name}")
    if unknown := sorted(set(section) - known):
        raise UserError(f"method '{name}' of scale '{scale.name}': unknown option '{unknown[0]}' (known: {sorted(known)})")
    return section[name]


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UserError(f"command: {line}: {error}") from None
    if not words:
        raise UserError("command: an empty command makes no images")
    if not any("{out}" in word for word in words):
        raise UserError(f"command: {line}: it must say {{out}} where it is told the folder for its images")
    return words


def _programs(words: list[str]) -> dict[str, str]:
    """Files that the command names: their content is part of what it makes. The program itself, of the system, is not."""
    return {word: _sha(Path(word)) for word in words[1:] if Path(word).is_file()}
