"""Plugging in one's own: a word of ours, an object, or ``package.module:Name``, the same way everywhere."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from redistill.errors import RedistillError
from redistill.internal.suggestions import suggest

Thing = TypeVar("Thing")


def is_path(word: str) -> bool:
    """Whether a word says where something can be imported from.

    >>> is_path("kd"), is_path("my_package.losses:Mine")
    (False, True)
    """
    module, colon, name = word.partition(":")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def import_object(path: str, what: str, error: type[RedistillError]) -> Any:
    """Import what ``package.module:Name`` names.

    Args:
        path: the module's import path, a colon, and a name in it.
        what: what it is wanted for, in messages.
        error: the class that is raised.

    Raises:
        RedistillError: the module cannot be imported (with the reason), or has no such name (with the nearest).
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as failure:  # a script without a guard for __main__ ends itself
        reason = " ".join(f"{type(failure).__name__}: {failure}".split())
        raise error(f"{what} {path}: cannot import {module_name} ({reason}); is its folder on PYTHONPATH?") from failure
    if not hasattr(module, name):
        raise error(f"{what} {path}: {module_name} has no {name!r}{suggest(name, vars(module))}")
    return getattr(module, name)


def find(word: str, known: Mapping[str, Thing], what: str, error: type[RedistillError]) -> Thing | Any:
    """What a word means: one of ours by its name, or what ``package.module:Name`` names.

    Raises:
        RedistillError: neither; the message suggests the nearest name.
    """
    if word in known:
        return known[word]
    if is_path(word):
        return import_object(word, what, error)
    remedy = "; your own is written package.module:Name" if "." in word or ":" in word else suggest(word, known)
    raise error(f"there is no {what} {word!r}{remedy}")
