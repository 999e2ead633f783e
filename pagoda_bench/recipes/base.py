"""Recipes: frozen, typed configs whose hash is the identity of the artifact that they make.

A `Config` is a bag of typed values. A tagged config (one with a `kind`) may stand in a field typed by one of its base
classes, and carries its tag in JSON. A `Recipe` is a tagged config that determines one artifact; it names its inputs by
holding *their* recipes, so the hash of a recipe covers everything upstream of it.

Identity (`canonical`, `key`) keeps only what differs from the defaults, so that adding an option whose default is the old
behaviour orphans nothing. The price: a default must never change its value without raising the recipe's `version`; a test
pins the defaults of every version. Values that cannot change the result (`result_neutral`) stay out of the identity.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from pagoda_bench.errors import UserError, nearest

NEUTRAL = "result_neutral"
UNKNOWN_KIND = "unknown_kind"
KINDS: dict[str, type[Config]] = {}


def result_neutral(default: Any, **bounds: Any) -> Any:
    """A field that cannot change the result (worker count, chunk size): kept in JSON, left out of the identity. `bounds` as
    `Field` takes them."""
    return Field(default, json_schema_extra={NEUTRAL: True}, **bounds)


class Config(BaseModel):
    """A frozen group of typed values, all numbers finite. An unknown key is an error that names the nearest right one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=(), allow_inf_nan=False)

    kind: ClassVar[str] = ""
    version: ClassVar[int] = 1

    def __init_subclass__(cls, kind: str = "", version: int = 1, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.kind, cls.version = kind, version
        if kind:
            if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", kind):
                raise TypeError(f"a kind names a folder: '{kind}' must be lower-case letters, digits, dots and hyphens")
            if kind in KINDS and KINDS[kind].__qualname__ != cls.__qualname__:
                raise TypeError(f"two configs are called '{kind}': {KINDS[kind].__module__} and {cls.__module__}")
            KINDS[kind] = cls

    @model_validator(mode="wrap")
    @classmethod
    def _by_kind(cls, value: Any, handler: Any) -> Any:
        """Reads a dictionary with a `kind` as that class, wherever a base class of it is expected."""
        if not isinstance(value, dict):
            return handler(value)
        value = dict(value)
        kind = value.pop("kind", cls.kind)
        version = value.pop("version", None)
        target = cls if kind == cls.kind else KINDS.get(str(kind))
        if target is None or not issubclass(target, cls) or (not kind and _kinds_below(cls)):
            known = _kinds_below(cls) or list(KINDS)
            raise PydanticCustomError(UNKNOWN_KIND, "unknown kind", {"kind": str(kind), "known": known})
        if version is not None and version != target.version:
            raise ValueError(
                f"recipe '{kind}' has version {version}, this program makes version {target.version}: use the release "
                "that wrote it, or make the recipe again"
            )
        if target is not cls:
            return target.model_validate(value)
        if unknown := [k for k in value if k not in cls.model_fields]:
            where = f" in '{cls.kind}'" if cls.kind else ""
            raise ValueError(f"unknown key '{unknown[0]}'{where}" + nearest(unknown[0], cls.model_fields))
        return handler(value)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values, with `kind` and `version` where there is a kind."""
        plain: dict[str, Any] = _plain(self, identity=False)
        return plain

    @classmethod
    def load(cls: type[C], value: Any, where: str = "recipe") -> C:
        """`cls` from plain values; a `UserError` of one line, naming `where` and the path of the key, when they do not fit."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            path, message = _most_telling(error)
            raise UserError(f"{where}{': ' + path if path else ''}: {message}") from None


C = TypeVar("C", bound=Config)


class Recipe(Config):
    """A config that determines one artifact. `runner` names the function that makes it, as "module:function".

    `sharder` names one that makes a share of the work, so that several jobs can have part in it (see plan/parallel.py).
    `distributed`: the runner also computes in several processes at once (see training/distributed.py).
    """

    runner: ClassVar[str] = ""
    sharder: ClassVar[str] = ""
    distributed: ClassVar[bool] = False

    @cached_property
    def key(self) -> str:
        """The identity: 20 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(canonical(self).encode()).hexdigest()[:20]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, and the copy computes its own `key` (pydantic copies cached properties along)."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("key", None)
        return copied

    @property
    def title(self) -> str:
        """A short human name, e.g. for a plan; subclasses say more."""
        return self.kind

    def inputs(self) -> list[Recipe]:
        """The recipes that this one needs made first, and all that its runner may read: the nearest nested ones, each once,
        in field order. A recipe whose runner reads something further up overrides this and adds it: what lies upstream of an
        artifact that is there already is neither made nor looked for."""
        found: dict[str, Recipe] = {}
        for value in _values(self):
            for recipe in _nearest_recipes(value):
                found.setdefault(recipe.key, recipe)
        return list(found.values())


def canonical(config: Config) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII, defaults and result-neutral fields left out, floats by shortest repr."""
    return _compact(_plain(config, identity=True))


def walk(recipe: Recipe) -> Iterator[Recipe]:
    """`recipe` and everything upstream of it, each once, inputs before what needs them."""
    seen: set[str] = set()

    def visit(node: Recipe) -> Iterator[Recipe]:
        if node.key not in seen:
            seen.add(node.key)
            for parent in node.inputs():
                yield from visit(parent)
            yield node

    yield from visit(recipe)


def _plain(value: Any, *, identity: bool) -> Any:
    if isinstance(value, Config):
        out: dict[str, Any] = {}
        if value.kind:
            out = {"kind": value.kind, "version": value.version}
        for name, field in type(value).model_fields.items():
            item = getattr(value, name)
            if identity:
                extra = field.json_schema_extra
                if isinstance(extra, dict) and extra.get(NEUTRAL):
                    continue
                plain = _plain(item, identity=True)
                if not field.is_required():
                    # Compared as identities, so that a neutral value deep inside does not count, nor True pass for 1.
                    default = _plain(field.get_default(call_default_factory=True), identity=True)
                    if type(plain) is type(default) and _compact(plain) == _compact(default):
                        continue
                out[name] = plain
            else:
                out[name] = _plain(item, identity=False)
        return out
    if isinstance(value, dict):
        return {str(k): _plain(v, identity=identity) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, identity=identity) for v in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"a recipe cannot hold {value}: use a finite number")
        return int(value) if identity and value.is_integer() and abs(value) < 2**53 else value
    return value


def _compact(plain: Any) -> str:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _values(config: Config) -> Iterator[Any]:
    return (getattr(config, name) for name in type(config).model_fields)


def _nearest_recipes(value: Any) -> Iterator[Recipe]:
    if isinstance(value, Recipe):
        yield value
    elif isinstance(value, Config):
        for item in _values(value):
            yield from _nearest_recipes(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _nearest_recipes(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _nearest_recipes(item)


def _kinds_below(cls: type[Config]) -> list[str]:
    return [kind for kind, sub in KINDS.items() if issubclass(sub, cls)]


def _most_telling(error: ValidationError) -> tuple[str, str]:
    """The path of the key at fault and one line on it. Where a field takes one of several kinds, pydantic reports a failure
    for each; the one that got furthest belongs to the kind that was meant."""
    errors = error.errors(include_url=False)
    meant = [e for e in errors if e["type"] != UNKNOWN_KIND] or errors
    best = max(meant, key=lambda e: len(e["loc"]))
    path = ".".join(str(p) for p in best["loc"] if "[" not in str(p))  # without pydantic's names of union branches
    if best["type"] != UNKNOWN_KIND:
        return path, best["msg"].removeprefix("Value error, ").replace("\n", " ")
    known = {kind for e in errors if len(e["loc"]) == len(best["loc"]) for kind in e["ctx"]["known"]}
    kind = best["ctx"]["kind"]
    return path, (f"unknown kind '{kind}'" if kind else "a 'kind' is missing") + nearest(kind, known)
