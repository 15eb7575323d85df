"""Documents from anywhere: YAML and JSON as plain data, within limits, or one error that says what is wrong.

YAML is read by the rules of version 1.2: ``no`` is a word, ``1e-4`` a number, ``1:30`` and ``1_000`` are text, and a
key stands once. No tag makes anything but plain data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import yaml

from redistill.errors import ConfigError, RedistillError
from redistill.internal.files import read_text
from redistill.internal.reasons import reason

LARGEST = 1 << 20
"""Bytes of a document."""
MOST_VALUES, DEEPEST = 100_000, 40
"""Of a document with its anchors written out."""

Refusal = type[RedistillError]


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema, and no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own name for them

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None) if len(keys) < 999 else None
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes whatever either version of YAML would read as something else than text."""

    yaml_implicit_resolvers = {first: list(known) for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)), 0 if node.value.lstrip("+-").startswith("0x") else 10)


_DIGITS = "0123456789"
_DECIMAL = r"(?:\.[0-9]{1,40}|[0-9]{1,40}(?:\.[0-9]{0,40})?)(?:[eE][-+]?[0-9]{1,4})?"
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0x[0-9a-fA-F]{1,16}|[0-9]{1,18})", list(f"+-{_DIGITS}")),
    "float": (rf"[-+]?(?:{_DECIMAL}|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)", list(f"+-.{_DIGITS}")),
}
for _name, (_pattern, _first) in _SCALARS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    tag: make for tag, make in _Loader.yaml_constructors.items() if tag is None or tag.rpartition(":")[2] in _PLAIN
}
_Loader.add_constructor("tag:yaml.org,2002:int", _whole)


def dump_yaml(data: Any) -> str:
    """Plain data as YAML that :func:`parse_yaml` reads back as it was."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse_yaml(text: str, where: object, error: Refusal = ConfigError) -> Any:
    """The plain data that a YAML text stands for; ``where`` names it in errors.

    Raises:
        error: not YAML, or larger, deeper or with more values than any document of ours; an anchor within itself.
    """
    if len(text) > LARGEST:
        raise error(f"{where}: longer than {LARGEST:,} characters")
    return _parse(text, where, error, _load_yaml, "YAML")


def read_yaml(path: Path, error: Refusal = ConfigError) -> Any:
    """The plain data in a YAML file, as :func:`parse_yaml`.

    Raises:
        error: also where the file is missing, no regular file, or not UTF-8.
    """
    return parse_yaml(_read(path, error), path, error)


def read_json(path: Path, error: Refusal = ConfigError, largest: int = LARGEST) -> Any:
    """The plain data in a JSON file of at most so many bytes.

    Raises:
        error: as :func:`read_yaml`.
    """
    return _parse(_read(path, error, largest), path, error, json.loads, "JSON")


def _read(path: Path, error: Refusal, largest: int = LARGEST) -> str:
    try:
        return read_text(path, largest)
    except UnicodeDecodeError:
        raise error(f"{path}: not a text in UTF-8") from None
    except (OSError, ValueError) as fault:
        raise error(f"{path}: cannot be read: {reason(fault)}") from None


def _parse(text: str, where: object, error: Refusal, load: Callable[[str], Any], form: str) -> Any:
    try:
        return load(text)
    except RecursionError:
        raise error(f"{where}: nested too deeply") from None
    except Exception as fault:  # whatever a parser makes of any bytes
        raise error(f"{where}: not valid {form}: {reason(fault, 200)}") from None


def _load_yaml(text: str) -> Any:
    found = yaml.load(text, Loader=_Loader)
    _count(found, {}, 0)
    return found


def _count(value: Any, known: dict[int, int], depth: int) -> int:
    """Values in a document with its anchors written out; each anchor is counted through once."""
    if not isinstance(value, (dict, list, tuple, set)):
        return 1
    if depth > DEEPEST:
        raise ValueError("nested too deeply")
    if known.get(id(value)) == 0:
        raise ValueError("an anchor stands within itself")
    if id(value) not in known:
        known[id(value)] = 0
        items = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(item, known, depth + 1) for item in items)
    if known[id(value)] > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values")
    return known[id(value)]
