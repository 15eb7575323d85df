"""Checks of a method's options, with errors that name the method, the option and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from redistill.errors import ConfigError

Choice = TypeVar("Choice", bound=str)


def choice(method: str, option: str, value: Choice, allowed: Sequence[str]) -> Choice:
    """The value, if it is one of those allowed."""
    if value not in allowed:
        raise ConfigError(f"{method}: {option}={value!r} is not one of {', '.join(allowed)}")
    return value


def positive(method: str, option: str, value: float) -> float:
    """The value, if it is above zero."""
    if not value > 0:
        raise ConfigError(f"{method}: {option}={value!r} must be above 0")
    return value
