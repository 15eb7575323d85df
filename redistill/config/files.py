"""Configuration files: YAML read into frozen dataclasses, with errors that name the nearest known key.

A file may name another one, or several, as its `base` and then says only what differs. Names resolve to the packaged
experiments (`digits/smoke.yaml`) or to paths.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from redistill.config.checks import SHOWN, check_ranges, shorten, type_hints
from redistill.errors import ConfigError
from redistill.internal.documents import DEEPEST, parse_yaml, read_yaml
from redistill.internal.suggestions import suggest

Config = TypeVar("Config")
Raw = dict[str, Any]

BASE = "base"
CLASSIFIER = "classifier"
"""The trainer of files that name none."""
COMMANDS = {"classifier": "redistill train", "denoiser": "redistill train-denoiser", "comparison": "redistill compare"}
"""What takes a trainer's files."""
_TELLING = {"denoiser": {"diffusion", "sampling"}, "comparison": {"experiment", "grids"}, "classifier": {"targets"}}
"""Sections that one trainer's files alone have."""
_OF_EXPERIMENTS = {"data", "teacher", "student", "distillation", "recipe"}
_OF_A_RUN = {"config", "versions"}
"""The keys of the file that a run keeps its configuration in."""
MOST_FILES = 32
"""That one configuration may build on."""
REPLACED = "methods"
"""A mapping that a derived file replaces as a whole: methods are chosen together."""


def load(kind: type[Config], name: str, overrides: Sequence[str] = ()) -> Config:
    """Read a packaged experiment or a file, apply `a.b=value` overrides, and check every key and type.

    Raises:
        ConfigError: also where the file is for another trainer.
    """
    raw = read_file(name)
    own: str | None = getattr(kind, "trainer", None)
    other = find_trainer(raw, CLASSIFIER if own == "comparison" and raw.keys() & _OF_EXPERIMENTS else own)
    if other != own and other in COMMANDS:
        raise ConfigError(f"{name} is for `{COMMANDS[other]}`: it configures a {other}, and here a {own} is wanted")
    return read(kind, override(raw, overrides))


def find_trainer(raw: Raw, default: str | None = CLASSIFIER) -> Any:
    """The trainer that a file names, or that its sections tell of."""
    return raw.get("trainer", next((name for name, keys in _TELLING.items() if keys & raw.keys()), default))


def packaged(trainer: str | None = None) -> dict[str, str]:
    """The packaged experiments, of one trainer or all: name to its one-line description (the file's first comment)."""
    root = _package_folder()
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml") if path.name[0] != "_")
    chosen = [name for name in names if trainer in (None, find_trainer(read_file(name)))]
    return {name: (root / name).read_text().splitlines()[0].lstrip("# ").strip() for name in chosen}


def read_file(name: str) -> Raw:
    """The mapping of a file, merged over that of its base; a run's ``config.yaml`` is one too.

    Raises:
        ConfigError: it is missing or no mapping, names itself as its base, or has more bases than anyone needs.
    """
    return _read_file(name, {})


def _read_file(name: str, known: dict[Path, Raw | None]) -> Raw:
    """As :func:`read_file`; what is known was read already, or is being read where it is None."""
    path = find_file(name)
    if path in known:
        found = known[path]
        if found is None:
            raise ConfigError(f"{path}: names itself as its base; take that out")
        return found
    if len(known) >= MOST_FILES:
        raise ConfigError(f"{path}: more than {MOST_FILES} files build on each other")
    known[path] = None
    raw = read_yaml(path, ConfigError)
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds a {type(raw).__name__}; a configuration is a mapping of sections")
    if raw.keys() == _OF_A_RUN and isinstance(raw["config"], dict):
        raw = raw["config"]
    known[path] = found = merge(_bases(path, raw.pop(BASE, None), known), raw)
    return found


def _bases(path: Path, names: Any, known: dict[Path, Raw | None]) -> Raw:
    names = [names] if isinstance(names, str) else names or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: {BASE} is {shorten(names)}; name a file, or a list of files")
    merged: Raw = {}
    for name in names:
        merged = merge(merged, _read_file(name, known))
    return merged


def find_file(name: str) -> Path:
    """A path that exists, or a packaged experiment by its name, with or without `.yaml`."""
    candidates = [Path(name), _package_folder() / name, _package_folder() / f"{name}.yaml"]
    for path in candidates:
        with suppress(OSError, ValueError):  # a name that no file can have
            if path.is_file():
                return path
    raise ConfigError(
        f"there is no file {shorten(name)} and no packaged experiment of that name{suggest(name[:SHOWN], packaged())}"
    )


def merge(base: Raw, changes: Raw) -> Raw:
    """Changes over a base, section by section."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both and key != REPLACED else value
    return merged


def override(raw: Raw, assignments: Sequence[str]) -> Raw:
    """The mapping with each `a.b=value` applied; values are read as YAML."""
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {shorten(assignment)}: write it as section.key=value")
        if path.count(".") > DEEPEST:
            raise ConfigError(f"--set {shorten(path)}: no setting lies that deep")
        raw = _assign(raw, path.split("."), parse_yaml(text, f"--set {path}", ConfigError), path)
    return raw


def _assign(raw: Raw, keys: Sequence[str], value: Any, path: str) -> Raw:
    if len(keys) == 1:
        return {**raw, keys[0]: value}
    inner = raw.get(keys[0]) or {}
    if keys[0] == REPLACED and isinstance(inner, str):
        inner = method_names(inner)
    if not isinstance(inner, dict):
        raise ConfigError(f"--set {path}: {keys[0]} is {shorten(inner)} and has no keys below it")
    return {**raw, keys[0]: _assign(inner, keys[1:], value, path)}


def method_names(text: str) -> dict[str, Raw]:
    """The shorthand "red+kd" as a mapping of methods with their default options; "none" is no method."""
    return {name.strip(): {} for name in text.split("+") if name.strip() not in ("", "none")}


def read(kind: type[Config], raw: Mapping[str, Any], where: str = "", default: Config | None = None) -> Config:
    """A frozen dataclass from a mapping; unknown keys and wrong types are errors that name the place.

    What the mapping leaves out is as in ``default``, such as the section that an outer dataclass has by default.
    """
    hints = type_hints(typing.cast(Any, kind))
    known = dataclasses.fields(typing.cast(Any, kind))
    fields = {field.name: field.default for field in known}
    for key in raw:
        if key not in fields:
            raise ConfigError(f"unknown key {shorten(_join(where, str(key)))}{suggest(str(key)[:SHOWN], fields)}")
    values = {
        key: convert(hints[key], value, _join(where, key), getattr(default, key, fields[key]))
        for key, value in raw.items()
    }
    missing = [field.name for field in known if field.name not in values and _is_needed(field)]
    if missing and default is None:
        raise ConfigError(f"{_join(where, missing[0])} is missing")
    return kind(**values) if default is None else dataclasses.replace(typing.cast(Any, default), **values)


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def resolved(config: Any) -> Raw:
    """The whole configuration as plain mappings, lists and scalars, fit for YAML."""
    plain = _plain(dataclasses.asdict(config))
    assert isinstance(plain, dict)
    return plain


def differences(first: Mapping[str, Any], second: Mapping[str, Any], where: str = "") -> list[str]:
    """The keys at which two resolved configurations differ, as `a.b (1, then 2)`."""
    found: list[str] = []
    for key in sorted({*first, *second}, key=str):
        a, b = first.get(key), second.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, _join(where, str(key)))
        elif a != b:
            found.append(f"{_join(where, str(key))} ({a!r}, then {b!r})")
    return found


def convert(hint: Any, value: Any, where: str, default: Any = None) -> Any:
    """A value as the annotated type and within its range.

    Raises:
        ConfigError: it is another; the message names the place and what was expected.
    """
    converted = _as_type(hint, value, where, default)
    check_ranges(hint, converted, where)
    return converted


def _as_type(hint: Any, value: Any, where: str, default: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _as_type(arguments[0], value, where, default)
    if origin in (types.UnionType, typing.Union):
        inner = next(a for a in arguments if a is not type(None))
        return None if value is None else convert(inner, value, where, default)
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in arguments:
            raise ConfigError(f"{where}: {shorten(value)} is not one of {', '.join(map(str, arguments))}")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return read(hint, _mapping(value, where), where, default if isinstance(default, hint) else None)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {shorten(value)}")
        return tuple(convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin in (dict, Mapping):
        opened = method_names(value) if isinstance(value, str) else value
        return {
            str(key): convert(arguments[1], item, f"{where}.{key}") for key, item in _mapping(opened, where).items()
        }
    return value if hint is Any else _scalar(hint, value, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:
            return float(value)
        raise ConfigError(f"{where}={shorten(value)}: must be a finite number")
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{where}: expected {hint.__name__}, got {shorten(value)}")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a mapping of keys, got {shorten(value)}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _package_folder() -> Path:
    return Path(str(resources.files("redistill"))) / "configs"


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
